"""`python -m landmark <verb>`: the same as the console script `landmark`."""

import sys

from landmark.cli import main

if __name__ == "__main__":
    sys.exit(main())
