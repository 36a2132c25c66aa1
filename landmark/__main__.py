"""`python -m landmark COMMAND`: the same as the console script `landmark`."""

from typing import NoReturn

from landmark import cli


def main() -> NoReturn:
    """Run the command line and end the process."""
    cli.end(cli.main())


if __name__ == "__main__":
    main()
