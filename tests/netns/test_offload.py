"""Established flows that the kernel forwards by itself: bytes, counters, endings, changes, crashes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from netns import changes, kernelstate, load
from netns.host import until
from netns.topology import Net
from netns.wiring import endpoint, lan
from tests import sizes

ON = ["--offload", "auto"]
HELD = 3
SECONDS = 20.0  # that anything may take on a machine that does much else


@pytest.fixture(params=["nat", "dr", "tun"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def start(net: Net, *args: str, family: int = 4, port: int = 80, protocol: str = "tcp") -> None:
    service = f"{net.service(port, family)}/{protocol}"
    net.director.nfqlb("--mode", net.mode, "--vip", service, *net.reals(port=port, family=family), *ON, *args)
    state = net.director.show("daemon")["offload"]["state"]
    assert state == "on", state


def offload(net: Net) -> dict[str, int]:
    net.director.show("stats")  # counts
    found: dict[str, int] = net.director.show("daemon")["offload"]
    return found


def flows(net: Net, count: int) -> None:
    """Wait for so many flows of the offload."""
    until(lambda: offload(net)["flows"] == count, SECONDS, lambda: f"{offload(net)}, not {count} flows")


def all_flow(net: Net, held: load.Held) -> None:
    """Have the kernel forward all of them: one whose packet found the queue busy goes down with a later one."""
    until(
        lambda: held.alive() == HELD and offload(net)["flows"] == HELD, SECONDS, lambda: f"{offload(net)}: not all flow"
    )


def active(net: Net) -> tuple[int, int]:
    found: Any = net.director.show("services")["services"][0]
    return found["active"], found["inactive"]


@pytest.mark.parametrize("family", [4, 6])
def test_streams_are_forwarded_by_the_kernel_unharmed(make_net: Callable[..., Net], mode: str, family: int) -> None:
    net = make_net(servers=1, mode=mode)
    start(net, family=family)
    sent = net.storage.fill("whole", 8 * sizes.MIB)
    load.upload(net.client, net.storage.files / "whole", net.url("/incoming/whole", family), timeout=20)
    assert net.storage.sha256("incoming/whole") == sent
    assert load.download(net.client, net.url("/incoming/whole", family), timeout=20) == sent
    found, stats = offload(net), net.director.show("stats")
    assert found["installed"] == 2
    assert found["packets"] + stats["packets"] == sum(net.director.show("reasons")["reasons"].values())
    assert found["packets"] > stats["packets"], "most of a stream is the kernel's, however late its flow was installed"
    assert stats["services"][0]["inbytes"] > 8 * sizes.MIB
    ended = "TIME_WAIT" if mode == "nat" else "FIN_WAIT"
    assert {one["state"] for one in net.director.show("connections")["connections"]} == {ended}
    flows(net, 0)


@pytest.mark.parametrize("family", [4, 6])
def test_of_a_short_connection_of_nat_two_packets_come_up(net: Net, family: int) -> None:
    start(net, family=family)
    for _ in range(10):
        net.client.run(["curl", "-sSf", "-o", "/dev/null", net.url(family=family)])
    came = {queue["class"]: queue["packets"] for queue in net.director.show("daemon")["queues"]}
    assert came == {"syn": 10, "gso": 10, "plain": 0, "head": 0}, "SYN and SYN-ACK"
    assert {one["state"] for one in net.director.show("connections")["connections"]} == {"TIME_WAIT"}
    flows(net, 0)


def test_a_handshake_that_ends_in_the_kernel_is_followed(make_net: Callable[..., Net]) -> None:
    net = make_net(servers=1, web=False, echo=True)
    start(net, port=7)
    held = load.Held(net.client, net.vip(), HELD)

    def states() -> list[str]:
        return [one["state"] for one in net.director.show("connections")["connections"]]

    until(lambda: states() == ["ESTABLISHED"] * HELD, SECONDS, lambda: f"{states()}")
    assert held.alive() == HELD


@pytest.mark.parametrize("checksums", ["sender", "device"])
def test_datagrams_are_forwarded_by_the_kernel_unharmed(
    make_net: Callable[..., Net], mode: str, checksums: str
) -> None:
    """Lone ones and super-packets, with a checksum that the sender made or left to the device."""
    net = make_net(servers=1, mode=mode, web=False, echo=True)
    net.offload(checksums == "device")
    start(net, port=7, protocol="udp")

    def forwarded() -> bool:
        assert load.gso(net.client, net.vip(), 48, 500) == (48, 48)
        return offload(net)["packets"] > 0

    until(forwarded, SECONDS, lambda: f"{offload(net)}: the kernel forwards none")


def test_connections_end_in_time(make_net: Callable[..., Net]) -> None:
    net = make_net(servers=1, web=False, echo=True)
    start(net, port=7)
    held = load.Held(net.client, net.vip(), HELD)
    assert held.alive() == HELD
    all_flow(net, held)
    assert active(net) == (HELD, 0)
    held.process.end()
    until(lambda: active(net) == (0, HELD), SECONDS, lambda: f"{active(net)} connections after all were closed")
    flows(net, 0)


def test_flows_end_with_their_server_and_with_their_services_leave(make_net: Callable[..., Net]) -> None:
    net = make_net(servers=1, web=False, echo=True)
    start(net, port=7)
    held = load.Held(net.client, net.vip(), HELD)
    assert held.alive() == HELD
    all_flow(net, held)
    service, server = f"{net.service(7)}/tcp", endpoint(net.servers[0].v4, 7)
    net.director.cli("service", "edit", service, "--no-offload")
    flows(net, 0)
    assert held.alive() == HELD
    assert offload(net)["flows"] == 0
    net.director.cli("service", "edit", service, "--offload")
    assert held.alive() == HELD
    all_flow(net, held)
    net.director.cli("real", "delete", service, server)
    flows(net, 0)
    before = net.director.show("reasons")["reasons"]["server_gone"]
    held.process.tell("nobody")
    until(
        lambda: net.director.show("reasons")["reasons"]["server_gone"] > before, SECONDS, lambda: "nothing is dropped"
    )


def test_flows_go_on_without_a_director_and_with_the_next(make_net: Callable[..., Net]) -> None:
    """And what others have in tc's hook stays, and nothing else does."""
    net = make_net(servers=1, web=False, echo=True)
    filters = ["dev", net.uplink, "ingress"]
    net.director.run(["tc", "qdisc", "add", "dev", net.uplink, "clsact"])
    net.director.run(["tc", "filter", "add", *filters, "pref", "7", "bpf", "bytecode", "1,6 0 0 0"])
    others = net.director.run(["tc", "filter", "show", *filters]).stdout
    found = net.director.state()
    args = ["--vip", net.service(7), *net.reals(port=7), *ON]
    net.director.nfqlb(*args)
    held = load.Held(net.client, net.vip(), HELD)
    assert held.alive() == HELD
    all_flow(net, held)
    net.director.kill_both()
    assert held.alive() == HELD
    net.director.nfqlb(*args)
    assert held.alive() == HELD
    all_flow(net, held)
    assert net.director.run(["tc", "filter", "show", *filters]).stdout != others
    assert net.director.stop() == 0
    assert net.director.run(["tc", "filter", "show", *filters]).stdout == others
    assert kernelstate.difference(found, net.director.state()) == ""


