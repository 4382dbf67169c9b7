"""Direct routing by marks: the director's kernel routes the packets, addressed to the VIP as they are, to real servers.

One network for all of it; the VIP is no address of the director, who gets its packets from the router.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator

import pytest

from netns import kernelstate, load
from netns.director import NFQLB
from netns.topology import Net
from netns.wiring import INSIDE, lan
from tests import sizes
from tests.netns.conftest import HOWS, How
from tests.netns.test_nat_crash import wait_for_successor
from tests.netns.test_nat_packets import attempt
from tests.netns.test_transfer import down_and_up

FAMILIES = (4, 6)
OPPOSITES = (HOWS[0], HOWS[-1])  # of engines and diverters
LAST = {4: 3, 6: 6}  # number of the last of three real servers
OPERATOR = """
table ip mine {
    chain before { type filter hook prerouting priority -200; meta mark set 0xabcd; }
    chain after {
        type filter hook postrouting priority 0;
        meta mark & 0xff000000 != 0 meta mark & 0xffffff == 0xabcd ip daddr 203.0.113.10 counter;
    }
}
"""


@pytest.fixture(scope="module")
def wide() -> Iterator[Net]:
    with Net(servers=3, echo=True, mode="dr", vip="routed") as net:
        yield net


@pytest.fixture
def net(wide: Net) -> Iterator[Net]:
    """As it was found again afterwards, a director stopped or killed."""
    found = wide.director.state()
    yield wide
    if wide.director.process and wide.director.process.running:
        assert wide.director.stop() == 0
    assert kernelstate.difference(found, wide.director.state()) == ""


def start(net: Net, *args: str, servers: int = 3, by: str = "route") -> None:
    """The web over TCP and the echo over UDP, of both families, with the first so many real servers."""
    services = {(family, port) for family in FAMILIES for port in ("80/tcp", "7/udp")}
    first, *rest = sorted(services)
    reals = {f: [w for s in net.servers[:servers] for w in ("--real", s.address(f))] for f in FAMILIES}
    options = ["--mode", "dr", "--scheduler", "rr"]
    net.director.nfqlb("--vip", service(net, *first), *reals[first[0]], *options, "--dr-by", by, *args)
    for family, port in rest:
        net.director.cli("service", "add", service(net, family, port), *reals[family], *options)


def service(net: Net, family: int, port: str) -> str:
    return f"{net.service(int(port.split('/')[0]), family)}/{port.split('/')[1]}"


def reasons(net: Net) -> dict[str, int]:
    found: dict[str, int] = net.director.show("reasons")["reasons"]
    return {name: count for name, count in found.items() if count}


def spread(net: Net, family: int, servers: str = "123") -> None:
    """Two connections for each of these servers, who see the client."""
    answers = load.whoami(net.client, net.url(family=family), 2 * len(servers))
    assert load.split(answers) == {f"s{number}": 2 for number in servers}
    assert {seen for _, seen in answers} == {net.client.address(family)}


def rules(net: Net, family: int = 4) -> dict[str, str]:
    """The real server that each mark leads to, as the kernel has it."""
    found = {}
    for mark, number in re.findall(
        r"fwmark (\w+)/0xff000000 lookup 110(\d+)", net.director.run(["ip", f"-{family}", "rule"]).stdout
    ):
        route = table(net, family, int(number))
        found[mark] = route.split()[2] if route else "nobody"
    return found


def table(net: Net, family: int, number: int) -> str:
    """The route to the real server of that number."""
    return net.director.run(["ip", f"-{family}", "route", "show", "table", str(110_000 + number)], check=False).stdout


def until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_packets_of_all_kinds_arrive(net: Net, how: How) -> None:
    start(net, *how.args, "--workers", "2")
    for family in FAMILIES:
        spread(net, family)
        for size in (1, 1473, 8000, 65_000):  # whole, in two fragments, six, and as many as there are
            answers = load.udp(net.client, net.vip(family), 3, size)
            assert all(answer and answer[1] == net.client.address(family) for answer in answers), size
        assert load.gso(net.client, net.vip(family), 64, 1200) == (64, 64)
    whole = net.storage.fill("whole", sizes.MIB)
    for family in FAMILIES:
        assert load.download(net.client, net.url("/whole", family)) == whole
        load.upload(net.client, net.storage.files / "whole", net.url(f"/incoming/{family}", family))
        assert net.storage.sha256(f"incoming/{family}") == whole
    assert set(reasons(net)) - {"no_connection"} == {"marked"}, "what others left behind may come, too"
    assert {queue["class"] for queue in net.director.show("daemon")["queues"] if queue["packets"]} == {"head", "syn"}


def test_download_and_upload_without_offload_have_equal_sha256(net: Net) -> None:
    net.offload(False)
    start(net)
    for family in FAMILIES:
        down_and_up(net, family)
    net.offload(True)


def test_tcp_goes_by_marks_and_udp_as_frames_unless_said_otherwise(net: Net) -> None:
    start(net, by="auto")
    spread(net, 4)
    assert set(reasons(net)) - {"no_connection"} == {"marked"}, "what others left behind may come, too"
    assert all(load.udp(net.client, net.vip(), 3, 100))
    assert set(reasons(net)) - {"no_connection"} == {"marked", "routed"}


def test_a_vip_that_becomes_local_gets_frames(net: Net, diverter: list[str]) -> None:
    start(net, *diverter)
    spread(net, 4)
    before = reasons(net)
    net.director.ip(f"address add {net.vip()}/32 dev lo")
    until(lambda: not rules(net))
    spread(net, 4)
    assert reasons(net)["marked"] == before["marked"]
    assert reasons(net)["routed"] > 0
    net.director.ip(f"address delete {net.vip()}/32 dev lo")
    until(lambda: len(rules(net)) == 3)

    def marked() -> bool:
        spread(net, 4)
        return reasons(net)["marked"] > before["marked"]

    until(marked)


def test_servers_come_and_go_while_packets_flow(net: Net) -> None:
    """A number that was a server's does not become another's."""
    start(net, servers=2)
    first, second, third = (server.v4 for server in net.servers)
    before = rules(net)
    assert set(before.values()) == {first, second}
    wrk = load.Wrk(net.client, net.url(), connections=20, seconds=3, keepalive=False)
    for port in ("80/tcp", "7/udp"):
        net.director.cli("real", "edit", service(net, 4, port), first, "--weight", "0")
    until(lambda: net.director.real(f"{first}:80")["active"] == 0)
    for port in ("80/tcp", "7/udp"):
        net.director.cli("real", "delete", service(net, 4, port), first)
        net.director.cli("real", "add", service(net, 4, port), third)
    until(lambda: set(rules(net).values()) == {second, third})
    after = rules(net)
    assert wrk.figures().errors == 0
    assert next(mark for mark, server in after.items() if server == third) not in before
    assert after.items() & before.items() == {(mark, server) for mark, server in before.items() if server == second}
    assert load.split([answer or ("nobody", "") for answer in load.udp(net.client, net.vip(), 4, 9)]) == {
        "s2": 2,
        "s3": 2,
    }


@pytest.mark.parametrize("how", OPPOSITES, ids="-".join)
def test_the_operators_own_bits_of_the_mark_survive(net: Net, how: How) -> None:
    net.director.run(["nft", "-f", "-"], stdin=OPERATOR)
    start(net, *how.args)
    spread(net, 4)
    listed = ["nft", "list", "chain", "ip", "mine", "after"]
    until(lambda: f"counter packets {reasons(net)['marked']} " in net.director.run(listed).stdout)
    net.director.run(["nft", "delete", "table", "ip", "mine"])


def test_under_a_firewall_that_drops_what_is_forwarded(make_net: Callable[..., Net], diverter: list[str]) -> None:
    net = make_net(servers=3, echo=True, mode="dr", vip="routed")
    net.director.sysctl("net.ipv4.conf.all.rp_filter=1", "net.ipv4.conf.eth0.rp_filter=1")
    for program in ("iptables", "ip6tables"):
        net.director.run([program, "-P", "FORWARD", "DROP"])
    start(net, *diverter)
    for family in FAMILIES:
        spread(net, family)
        assert all(load.udp(net.client, net.vip(family), 3, 3000))


@pytest.mark.parametrize(("family", "how"), [*zip(FAMILIES, OPPOSITES, strict=True)], ids=["4", "6"])
def test_a_smaller_mtu_on_either_side_is_heard_by_the_other(
    make_net: Callable[..., Net], family: int, how: How
) -> None:
    """Towards the server by the kernel: the table's route has the MTU of the route that is there."""
    net = make_net(servers=1, mode="dr", vip="routed")
    net.offload(False)
    net.director.nfqlb("--mode", "dr", "--vip", net.service(80, family), *net.reals(family=family), *how.args)
    whole = net.storage.fill("whole", sizes.MIB)
    net.router.narrow(lan(1).prefixes.of(family), "lan1", 1300)
    assert load.download(net.client, net.url("/whole", family), timeout=20) == whole
    assert reasons(net)["error_marked"] > 0
    net.director.narrow(INSIDE.prefixes.of(family), "eth0", 1290)
    until(lambda: "mtu 1290" in table(net, family, 1))
    load.upload(net.client, net.storage.files / "whole", net.url("/incoming/whole", family), timeout=20)
    assert net.storage.sha256("incoming/whole") == whole
    assert "mtu 1290" in net.client.run(["ip", "route", "get", net.vip(family)]).stdout
    assert "too_big" not in reasons(net)


