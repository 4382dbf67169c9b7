"""The network itself, without nfqlb: what it connects, that two live side by side, and that a crash leaves nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from netns import claim, kernelstate, load
from netns.host import alive
from netns.topology import Net
from netns.wiring import endpoint

CRASH = """
import signal
from netns.topology import Net
net = Net(servers=2, echo=True).__enter__()
open(f"/dev/shm/nfqlb-{net.claim.tag}", "w").close()
print(net.claim.tag, net.claim.folder, net.servers[0].nginx.pid, flush=True)
signal.pause()
"""


@contextmanager
def crashed(script: str) -> Iterator[list[str]]:
    """Kill the script once it has said a line: its words. Until the block ends no test beside this one sweeps up."""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            words = process.stdout.readline().split()
            with claim.locked():
                process.kill()
                assert process.wait() == -signal.SIGKILL
                yield words
        finally:
            process.kill()


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("arms", [1, 2])
def test_client_reaches_every_server_through_router_and_director(
    make_net: Callable[..., Net], arms: int, family: int
) -> None:
    net = make_net(arms=arms, clients=2, echo=True)
    net.director.sysctl("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    client = net.clients[1]
    for server in net.servers:
        url = f"http://{endpoint(server.address(family), 80)}/whoami"
        assert load.whoami(client, url, 2) == [(server.name, client.address(family))] * 2
        assert load.udp(client, server.address(family), 2, 5000) == [(server.name, client.address(family))] * 2
        assert load.gso(client, server.address(family), 32, 1000) == (32, 32)


def test_pages_come_from_the_one_storage(make_net: Callable[..., Net]) -> None:
    net = make_net(servers=2)
    net.director.sysctl("net.ipv4.ip_forward=1")
    big = net.storage.fill("big", 3_000_001)
    one, two = (f"http://{server.v4}" for server in net.servers)
    load.upload(net.client, net.storage.files / "big", f"{one}/incoming/copy")
    assert load.download(net.client, f"{two}/incoming/copy") == big == net.storage.sha256("incoming/copy")


def test_two_topologies_side_by_side(make_net: Callable[..., Net]) -> None:
    for net in [make_net(servers=1), make_net(servers=1)]:
        net.director.sysctl("net.ipv4.ip_forward=1")
        assert load.whoami(net.client, f"http://{net.servers[0].v4}/whoami", 1) == [("s1", net.client.v4)]


def test_offload_off_leaves_real_checksums(make_net: Callable[..., Net]) -> None:
    net = make_net(servers=1)
    net.director.sysctl("net.ipv4.ip_forward=1")
    for on in (False, True):
        net.offload(on)
        with net.servers[0].capture("tcp dst port 80") as pcap:
            load.whoami(net.client, f"http://{net.servers[0].v4}/whoami", 1)
        said = net.client.run(["tcpdump", "-nvvr", str(pcap)]).stdout
        assert ("incorrect" in said) == on, said


def test_a_changed_sysctl_and_rule_are_seen_in_the_state(make_net: Callable[..., Net]) -> None:
    director = make_net(servers=1, web=False).director
    before = director.state()
    assert kernelstate.difference(before, director.state()) == ""
    director.sysctl("net.ipv4.conf.eth0.rp_filter=2")
    director.run(["iptables", "-t", "mangle", "-A", "PREROUTING", "-j", "ACCEPT"])
    changed = kernelstate.difference(before, director.state())
    assert "+net.ipv4.conf.eth0.rp_filter = 2" in changed
    assert "+-A PREROUTING -j ACCEPT" in changed


def test_a_crash_leaves_nothing_after_the_next_start() -> None:
    with crashed(CRASH) as (tag, folder, nginx):
        assert any(name.startswith(f"{tag}-") for name in claim.namespaces())
        assert alive(int(nginx))
    with Net(servers=1, web=False):
        pass
    assert not any(name.startswith(f"{tag}-") for name in claim.namespaces())
    assert not alive(int(nginx))
    left = [Path(folder), Path("/dev/shm", f"nfqlb-{tag}"), claim.CLAIMS / tag]
    assert [path for path in left if path.exists()] == []
