"""What each command does: a function that takes the command's config."""
