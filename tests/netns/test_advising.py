"""A scheduler in Python and a shadow in a running director: chosen, exchanged, refused, watched."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from netns import load
from netns.topology import Net

PICK = "def pick(flow, servers):\n    return {}\n"


@pytest.fixture
def script() -> Iterator[Path]:
    """In a folder that root alone can write, which /tmp is not."""
    with tempfile.TemporaryDirectory(dir="/run", prefix="nfqlb-") as folder:
        yield Path(folder, "pick.py")


def served(net: Net, count: int = 6) -> dict[str, int]:
    return Counter(name for name, _ in load.whoami(net.client, net.url(), count))


def test_a_scheduler_in_python_is_chosen_exchanged_refused_and_watched(net: Net, script: Path) -> None:
    vip = net.service()
    script.write_text(PICK.format("servers[1]"))
    net.director.nfqlb("--mode", net.mode, "--vip", vip, *net.reals(), "--scheduler", "rr")
    service = ("service", "edit", vip, "--budget", "100000", "--scheduler", str(script))

    net.director.cli(*service, "--shadow", "rr")
    assert served(net) == {"s2": 6}
    [about] = net.director.show("schedulers")["schedulers"]
    assert (about["script"]["chosen"], about["script"]["error"]) == (6, "")
    assert (about["shadow"]["compared"], about["shadow"]["differed"]) == (6, 3)

    script.write_text(PICK.format("servers[0]"))
    net.director.cli(*service)
    assert served(net) == {"s1": 6}

    script.write_text("def pick(:\n")
    refused = net.director.cli(*service, check=False)
    assert (refused.returncode, "raises SyntaxError" in refused.stderr) == (2, True)
    assert served(net) == {"s1": 6}

    script.write_text("def pick(flow, servers):\n    while True:\n        pass\n")
    net.director.cli(*service, "--fallback", "rr", "--budget", "100")
    assert served(net, 2) == {"s1": 1, "s2": 1}
    assert net.director.show("schedulers")["schedulers"][0]["script"]["late"] == 2

    script.chmod(0o666)
    refused = net.director.cli(*service, check=False)
    assert "can be written by others than root" in refused.stderr
    net.director.cli("service", "edit", vip, "--scheduler", "wlc", "--shadow", "")
    assert net.director.show("schedulers") == {"schedulers": []}
