"""Which service a packet belongs to: its mark, its very port, the range that its port lies in, or all ports."""

from __future__ import annotations

import random

import pytest

from nfqlb._core.snapshot import Service, Snapshot
from nfqlb.testing import FORWARD, INPUT, PREROUTING, endpoint, tcp, udp
from tests.core.lab import CLIENT, Lab, Virtual

VIP, OTHER_VIP = "203.0.113.1", "203.0.113.2"
EXACT, RANGE, WHOLE, MARKED = (f"10.0.0.{number}" for number in range(1, 5))
SERVICES = (
    Virtual(f"{VIP}:80", {f"{EXACT}:8080": 1}),
    Virtual(f"{VIP}:70", {f"{RANGE}:0": 1}, last=90),
    Virtual(f"{VIP}:200", {f"{RANGE}:7": 1}, last=300),
    Virtual(f"{VIP}:0", {f"{WHOLE}:0": 1}),
    Virtual("0.0.0.0:0", {f"{MARKED}:0": 1}, mark=7),
    Virtual("[::]:0", {"[fd00::1]:0": 1}, mark=7),
    Virtual("0.0.0.0:0", {f"{MARKED}:99": 1}, mark=8),
)


@pytest.fixture
def lab() -> Lab:
    return Lab(*SERVICES)


@pytest.mark.parametrize(
    ("vip", "mark", "real"),
    [
        (f"{VIP}:80", 0, f"{EXACT}:8080"),
        (f"{VIP}:70", 0, f"{RANGE}:70"),
        (f"{VIP}:90", 0, f"{RANGE}:90"),
        (f"{VIP}:91", 0, f"{WHOLE}:91"),
        (f"{VIP}:69", 0, f"{WHOLE}:69"),
        (f"{VIP}:200", 0, f"{RANGE}:7"),
        (f"{VIP}:300", 0, f"{RANGE}:7"),
        (f"{VIP}:65535", 0, f"{WHOLE}:65535"),
        (f"{VIP}:80", 7, f"{MARKED}:80"),
        (f"{OTHER_VIP}:4711", 7, f"{MARKED}:4711"),
        (f"{OTHER_VIP}:4711", 8, f"{MARKED}:99"),
        (f"{VIP}:80", 9, f"{EXACT}:8080"),
    ],
)
def test_tcp_syn_goes_to_the_server_of_the_nearest_service(lab: Lab, vip: str, mark: int, real: str) -> None:
    assert lab.send(tcp(CLIENT, vip, "S"), mark=mark).packet == tcp(CLIENT, real, "S")
    assert lab.send(tcp(real, CLIENT, "SA"), hook=FORWARD).packet == tcp(vip, CLIENT, "SA")
    assert lab.send(tcp(CLIENT, vip, "A"), mark=mark).packet == tcp(CLIENT, real, "A")


@pytest.mark.parametrize(("vip", "mark"), [(f"{VIP}:53", 0), (f"{OTHER_VIP}:80", 0), (f"{OTHER_VIP}:80", 9)])
def test_a_datagram_of_another_protocol_vip_or_mark_passes(lab: Lab, vip: str, mark: int) -> None:
    assert lab.send(udp(CLIENT, vip), mark=mark).reason == "no_service"


def test_a_mark_takes_udp_and_ipv6_each_with_a_service_of_its_own(lab: Lab) -> None:
    assert lab.send(udp(CLIENT, f"{VIP}:53"), mark=7).packet == udp(CLIENT, f"{MARKED}:53")
    client, vip = "[2001:db8:1::10]:4000", "[2001:db8::1]:53"
    assert lab.send(udp(client, vip), mark=7).packet == udp(client, "[fd00::1]:53")
    assert lab.send(udp("[2001:db8:1::11]:4000", vip), mark=8).reason == "no_service"


@pytest.mark.parametrize("hook", [FORWARD, INPUT])
def test_a_mark_on_a_servers_own_packet_means_nothing(lab: Lab, hook: int) -> None:
    assert lab.send(tcp(f"{MARKED}:4000", CLIENT, "S"), hook=hook, mark=7).reason == "unrelated"


def test_one_flow_keeps_its_server_when_its_mark_is_gone(lab: Lab) -> None:
    """As with IPVS: the mark chooses the service of a new connection, and no more."""
    assert lab.send(udp(CLIENT, f"{OTHER_VIP}:53"), mark=7).packet == udp(CLIENT, f"{MARKED}:53")
    assert lab.send(udp(CLIENT, f"{OTHER_VIP}:53")).packet == udp(CLIENT, f"{MARKED}:53")


def test_a_random_port_belongs_to_the_range_that_holds_it() -> None:
    chance = random.Random(1)
    edges = sorted(chance.sample(range(1, 65536), 400))
    spans = list(zip(edges[::2], edges[1::2], strict=True))
    lab = Lab(*(Virtual(f"{VIP}:{a}", {f"{RANGE}:{at + 1}": 1}, last=b) for at, (a, b) in enumerate(spans)))
    for port in [*edges, *(chance.randrange(1, 65536) for _ in range(400))]:
        sent = lab.send(tcp(CLIENT, f"{VIP}:{port}", "S"))
        real = next((at + 1 for at, (a, b) in enumerate(spans) if a <= port <= b), None)
        if real is None:
            assert sent.reason == "no_service", port
        else:
            assert sent.packet == tcp(CLIENT, f"{RANGE}:{real}", "S"), port


@pytest.mark.parametrize(
    ("first", "second", "sentence"),
    [
        ({"last": 90}, {"port": 90, "last": 99}, "overlap"),
        ({"port": 0}, {"port": 0}, "every port"),
        ({"port": 0, "mark": 7}, {"port": 0, "mark": 7}, "the same mark"),
    ],
)
def test_services_that_want_the_same_packets_are_refused(
    first: dict[str, int], second: dict[str, int], sentence: str
) -> None:
    made = []
    for given in (first, second):
        named = {"last": given.get("last", 0), "mark": given.get("mark", 0)}
        address = endpoint(f"{VIP}:0").address
        made.append(Service(6, address, given.get("port", 80), "rr", [], **named))
    with pytest.raises(ValueError, match=sentence):
        Snapshot(made)


def test_what_was_sent_before_a_range_came_stays_where_it_is(lab: Lab) -> None:
    lab.send(tcp(CLIENT, f"{VIP}:1000", "S"))
    lab.configure(*SERVICES, Virtual(f"{VIP}:1000", {f"{EXACT}:0": 1}, last=1001))
    assert lab.send(tcp(CLIENT, f"{VIP}:1000", "A"), hook=PREROUTING).packet == tcp(CLIENT, f"{WHOLE}:1000", "A")
    assert lab.send(tcp(CLIENT, f"{VIP}:1001", "S")).packet == tcp(CLIENT, f"{EXACT}:1001", "S")