def test_nothing_is_lost_while_the_offload_goes_on_and_off(make_net: Callable[..., Net]) -> None:
    net = make_net(servers=3, web=False)
    done = changes.run(
        net, *ON, changes=sizes.SWITCHES, rate=sizes.RATE, within=sizes.SWITCHING, step=changes.switch_offload
    )
    assert done.sent >= sizes.RATE
    assert (done.lost_there, done.lost_back) == (0, 0)


def test_an_interface_that_does_not_take_it_costs_only_itself(net: Net) -> None:
    """Its filters are a block that it shares. And one that lost its address while no director ran keeps no program."""
    for device, address in (("shared", "198.51.100.1/28"), ("aside", "198.51.100.17/28")):
        net.director.run(["ip", "link", "add", device, "type", "veth", "peer", "name", f"{device}0"])
        net.director.run(["ip", "addr", "add", address, "dev", device])
        net.director.run(["ip", "link", "set", device, "up"])
    net.director.run(["tc", "qdisc", "add", "dev", "shared", "ingress_block", "7", "ingress"])

    def filters(device: str) -> str:
        return net.director.run(["tc", "filter", "show", "dev", device, "ingress"]).stdout

    start(net)
    assert net.director.process is not None
    net.director.process.says("nfqlb: warning: no offload of what comes in by shared: tc on interface")
    assert "nfqlb-offload" in filters("aside")
    net.director.kill_both()
    net.director.run(["ip", "addr", "flush", "dev", "aside"])
    start(net)
    assert filters("aside") == ""
    net.client.run(["curl", "-sSf", "-o", "/dev/null", net.url()])
    assert offload(net)["packets"] > 0


