"""The same traffic under the firewalls that directors really have; the servers' own connections keep working.

What leaves the director meanwhile is accounted for: nothing of others' conntrack or NAT gets at it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from netns import load
from netns.topology import Net
from tests import sizes
from tests.netns.watch import Watch

INVALID = [
    "FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
    "FORWARD -m conntrack --ctstate INVALID -j DROP",
]
OUTGOING = "FORWARD -s {inside} -m conntrack --ctstate NEW -j ACCEPT"
MASQUERADE = "POSTROUTING -t nat -o {uplink} -j MASQUERADE"
FIREWALLS = {
    "none": [],
    "invalid-dropped": [f"-A {rule}" for rule in INVALID],
    "forward-policy-drop": ["-P FORWARD DROP"],
    "masquerade": [f"-A {MASQUERADE}"],
    "all-of-it": ["-P FORWARD DROP", *(f"-A {rule}" for rule in [*INVALID, OUTGOING, MASQUERADE])],
}


def set_up(net: Net, firewall: str) -> None:
    for program, inside in (("iptables", "10.2.0.0/24"), ("ip6tables", "2001:db8:2::/64")):
        for rule in FIREWALLS[firewall]:
            net.director.run([program, *rule.format(inside=inside, uplink=net.uplink).split()])


def take_down(net: Net, firewall: str) -> None:
    for program, inside in (("iptables", "10.2.0.0/24"), ("ip6tables", "2001:db8:2::/64")):
        for rule in FIREWALLS[firewall]:
            words = rule.replace("-A ", "-D ").replace("-P FORWARD DROP", "-P FORWARD ACCEPT")
            net.director.run([program, *words.format(inside=inside, uplink=net.uplink).split()])


def check(net: Net, watched: Watch) -> None:
    """Split, client's address, both directions in bulk, UDP; for IPv4 and IPv6."""
    whole = net.storage.fill("whole", sizes.MIB)
    for family in (4, 6):
        client = net.client.address(family)
        assert (
            sorted(load.whoami(net.client, net.url(family=family), 10)) == [("s1", client)] * 5 + [("s2", client)] * 5
        )
        assert load.download(net.client, net.url("/whole", family)) == whole
        load.upload(net.client, net.storage.files / "whole", net.url(f"/incoming/{family}", family))
        assert net.storage.sha256(f"incoming/{family}") == whole
        datagrams = load.udp(net.client, net.vip(family), 10, 500)
        assert sorted(datagrams, key=str) == [("s1", client)] * 5 + [("s2", client)] * 5
    watched.check()


def wait_until_opened(net: Net, firewall: str) -> None:
    """A firewall that came up behind our back is heard and opened at once, not at the next look."""
    deadline = time.monotonic() + 1.8
    opened = any(rule.startswith(("-A FORWARD", "-P FORWARD")) for rule in FIREWALLS[firewall])
    for program in ("iptables", "ip6tables") if opened else ():
        while "-A FORWARD -j nfqlb" not in net.director.run([program, "-S"]).stdout:
            assert time.monotonic() < deadline, f"{program}: FORWARD is still closed"


def start(net: Net, args: list[str]) -> None:
    for family in (4, 6):
        for port in ("80/tcp", "7/udp"):
            number = int(port.split("/")[0])
            vip = f"{net.service(number, family)}/{port.split('/')[1]}"
            rest = [*net.reals(port=number, family=family), "--scheduler", "rr"]
            if net.director.process is None:
                net.director.nfqlb("--mode", net.mode, "--vip", vip, *rest, *args)
            else:
                net.director.cli("service", "add", vip, "--mode", net.mode, *rest)


@pytest.mark.parametrize("firewall", FIREWALLS)
def test_nat_under_a_firewall_raised_before(
    make_net: Callable[..., Net], watch: Callable[[Net], Watch], diverter: list[str], firewall: str
) -> None:
    net = make_net(servers=2, echo=True)
    set_up(net, firewall)
    start(net, diverter)
    with watch(net) as watched:
        check(net, watched)


@pytest.mark.parametrize("firewall", ["masquerade", "all-of-it"])
def test_nat_under_a_firewall_raised_later(
    make_net: Callable[..., Net], watch: Callable[[Net], Watch], diverter: list[str], firewall: str
) -> None:
    net = make_net(servers=2, echo=True)
    start(net, diverter)
    set_up(net, firewall)
    wait_until_opened(net, firewall)
    with watch(net) as watched:
        check(net, watched)


FRAMING = [(mode, kind) for mode in ("dr", "tun") for kind in ("nft", "iptables")]


@pytest.fixture(scope="module", params=FRAMING, ids="-".join)
def framing(request: pytest.FixtureRequest, watch: Callable[[Net], Watch]) -> Iterator[tuple[Net, Watch]]:
    """A network whose director sends frames; the firewalls come and go while it runs."""
    mode, diverter = request.param
    with Net(servers=2, echo=True, mode=mode) as net:
        start(net, ["--diverter", diverter])
        with watch(net) as watched:
            yield net, watched


@pytest.mark.parametrize("firewall", [name for name, rules in FIREWALLS.items() if rules])
def test_frames_under_a_firewall(framing: tuple[Net, Watch], firewall: str) -> None:
    net, watched = framing
    set_up(net, firewall)
    check(net, watched)
    take_down(net, firewall)


@pytest.mark.parametrize(("firewall", "arms"), [("masquerade", 2), ("all-of-it", 1)])
def test_servers_own_connections_go_out_masqueraded(
    make_net: Callable[..., Net], watch: Callable[[Net], Watch], diverter: list[str], firewall: str, arms: int
) -> None:
    net = make_net(servers=2, arms=arms, echo=True)
    net.client.start_echo()
    set_up(net, firewall)
    start(net, diverter)
    for family in (4, 6):
        masquerades = {("c1", net.director.address(family)), ("c1", net.vip(family))}
        for server in net.servers:
            datagrams = load.udp(server, net.client.address(family), 3, 100)
            assert set(datagrams) <= masquerades
            held = load.Held(server, net.client.address(family), 3)
            assert len(held.opened) == 3
            assert {(name, seen) for name, seen in held.opened} <= masquerades
            assert held.alive() == 3
    with watch(net) as watched:
        check(net, watched)


def test_a_chain_of_others_that_still_drops_is_named_in_a_warning(make_net: Callable[..., Net]) -> None:
    net = make_net(servers=2)
    for line in (
        "add table inet castle",
        "add chain inet castle gate { type filter hook forward priority 10 ; policy drop ; }",
    ):
        net.director.run(["nft", *line.split()])
    process = net.director.nfqlb("--vip", net.service(), *net.reals())
    assert [line for line in process.text.splitlines() if "castle" in line], process.text
