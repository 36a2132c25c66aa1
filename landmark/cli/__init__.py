"""The command line: arguments become a config, and a command of `landmark.commands` is called with it."""

from landmark.cli.app import end, main
from landmark.cli.commands import COMMANDS
from landmark.cli.parsing import Parser, parse

__all__ = ["COMMANDS", "Parser", "end", "main", "parse"]