def test_rules_and_routes_that_somebody_removes_come_back(net: Net) -> None:
    start(net)
    until(lambda: len(rules(net, 6)) == 3)
    made = {family: rules(net, family) for family in FAMILIES}
    for family in FAMILIES:
        net.director.run(["ip", f"-{family}", "rule", "delete", "pref", "900"])
        net.director.run(["ip", f"-{family}", "route", "delete", "default", "table", str(110_000 + LAST[family])])
    until(lambda: all(rules(net, family) == made[family] for family in FAMILIES))
    until(lambda: "were not routed to the real server" in net.director.process.text)  # type: ignore[union-attr]
    for family in FAMILIES:
        spread(net, family)


@pytest.mark.parametrize(("victim", "diverter"), [("director", "nft"), ("both", "iptables")])
def test_connections_and_their_marks_outlive_a_crash(net: Net, victim: str, diverter: str) -> None:
    start(net, "--diverter", diverter)
    net.director.cli("service", "add", net.service(7), "--mode", "dr", "--scheduler", "rr", *net.reals(port=7))
    held = load.Held(net.client, net.vip(), 20)
    made = rules(net)
    if victim == "director":
        wait_for_successor(net, net.director.kill_director())
    else:
        net.director.kill_both()
        net.director.nfqlb()
    assert held.alive() == 20
    assert rules(net) == made
    spread(net, 6)


