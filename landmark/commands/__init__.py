"""The commands: one function per command, which takes the command's config."""
