"""The packages of an optional feature, and the command that installs them."""

import importlib.metadata
import re

DISTRIBUTION = "landmark-ray"
"""Name of this project as a Python distribution (setup.cfg). The name `landmark` belongs to another project."""


def install_command(extra: str) -> str:
    """Return the command that installs the packages of an extra in setup.cfg.

    It contains the packages themselves, because this project is installed from its repository. Installing by the
    project's name could install a package of another owner.

    >>> install_command("optuna")
    "pip install 'optuna<6,>=4.5'"
    """
    try:
        listed = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        listed = []
    wanted = [
        requirement.partition(";")[0].strip()
        for requirement in listed
        if re.search(rf"""extra == ['"]{re.escape(extra)}['"]""", requirement)
    ]
    if not wanted:
        return f"pip install '.[{extra}]' in the project folder"
    return "pip install " + " ".join(f"'{requirement}'" for requirement in sorted(wanted))