def test_ipsec_policies_see_every_packet(make_net: Callable[..., Net]) -> None:
    net = make_net(servers=1, web=False, echo=True)
    start(net, port=7, protocol="udp")
    policy = f"src 0.0.0.0/0 dst {net.servers[0].v4}/32 dir fwd"

    def state(wanted: str) -> None:
        until(lambda: wanted in net.director.show("daemon")["offload"]["state"], SECONDS, lambda: f"not {wanted}")

    def answers(count: int) -> int:
        return sum(map(bool, load.udp(net.client, net.vip(), count, 100, source=4000)))

    until(lambda: answers(8) == 8 and offload(net)["packets"] > 0, SECONDS, lambda: str(offload(net)))
    passed = offload(net)["packets"]
    net.director.ip(f"xfrm policy add {policy} action block")
    state("IPsec")
    assert answers(2) == 0, "the kernel forwards past a policy that blocks"
    net.director.ip(f"xfrm policy delete {policy}")
    state("on")
    assert answers(8) == 8
    assert offload(net)["packets"] > passed
    net.director.ip("xfrm policy setdefault fwd block")
    state("IPsec")
    assert answers(2) == 0, "the kernel forwards past a default that blocks"


def test_ipsec_policies_do_not_wait_for_rules_that_cannot_be_mended(make_net: Callable[..., Net]) -> None:
    net = make_net(servers=1, web=False, echo=True)
    net.director.ip("link add gone type veth peer name gone-too")
    start(net, "--vip-dev", "gone", port=7, protocol="udp")
    net.director.ip("link delete gone")

    def warns() -> bool:
        return any("gone" in warning for warning in net.director.show("daemon")["warnings"])

    until(warns, SECONDS, lambda: "nobody misses the device")
    net.director.ip(f"xfrm policy add src 0.0.0.0/0 dst {net.servers[0].v4}/32 dir fwd action block")
    until(lambda: "IPsec" in str(net.director.show("daemon")["offload"]["state"]), SECONDS, lambda: "it goes on")
    assert warns()


@pytest.mark.parametrize("mode", ["nat", "tun"])
def test_long_datagrams_pass(make_net: Callable[..., Net], mode: str) -> None:
    """Of links with a large MTU; the kernel adds no outer header to a single packet of more than some 16 KiB."""
    net = make_net(servers=1, mode=mode, web=False, echo=True)
    for host in net.hosts:
        for device in host.run(["ls", "/sys/class/net"]).stdout.split():
            if "veth" in host.run(["ip", "-d", "link", "show", device]).stdout:
                host.ip(f"link set {device} mtu 65000")
    start(net, port=7, protocol="udp")
    for size in (8000, 20000):
        answers = load.udp(net.client, net.vip(), 8, size, source=4000 + size)
        assert all(answers), f"{size} bytes: {[bool(one) for one in answers]}"
    assert offload(net)["packets"] > 0


