"""Prints tables of the checks with `python -m tests.deployment`: overlay x check, policies, and broken manifests."""

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
    """Return the table overlay x check. Each cell has the number of findings."""
    lines = [f"{'overlay':12}{'objects':>9}" + "".join(f"{name:>15}" for name in COLUMNS)]
    for name, manifests in built.items():
        found = [len(list(check(copy.deepcopy(manifests)))) for check in COLUMNS.values()]
        cells = "".join(f"{f'{count} errors' if count else 'ok':>15}" for count in found)
        lines.append(f"{name:12}{len(manifests):>9}{cells}")
    return lines


def broken(built: dict[str, list[Manifest]]) -> list[str]:
    """Return one line per broken manifest: the fault, the check that finds it, and the first finding."""
    lines = []
    for item in BROKEN:
        manifests = copy.deepcopy(built[item.overlay])
        item.mutate(manifests)
        found = list(CHECKS[item.check](manifests))
        lines.append(f"{item.fault:48}{item.check:42}{found[0] if found else 'NOT FOUND'}")
    return lines


def main() -> int:
    """Print the tables. Return 1 if an overlay has errors or a check misses a broken manifest."""
    built = {name: overlay(name) for name in OVERLAYS}
    table, detected = validation(built), broken(built)
    print("\n".join(table), f"\n{len(POLICIES)} policies:", sep="\n")
    for name, policy in POLICIES.items():
        print(f"{name:42}{(policy.__doc__ or '').strip()}")
    print(f"\n{len(detected)} broken manifests:", "\n".join(detected), sep="\n")
    return int(any("errors" in line for line in table) or any("NOT FOUND" in line for line in detected))


if __name__ == "__main__":
    sys.exit(main())
