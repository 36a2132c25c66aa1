"""The command line: arguments become a config, and a command of `landmark.commands` is called with it."""

from landmark.cli.app import end, main
from landmark.cli.parsing import Parser, parse
from landmark.cli.verbs import VERBS

__all__ = ["VERBS", "Parser", "end", "main", "parse"]
