"""What one director's table tells another's, and what the other makes of it."""

from __future__ import annotations

from random import Random

import pytest

from nfqlb._core.mirror import Mirror
from nfqlb._core.sync import Message, Record, decode, encode
from nfqlb.testing import FORWARD, FakeClock, endpoint, sctp, tcp, udp
from tests.core.lab import CLIENT, REAL, VIP, Lab, Virtual, clients, served

OTHER = "10.0.0.3:8080"
CLIENT6, VIP6, REAL6 = "[2001:db8:1::10]:40000", "[2001:db8::1]:80", "[fd00::2]:8080"
WEB = Virtual(VIP, {REAL: 1, OTHER: 1})
ROOM = 1472
ESTABLISHED, TIME_WAIT, CLOSE_WAIT = 1, 5, 7


class Side:
    """A director with its mirror."""

    def __init__(self, *virtuals: Virtual, clock: FakeClock | None = None, **rules: int) -> None:
        self.lab = Lab(*virtuals, clock=clock)
        self.lab.datapath.announce(**rules)
        self.mirror = Mirror(self.lab.datapath)

    def said(self, version: int = 1) -> list[Record]:
        """What is sent of what was announced since."""
        messages = self.mirror.collect(self.lab.clock(), version, 7, ROOM)
        return [record for message in messages for record in decode(message).records]

    def walked(self) -> list[Record]:
        messages = self.mirror.walk(self.lab.clock(), 1, 7, ROOM, 1 << 20)
        return [record for message in messages for record in decode(message).records]

    def hear(self, *records: Record, version: int = 1, whole: bool = False) -> None:
        for record in records:
            self.mirror.apply(encode(Message(version, 7, [record])), self.lab.clock(), 7, whole)

    def outcomes(self) -> dict[str, int]:
        names = "entered", "updated", "stale", "unbound", "refused", "full"
        return {name: self.mirror.statistics[name] for name in names if self.mirror.statistics[name]}


def packets(lab: Lab, count: int, client: str = CLIENT, vip: str = VIP) -> None:
    for _ in range(count):
        lab.send(tcp(client, vip, "A"))


def record(client: str = CLIENT, server: str = REAL, state: int = 1, timeout: int = 900, flags: int = 0) -> Record:
    return Record(6, *endpoint(client), *endpoint(VIP), *endpoint(server), flags, state, timeout=timeout)


def test_the_third_packet_and_every_fiftieth_after_it_are_told() -> None:
    """sync_threshold "3 50" (ip_vs_sync_conn_needed)."""
    side = Side(WEB)
    told = []
    side.lab.send(tcp(CLIENT, VIP, "S"))
    for number in range(2, 160):
        packets(side.lab, 1)
        told += [number] * len(side.said())
    assert told == [3, 53, 103, 153]


def test_what_is_told_is_what_the_kernel_would() -> None:
    side = Side(WEB)
    server = side.lab.open()
    packets(side.lab, 1)
    (one,) = side.said()
    assert one == record(server=server)


@pytest.mark.parametrize("mode", ["dr", "tun"])
def test_where_replies_pass_elsewhere_the_flags_say_so(mode: str) -> None:
    side = Side(Virtual(VIP, {"10.0.0.2:80": 1}, mode=mode))
    side.lab.send(tcp(CLIENT, VIP, "S"))
    packets(side.lab, 2)
    (one,) = side.said()
    assert one.flags == {"dr": 0x83, "tun": 0x82}[mode]


def test_each_state_of_an_ending_is_told_once() -> None:
    side = Side(WEB)
    server = side.lab.open()
    packets(side.lab, 1)
    side.said()
    said = []
    for sent in (lambda: side.lab.send(tcp(CLIENT, VIP, "FA")), lambda: side.lab.send(tcp(CLIENT, VIP, "A"))):
        sent()
        said += side.said()
    side.lab.send(tcp(server, CLIENT, "FA"), hook=FORWARD)
    packets(side.lab, 2)
    said += side.said()
    assert [(one.state, one.flags, one.timeout) for one in said] == [(CLOSE_WAIT, 0x100, 60), (TIME_WAIT, 0x100, 120)]


