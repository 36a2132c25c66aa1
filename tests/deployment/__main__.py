"""`python -m tests.deployment`: the tables of what is checked: overlays x checks, policies, broken manifests."""

import copy
import sys

from tests.deployment.broken import BROKEN
from tests.deployment.checks import CHECKS, crd_findings, foreign_findings, native_findings
from tests.deployment.manifests import OVERLAYS, Manifest, overlay
from tests.deployment.policies import POLICIES, findings

COLUMNS = {
    "CRD strict": crd_findings,
    "native strict": native_findings,
    "other kinds": foreign_findings,
    "policies": findings,
}


def validation(built: dict[str, list[Manifest]]) -> list[str]:
    """Return the table overlay x check, a cell the number of findings."""
    lines = [f"{'overlay':12}{'objects':>9}" + "".join(f"{name:>15}" for name in COLUMNS)]
    for name, manifests in built.items():
        found = [len(list(check(copy.deepcopy(manifests)))) for check in COLUMNS.values()]
        cells = "".join(f"{f'{count} wrong' if count else 'ok':>15}" for count in found)
        lines.append(f"{name:12}{len(manifests):>9}{cells}")
    return lines


def broken(built: dict[str, list[Manifest]]) -> list[str]:
    """Return what is broken on purpose, by which check it is found, and the first finding."""
    lines = []
    for one in BROKEN:
        manifests = copy.deepcopy(built[one.overlay])
        one.mutate(manifests)
        found = list(CHECKS[one.check](manifests))
        lines.append(f"{one.what:48}{one.check:42}{found[0] if found else 'NOT FOUND'}")
    return lines


def main() -> int:
    """Print the tables; returns 1 where something is wrong with an overlay or a broken one is not found."""
    built = {name: overlay(name) for name in OVERLAYS}
    table, caught = validation(built), broken(built)
    print("\n".join(table), f"\n{len(POLICIES)} policies:", sep="\n")
    for name, policy in POLICIES.items():
        print(f"{name:42}{(policy.__doc__ or '').strip()}")
    print(f"\n{len(caught)} broken manifests:", "\n".join(caught), sep="\n")
    return int(any("wrong" in line for line in table) or any("NOT FOUND" in line for line in caught))


if __name__ == "__main__":
    sys.exit(main())
