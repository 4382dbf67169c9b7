"""The order of layers in ext/nfqlb/_core: who may cimport whom.

Read LAYERS from top to bottom: a module may use those on its own line and on the lines below it.
"""

from __future__ import annotations

import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

CORE = Path(__file__).parents[2] / "ext/nfqlb/_core"
LAYERS = [
    {"queue", "probe", "script", "follow", "mirror"},
    {"transmit", "audit"},
    {"datapath"},
    {"advisor", "announce", "defence", "latency", "shadow"}
    | {"forward", "icmp", "schedulers", "hashing", "locality", "load", "ranking", "connection", "tracking", "snapshot"},
    {"packet", "offload", "sync"},
    {"states", "wire", "telemetry"},
    {"checksum", "crc32c", "hash", "callid"},
    {"types", "atomic", "memory"},
]
DEPTH = {module: depth for depth, layer in enumerate(LAYERS) for module in layer}
SOURCES = sorted(path for path in CORE.iterdir() if path.suffix in {".pyx", ".pxd"} and path.stem != "__init__")
# from nfqlb.x.y cimport a   |   from nfqlb.x import a   |   cimport nfqlb.x.y   |   import nfqlb.x
USE = re.compile(
    r"^\s*(?:from|cimport|import)\s+(nfqlb[\w.]*|\.[\w.]*)(?:\s+c?import\s+\(?\s*([\w, ]+))?",
    re.MULTILINE,
)


def uses(path: Path) -> set[str]:
    """The modules of nfqlb that a source names, `_core.` left off where it belongs to the core."""
    found = set()
    for module, names in USE.findall(path.read_text()):
        if module == "nfqlb._core":
            found |= {name.split()[0] for name in names.split(",")}
        else:
            found.add(module.removeprefix("nfqlb._core."))
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_uses_its_own_layer_and_those_below(path: Path) -> None:
    assert path.stem in DEPTH, f"give {path.stem} a place in LAYERS"
    outside = uses(path) - DEPTH.keys()
    assert not outside, f"{path} reaches out of the core"
    above = {module for module in uses(path) if DEPTH[module] < DEPTH[path.stem]}
    assert not above, f"{path} uses a layer above its own"


def test_no_two_modules_need_each_other() -> None:
    graph: dict[str, set[str]] = {}
    for path in SOURCES:
        graph.setdefault(path.stem, set()).update(uses(path) - {path.stem})
    TopologicalSorter(graph).prepare()


def test_only_queue_knows_nfqueue() -> None:
    words = re.compile(r"\b(NFQA|NFQNL|NFNL|NLM|NLMSG|NLA|AF_NETLINK)|<linux/net")
    prose = re.compile(r'""".*?"""|#.*?$', re.DOTALL | re.MULTILINE)
    knowing = {path.stem for path in SOURCES if words.search(prose.sub("", path.read_text()))}
    assert knowing == {"queue"}
