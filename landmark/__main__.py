"""`python -m landmark <verb>`: the same as the console script `landmark`."""

import os
import sys

from landmark import cli


def main() -> int:
    """Run the command line; returns the exit code, or ends the process when a call to object storage hangs."""
    code = cli.main()
    storage, ray = sys.modules.get("landmark.storage"), sys.modules.get("ray")
    if storage is not None and storage.hanging():
        if ray is not None:
            ray.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        # The storage client waits for its calls when the interpreter ends in the usual way.
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
