"""What ran: prints the ten slowest tests of pytest's JUnit files, and fails when an expected test is not among them.

    python3 .ci/report.py FOLDER EXPECTED

EXPECTED names one pytest node id a line, seen from its own folder; one without `[` stands for any parameters of that
test. A skipped test did not run. Needs nothing but the standard library.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path


def cases(folder: Path) -> Iterator[tuple[str, float, bool]]:
    """Name as in JUnit (class and test), seconds and whether it ran, for each test of each report."""
    for report in sorted(folder.glob("*.xml")):
        for case in ElementTree.parse(report).iter("testcase"):
            name = f"{case.get('classname')}.{case.get('name')}"
            yield name, float(case.get("time") or 0), case.find("skipped") is None


def junit_name(folder: Path, node: str) -> str:
    """tests/netns and test_nat.py::test_split[nft] -> tests.netns.test_nat.test_split[nft]"""
    file, *rest = node.split("::")
    return ".".join([*folder.parts, file.removesuffix(".py").replace("/", "."), *rest])


def main(folder: Path, expected: Path) -> int:
    seen = list(cases(folder))
    print(f"the ten slowest of {len(seen)} tests:")
    for name, seconds, _ in sorted(seen, key=lambda case: -case[1])[:10]:
        print(f"{seconds:8.2f} s  {name}")

    ran = {name for name, _, did in seen if did}
    ran |= {name.partition("[")[0] for name in ran}
    nodes = expected.read_text().splitlines()
    missed = [node for node in nodes if junit_name(expected.parent, node) not in ran]
    print(f"{len(nodes) - len(missed)} of {len(nodes)} expected network tests ran")
    for node in missed:
        print(f"did not run: {node}")
    return 1 if missed or not nodes else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
