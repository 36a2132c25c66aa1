"""Prints the requirements of the project and of the extras given as arguments, one per line, for the image build."""

import configparser
import sys


def requirements(extras: list[str]) -> list[str]:
    """Return the requirements in setup.cfg of the current folder."""
    setup = configparser.ConfigParser()
    setup.read("setup.cfg")
    texts = [setup["options"]["install_requires"], *(setup["options.extras_require"][extra] for extra in extras)]
    lines = [line.strip() for text in texts for line in text.splitlines()]
    return list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1:])))