def test_a_server_that_moves_without_a_word_is_found_again(make_net: Callable[..., Net]) -> None:
    """Packets that begin at the other end of a veth do not show the kernel that their neighbour is in use."""
    net = make_net(servers=1, web=False, echo=True)
    net.director.sysctl(
        *(f"net.ipv4.neigh.eth0.{name}" for name in ("base_reachable_time_ms=3000", "delay_first_probe_time=1"))
    )
    start(net, port=7, protocol="udp")

    def answers(count: int) -> int:
        return sum(map(bool, load.udp(net.client, net.vip(), count, 100, source=4000)))

    until(lambda: answers(8) == 8 and offload(net)["packets"] > 0, SECONDS, lambda: str(offload(net)))
    passed, server = offload(net)["packets"], net.servers[0]

    def neighbour() -> str:
        return net.director.run(["ip", "neigh", "show", server.v4]).stdout

    until(lambda: "STALE" in neighbour(), SECONDS, neighbour)
    server.sysctl("net.ipv4.conf.eth0.arp_notify=0")
    server.ip("link set eth0 address 02:00:00:00:00:77")
    until(lambda: answers(1) == 1, SECONDS, neighbour)
    assert answers(8) == 8
    assert offload(net)["packets"] > passed


@pytest.mark.parametrize(("mode", "watched"), [("nat", "queue"), ("dr", "tc"), ("tun", "nft")])
def test_packets_begin_at_the_other_end_of_a_veth_unless_somebody_sees_them_leave(
    make_net: Callable[..., Net], mode: str, watched: str
) -> None:
    net = make_net(servers=1, mode=mode)
    start(net)
    sent = net.storage.fill("whole", sizes.MIB)
    somebody, nobody = {
        "queue": ("tc qdisc add dev eth0 root pfifo", "tc qdisc del dev eth0 root"),
        "tc": ("tc filter add dev eth0 egress bpf bytecode '1,6 0 0 0,'", "tc filter del dev eth0 egress"),
        "nft": (
            "nft 'table netdev others { chain out { type filter hook egress device eth0 priority 0; }; }'",
            "nft delete table netdev others",
        ),
    }[watched]

    def left() -> int:
        """Packets that left the director by its queue during an upload."""
        before = int(net.director.run(["cat", "/sys/class/net/eth0/statistics/tx_packets"]).stdout)
        load.upload(net.client, net.storage.files / "whole", net.url("/incoming/whole"), timeout=20)
        assert net.storage.sha256("incoming/whole") == sent
        return int(net.director.run(["cat", "/sys/class/net/eth0/statistics/tx_packets"]).stdout) - before

    until(lambda: left() < 15, SECONDS, lambda: f"{left()} packets left by the queue, which nobody watches")
    net.director.run(["sh", "-c", somebody])
    until(lambda: left() > 15, SECONDS, lambda: "no packet leaves where somebody would see it")
    net.director.run(["sh", "-c", nobody])
    until(lambda: left() < 15, SECONDS, lambda: f"{left()} packets left by the queue, which nobody watches any more")


@pytest.mark.parametrize("family", [4, 6])
def test_next_hops_are_those_of_packets_that_come_up(make_net: Callable[..., Net], family: int) -> None:
    """The way back to clients is there for one port of the real server's alone."""
    net = make_net(servers=1)
    start(net, family=family)
    ip, clients = ["ip", f"-{family}"], lan(1).prefixes.of(family)
    net.director.run([*ip, "route", "add", "default", "via", net.outside.at(254).of(family), "table", "77"])
    net.director.run([*ip, "rule", "add", "ipproto", "tcp", "sport", "80", "lookup", "77"])
    net.director.run([*ip, "route", "add", "blackhole", clients])
    sent = net.storage.fill("whole", sizes.MIB)
    assert load.download(net.client, net.url("/whole", family), timeout=20) == sent
    assert offload(net)["packets"] > net.director.show("stats")["packets"]


def test_a_route_that_becomes_narrow_is_heard_by_clients(make_net: Callable[..., Net]) -> None:
    net = make_net(servers=1)
    start(net)
    net.storage.fill("whole", sizes.MIB)

    def known() -> bool:
        load.upload(net.client, net.storage.files / "whole", net.url("/incoming/whole"), timeout=20)
        return "mtu 1300" in net.client.run(["ip", "route", "get", net.vip()]).stdout

    assert not known()
    net.director.ip(f"route add {net.servers[0].v4}/32 dev eth0 mtu 1300")
    until(known, SECONDS, lambda: "the client still sends long packets")