def test_floods_of_handshakes_and_single_datagrams_are_not_told() -> None:
    dns = Virtual("203.0.113.1:53", {"10.0.0.2:53": 1}, protocol="udp")
    side = Side(WEB, dns)
    for client in clients(50):
        side.lab.send(tcp(client, VIP, "S"))
        side.lab.send(udp(client, "203.0.113.1:53", b"?"))
    assert side.said() == side.walked() == []


def test_a_template_is_told_before_its_connections_have_their_third_packet() -> None:
    side = Side(WEB._replace(persistence=300))
    side.lab.open()
    said = side.said()
    assert {(one.flags, one.cport, one.timeout, one.state) for one in said} == {(0x1100, 0, 300, 1)}
    assert len(said) == 2, "as it began, and as it was assured"
    packets(side.lab, 1)
    assert [(one.flags, one.state) for one in side.said()] == [(0, 1)]


def test_with_a_refresh_period_a_connection_is_told_again_after_it_and_not_before() -> None:
    side = Side(WEB, period=0, refresh=60)
    side.lab.open()
    assert len(side.said()) == 1
    told = 0
    for _ in range(100):
        side.lab.clock.advance(1)
        packets(side.lab, 1)
        told += len(side.said())
    assert told == 1


def test_the_walk_finds_an_idle_connection_that_had_two_packets() -> None:
    side = Side(WEB)
    side.lab.open()
    assert side.said() == []
    assert [one.state for one in side.walked()] == [ESTABLISHED]
    assert side.walked() == []


def test_the_walk_tells_of_a_connection_before_peers_let_it_end() -> None:
    side = Side(WEB)
    side.lab.open()
    packets(side.lab, 1)
    assert len(side.said()) == 1
    side.lab.clock.advance(440)
    packets(side.lab, 1)
    assert side.said() + side.walked() == [], "they keep it for another 460 seconds"
    side.lab.clock.advance(100)
    assert [one.timeout for one in side.walked()] == [800], "they would end it in 360"
    assert side.walked() == []


def test_what_finds_no_place_in_the_ring_is_counted_and_found_by_the_walk() -> None:
    side = Side(threshold=2)
    side.lab = Lab(Virtual(VIP, {REAL: 1}), capacity=16384)
    side.lab.datapath.announce(2)
    side.mirror = Mirror(side.lab.datapath)
    for client in clients(9000):
        side.lab.send(tcp(client, VIP, "S"))
        side.lab.send(tcp(client, VIP, "A"))
    assert side.mirror.statistics["lost"] == 9000 - 8192
    found = []
    while records := side.said():
        found += records
    while records := side.walked():
        found += records
    assert len({one.cport for one in found}) == len(found) == 9000


def test_a_backup_goes_on_with_a_connection_in_mid_stream() -> None:
    clock = FakeClock()
    one, other = Side(WEB, clock=clock), Side(WEB, clock=clock)
    servers = {client: one.lab.open(client) for client in clients(40)}
    other.hear(*one.walked())
    assert other.outcomes() == {"entered": 40}
    assert [other.lab.load(real) for real in (REAL, OTHER)] == [(20, 0), (20, 0)]
    for client, server in servers.items():
        sent = other.lab.send(tcp(client, VIP, "A"))
        assert sent.reason == "forwarded"
        assert sent.packet is not None
        assert sent.packet[19] == int(server.split(".")[3].split(":")[0])
        assert other.lab.send(tcp(server, client, "A"), hook=FORWARD).reason == "returned"
    assert one.walked() == [], "what came back was known"


@pytest.mark.parametrize("mode", ["nat", "dr", "tun"])
def test_every_mode_goes_on(mode: str) -> None:
    web = Virtual(VIP, {"10.0.0.2:80": 1}, mode=mode)
    one, other = Side(web), Side(web)
    one.lab.send(tcp(CLIENT, VIP, "S"))
    packets(one.lab, 2)
    other.hear(*one.said())
    assert other.lab.send(tcp(CLIENT, VIP, "A")).reason == one.lab.send(tcp(CLIENT, VIP, "A")).reason
    assert other.lab.load("10.0.0.2:80") == (1, 0)