def test_a_server_that_is_gone_is_told_to_the_client_by_the_kernel(make_net: Callable[..., Net]) -> None:
    net = make_net(servers=1, echo=True, mode="dr", vip="routed")
    start(net, servers=1)
    server = net.servers[0]
    spread(net, 4, "1")
    server.ip("link set eth0 down")

    def lost() -> bool:
        """Who gets packets is asked whether it is there."""
        attempt(net.client, "SOCK_STREAM", net.vip(), 80)
        return "no answer to ARP or ND" in net.director.process.text  # type: ignore[union-attr]

    until(lost)
    until(lambda: "EHOSTUNREACH" in attempt(net.client, "SOCK_STREAM", net.vip(), 80))
    assert "no_neighbour" not in reasons(net)
    server.ip("link set eth0 up", f"route replace default via {INSIDE.at(254).v4}")
    until(lambda: attempt(net.client, "SOCK_STREAM", net.vip(), 80) == "answered")
    spread(net, 4, "1")


@pytest.mark.parametrize("how", OPPOSITES, ids="-".join)
def test_the_directors_own_client_is_served(net: Net, how: How) -> None:
    start(net, *how.args)
    answers = load.whoami(net.director, net.url(), 6)
    assert load.split(answers) == {"s1": 2, "s2": 2, "s3": 2}
    assert {seen for _, seen in answers} == {net.director.v4}
    assert set(reasons(net)) - {"no_connection"} == {"marked"}, "what others left behind may come, too"


def test_two_directors_have_numbers_of_their_own(net: Net) -> None:
    start(net)
    made = rules(net)
    other = [NFQLB, "run", "--name", "other", "--mode", "dr", "--dr-by", "route"]
    process = net.director.spawn([*other, "--vip", net.service(7), *net.reals(port=7)])
    process.says("ready")
    assert len(rules(net)) == 6
    held = load.Held(net.client, net.vip(), 6)
    assert held.alive() == 6
    spread(net, 4)
    assert process.end() == 0
    assert rules(net) == made
