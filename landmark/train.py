"""`python -m landmark.train`: the same as `landmark train`."""

import sys

from landmark.cli import end, main

if __name__ == "__main__":
    end(main(["train", *sys.argv[1:]]))