def test_associations_are_told_in_the_states_in_which_the_kernel_tells_them_and_go_on() -> None:
    """SCTP: at the third packet, then each state of the shutdown (ip_vs_sync_conn_needed)."""
    virtual = Virtual(VIP, {REAL: 1}, protocol="sctp")
    one, other = Side(virtual), Side(virtual)
    told = []
    for client, chunk in (
        (True, "INIT"),
        (False, "INIT ACK"),
        (True, "COOKIE ECHO"),
        (False, "COOKIE ACK"),
        (True, "DATA"),
        (True, "SHUTDOWN"),
        (False, "SHUTDOWN ACK"),
        (True, "SHUTDOWN COMPLETE"),
    ):
        if client:
            one.lab.send(sctp(CLIENT, VIP, (chunk,)))
        else:
            one.lab.send(sctp(REAL, CLIENT, (chunk,)), hook=FORWARD)
        said = one.said()
        told += [(chunk, record.state, record.flags, record.timeout) for record in said]
        other.hear(*said)
        if chunk == "DATA":
            assert other.lab.load(REAL, protocol="sctp") == (1, 0)
            assert other.lab.send(sctp(CLIENT, VIP, ("DATA",))).reason == "forwarded"
    assert told == [
        ("DATA", 8, 0, 900),
        ("SHUTDOWN", 10, 0x100, 61),
        ("SHUTDOWN ACK", 11, 0x100, 61),
        ("SHUTDOWN COMPLETE", 13, 0x100, 61),
    ]
    assert other.lab.load(REAL, protocol="sctp") == (0, 1)
    other.hear(Record(132, *endpoint(CLIENT), *endpoint(VIP), *endpoint(REAL), 0, 14, timeout=900))
    assert other.outcomes()["refused"] == 1, "there is no such state"


def test_the_walk_finds_an_association_that_had_two_packets() -> None:
    side = Side(Virtual(VIP, {REAL: 1}, protocol="sctp"))
    for chunk, answer in (("INIT", "INIT ACK"), ("COOKIE ECHO", "COOKIE ACK")):
        side.lab.send(sctp(CLIENT, VIP, (chunk,)))
        side.lab.send(sctp(REAL, CLIENT, (answer,)), hook=FORWARD)
    assert [(one.protocol, one.state) for one in side.walked()] == [(132, 8)]


def call(name: bytes, server: str, engine: bytes = b"sip") -> Record:
    """A kernel's template of a call (ip_vs_pe_sip.c)."""
    client, vip = endpoint(CLIENT)[0], endpoint(PHONES)
    return Record(17, client, 0, *vip, *endpoint(server), 0x1100, 1, timeout=300, data=name, name=engine)


PHONES, DESKS = "203.0.113.1:5060", ("10.0.0.2:5060", "10.0.0.3:5060")


def test_a_kernels_calls_go_on() -> None:
    side = Side(Virtual(PHONES, dict.fromkeys(DESKS, 1), "rr", "udp", persistence=300, by_call=True))
    calls = {f"{at}@example.com".encode(): DESKS[at % 3 == 0] for at in range(12)}
    side.hear(*(call(name, server) for name, server in calls.items()))
    assert side.outcomes() == {"entered": 12}
    for at, (name, server) in enumerate(calls.items()):
        data = b"INVITE sip:b@example.com SIP/2.0\r\nCall-ID: " + name + b"\r\n"
        sent = side.lab.send(udp(CLIENT.replace("40000", str(41000 + at)), PHONES, data)).packet
        assert sent is not None
        assert f"10.0.0.{sent[19]}:5060" == server
    side.hear(*(call(name, server) for name, server in calls.items()))
    assert side.outcomes() == {"entered": 12, "updated": 12}
    side.hear(call(b"x", DESKS[0], b"rtsp"), call(b"", DESKS[0]))
    assert side.outcomes() == {"entered": 12, "updated": 12, "refused": 2}


def test_calls_without_their_server_or_service_wait_each_on_its_own() -> None:
    phones = Virtual(PHONES, dict.fromkeys(DESKS, 1), "rr", "udp", persistence=300, by_call=True)
    side = Side(phones._replace(by_call=False))
    side.hear(call(b"one", DESKS[0]), call(b"two", DESKS[1]))
    assert side.mirror.statistics["aside"] == 2
    side.lab.configure(phones)
    assert side.mirror.bind(side.lab.clock()) == 0
    assert sorted(one.template for one in side.lab.connections()) == [True, True]


