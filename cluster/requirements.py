"""Prints what the project and its extras named as arguments require, one requirement a line, for the image."""

import configparser
import sys


def requirements(extras: list[str]) -> list[str]:
    """Return the requirements that setup.cfg in this folder lists."""
    setup = configparser.ConfigParser()
    setup.read("setup.cfg")
    texts = [setup["options"]["install_requires"], *(setup["options.extras_require"][extra] for extra in extras)]
    lines = [line.strip() for text in texts for line in text.splitlines()]
    return list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1:])))
