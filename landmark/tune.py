"""`python -m landmark.tune`: the same as `landmark tune`."""

import sys

from landmark.cli import end, main

if __name__ == "__main__":
    end(main(["tune", *sys.argv[1:]]))