def test_ip6_and_templates_go_on() -> None:
    web = Virtual(VIP6, {REAL6: 1, "[fd00::3]:8080": 1}, "rr", persistence=300)
    one, other = Side(web), Side(web)
    first = one.lab.send(tcp(CLIENT6, VIP6, "S")).packet
    packets(one.lab, 2, CLIENT6, VIP6)
    other.hear(*one.said())
    assert other.outcomes() == {"entered": 2, "updated": 1}, "the template was assured"
    more = other.lab.send(tcp(CLIENT6.replace("40000", "40001"), VIP6, "S")).packet
    assert first is not None
    assert more is not None
    assert first[24:40] == more[24:40], "the client keeps its server"


def test_ftp_and_every_other_port_of_a_vip_go_on_beside_each_other() -> None:
    every = Virtual("203.0.113.1:0", {"10.0.0.1:0": 1, "10.0.0.2:0": 1}, persistence=60)
    ftp = Virtual("203.0.113.1:21", {"10.0.0.1:21": 1, "10.0.0.2:21": 1}, persistence=60)
    side, backup = Side(every, ftp), Side(every, ftp)
    ends = [(f"192.0.2.{host}", port) for host in (1, 2) for port in (80, 21)]
    real = {end: side.lab.open(f"{end[0]}:1000", f"203.0.113.1:{end[1]}") for end in ends}
    backup.hear(*side.said())
    assert backup.outcomes() == {"entered": 4, "updated": 4}, "as each began, and as it was assured"
    assert {end: backup.lab.open(f"{end[0]}:2000", f"203.0.113.1:{end[1]}") for end in reversed(ends)} == real


def test_services_by_mark_go_on() -> None:
    for vip, client, real in ((VIP, CLIENT, REAL), (VIP6, CLIENT6, REAL6)):
        any_ = "[::]:0" if ":" in vip[:3] or vip[0] == "[" else "0.0.0.0:0"
        web = Virtual(any_, {real: 1}, mark=9, persistence=60)
        one, other = Side(web), Side(web)
        for flags in ("S", "A", "A"):
            one.lab.send(tcp(client, vip, flags), mark=9)
        said = one.said()
        assert {(record.mark, record.flags) for record in said} == {(9, 0), (9, 0x1100)}
        other.hear(*said)
        assert other.outcomes() == {"entered": 2, "updated": 1}, "the template was assured"
        assert other.lab.send(tcp(client, vip, "A"), mark=9).reason == "forwarded"


def test_a_record_of_an_unknown_server_waits_for_it_and_goes_nowhere_else() -> None:
    side = Side(Virtual(VIP, {OTHER: 1}))
    side.hear(record())
    assert side.outcomes() == {"unbound": 1}
    assert side.lab.connections() == []
    assert side.lab.send(tcp(CLIENT, VIP, "A")).reason == "no_connection"
    side.lab.clock.advance(100)
    side.lab.configure(WEB)
    assert side.mirror.bind(side.lab.clock()) == 0
    assert side.lab.state() == ("ESTABLISHED", 800)
    assert side.lab.load(REAL) == (1, 0)


def test_a_record_that_waits_too_long_is_forgotten() -> None:
    side = Side()
    side.hear(record(timeout=60))
    side.lab.clock.advance(61)
    side.lab.configure(WEB)
    assert side.mirror.bind(side.lab.clock()) == 0
    assert side.lab.connections() == []


def test_another_server_replaces_the_first_unless_the_record_is_of_an_end() -> None:
    """(ip_vs_proc_conn)"""
    side = Side(WEB)
    side.hear(record(server=REAL), record(server=OTHER))
    assert [side.lab.load(real) for real in (REAL, OTHER)] == [(0, 0), (1, 0)]
    side.hear(record(server=REAL, state=TIME_WAIT, timeout=120, flags=0x100))
    assert side.outcomes() == {"entered": 2, "stale": 1}
    assert side.lab.state() == ("ESTABLISHED", 900)


def test_an_end_is_counted_as_one() -> None:
    side = Side(WEB)
    side.hear(record(), record(state=TIME_WAIT, timeout=120, flags=0x100))
    assert side.outcomes() == {"entered": 1, "updated": 1}
    assert side.lab.state() == ("TIME_WAIT", 120)
    assert side.lab.load(REAL) == (0, 1)


def test_a_connection_that_comes_in_does_not_hide_that_others_left_a_server_below_its_threshold() -> None:
    side = Side(Virtual(VIP, {OTHER: 1, REAL: (9, 4, 3)}, "fo"))
    ends = list(clients(4))
    assert served(side.lab, ends) == [REAL] * 4
    for end in ends[:2]:
        side.lab.send(tcp(end, VIP, "R"))
    side.lab.workers[0].expire(side.lab.clock.advance(11))
    side.hear(record("192.0.2.77:1024"))
    assert side.lab.load(REAL) == (3, 0)
    assert served(side.lab, ["192.0.2.77:1025", "192.0.2.77:1026"]) == [REAL, OTHER]


def test_without_a_timeout_the_state_says_it() -> None:
    """Version 0: 180 seconds for templates (IP_VS_SYNC_CONN_TIMEOUT)."""
    side = Side(WEB._replace(persistence=300))
    side.hear(record(timeout=0, state=TIME_WAIT, flags=0x100), version=0)
    template = Record(6, endpoint(CLIENT).address, 0, *endpoint(VIP), *endpoint(REAL), 0x1100, 0)
    side.hear(template, version=0)
    assert sorted((one.template, one.left) for one in side.lab.connections()) == [(False, 120), (True, 180)]


def test_part_of_a_whole_table_does_not_change_what_is_known() -> None:
    side = Side(WEB)
    server = side.lab.open()
    there = OTHER if server == REAL else REAL
    side.hear(record(server=there), record(server=server, state=TIME_WAIT, flags=0x100), whole=True)
    assert side.lab.state() == ("ESTABLISHED", 900)
    assert side.lab.load(server) == (1, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        record()._replace(protocol=47),
        record(state=11),
        record(flags=0x2000),
        record(flags=0x800 | 0x1000),
        record()._replace(name=b"sip", data=b"call"),
        record(flags=0x200)._replace(sequence=(1, 5, 0, 0, 0, 0)),
        Record(17, *endpoint(CLIENT), *endpoint(VIP), *endpoint(REAL), 0, 1, timeout=300),
        Record(6, *endpoint(CLIENT), *endpoint(VIP), *endpoint(REAL), 0x1100, 0, timeout=300),
    ],
    ids=["protocol", "state", "one packet", "no port", "engine", "changed payload", "udp state", "template's port"],
)
def test_what_makes_no_sense_here_is_refused(wrong: Record) -> None:
    side = Side(WEB)
    side.hear(wrong)
    assert side.outcomes() == {"refused": 1}
    assert side.lab.connections() == []


def test_another_sync_id_is_not_ours() -> None:
    side = Side(WEB)
    with pytest.raises(ValueError, match="sync id"):
        side.mirror.apply(encode(Message(1, 8, [record()])), side.lab.clock(), 7)
    assert side.mirror.apply(encode(Message(1, 8, [record()])), side.lab.clock(), 0) == 1


def test_a_whole_table_is_dumped_and_taken_in() -> None:
    one, other = Side(WEB), Side(WEB)
    ends = list(clients(500))
    for client in ends:
        one.lab.open(client)
    place, count = 1, 0
    while place:
        messages, place = one.mirror.dump(one.lab.clock(), 7, 9216, place, 100)
        count += sum(other.mirror.apply(message, other.lab.clock(), 7, whole=True) for message in messages)
    assert count == 500
    assert other.lab.load(REAL) == one.lab.load(REAL) == (250, 0)


def test_messages_in_any_order_damaged_or_twice_leave_a_sound_table_without_a_wrong_server() -> None:
    one, other = Side(WEB), Side(WEB)
    random = Random(8)
    servers = {endpoint(client): one.lab.open(client) for client in clients(200)}
    for client in clients(100):
        one.lab.send(tcp(client, VIP, "FA"))
    messages = one.mirror.collect(one.lab.clock(), 1, 7, 500) + one.mirror.walk(one.lab.clock(), 1, 7, 500, 1000)
    for _ in range(200):
        message = bytearray(random.choice(messages))
        if random.random() < 0.5:
            message[random.randrange(len(message))] ^= 1 << random.randrange(8)
        try:
            other.mirror.apply(bytes(message), other.lab.clock(), 7)
        except ValueError:
            continue
    reals = {endpoint(real) for real in (REAL, OTHER)}
    assert {(row.server, row.sport) for row in other.lab.connections()} <= reals
    for message in messages:
        other.mirror.apply(message, other.lab.clock(), 7)
    found = {(row.client, row.cport): (row.server, row.sport) for row in other.lab.connections()}
    assert all(found[client] == endpoint(server) for client, server in servers.items())
