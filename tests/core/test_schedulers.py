"""What the recorded sequences leave out: thresholds, weights that come back, IPv6, memory that is let go, chance."""

from __future__ import annotations

import math
import socket
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from nfqlb._core.schedulers import SCHEDULERS
from nfqlb.testing import FORWARD, tcp, udp
from tests.core.lab import VIP, Lab, Virtual, clients, served

FIRST, SECOND, THIRD = "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"
DAY, MINUTE = 86400, 60
NANOSECONDS = 1_000_000_000


def web(scheduler: str, reals: dict[str, int | tuple[int, int, int]], *flags: str) -> Virtual:
    return Virtual(VIP, reals, scheduler, flags=flags)


def reset(lab: Lab, client: str) -> None:
    """The client ends its connection; it is gone ten seconds later."""
    lab.send(tcp(client, VIP, "R"))


# --- thresholds (ip_vs_bind_dest, ip_vs_unbind_dest) ------------------------------------------------------------------


@pytest.mark.parametrize(("upper", "lower", "back"), [(10, 0, 7), (4, 0, 2), (10, 5, 4), (1, 0, 0), (10, 10, 9)])
def test_a_server_at_its_upper_threshold_waits_until_it_is_below_the_lower(upper: int, lower: int, back: int) -> None:
    """Recorded from the kernel (10 0, 4 0, 10 5), or by its rule."""
    lab = Lab(web("fo", {FIRST: 1, SECOND: (9, upper, lower)}))
    ends = list(clients(upper + 1))
    assert served(lab, ends) == [SECOND] * upper + [FIRST]
    more = clients(100, first=50000)
    for ended, end in enumerate(ends[:upper], 1):
        reset(lab, end)
        lab.clock.advance(11)
        expected = SECOND if upper - ended <= back else FIRST
        assert lab.open(next(more)) == expected, ended
        if expected == SECOND:
            break


@pytest.mark.parametrize("scheduler", [name for name in SCHEDULERS if name not in ("dh", "sh", "mh", "lblc")])
def test_no_scheduler_chooses_an_overloaded_server(scheduler: str) -> None:
    lab = Lab(web(scheduler, {FIRST: 50, SECOND: (90, 1, 1)}))
    ends = list(clients(30))
    assert Counter(served(lab, ends))[SECOND] == 1


@pytest.mark.parametrize("scheduler", ["sh", "mh"])
def test_a_hash_fails_on_an_overloaded_server_or_falls_back(scheduler: str) -> None:
    reals = {FIRST: 1, SECOND: (1, 1, 1)}
    ends = list(clients(60))
    lab = Lab(web(scheduler, reals))
    sent = Counter(lab.send(tcp(end, VIP, "S")).reason for end in ends)
    assert sent["no_server"] > 10
    assert lab.load(SECOND) == (1, 0)
    lab = Lab(web(scheduler, reals, f"{scheduler}-fallback"))
    assert Counter(served(lab, ends)) == {SECOND: 1, FIRST: 59}


def test_a_raised_threshold_counts_at_once() -> None:
    """As does a lowered one when the next connection comes (__ip_vs_update_dest)."""
    lab = Lab(web("fo", {FIRST: 1, SECOND: (9, 2, 0)}))
    ends = clients(20)
    assert [lab.open(next(ends)) for _ in range(3)] == [SECOND, SECOND, FIRST]
    lab.configure(web("fo", {FIRST: 1, SECOND: (9, 3, 0)}))
    assert [lab.open(next(ends)) for _ in range(2)] == [SECOND, FIRST]
    lab.configure(web("fo", {FIRST: 2, SECOND: (9, 3, 0)}))
    assert lab.open(next(ends)) == FIRST, "it stays overloaded when something else changes"
    lab.configure(web("fo", {FIRST: 2, SECOND: 9}))
    assert lab.open(next(ends)) == SECOND


@pytest.mark.parametrize("chooses", [False, True])
@pytest.mark.parametrize("others", [1, 20])  # a walk, a ranking
def test_what_was_below_the_lower_threshold_is_overloaded_no_more_whatever_changes(others: int, chooses: bool) -> None:
    """Also where nobody looked: at weight 0, or before the thresholds changed. The kernel looks at each ending."""
    rest = {f"10.0.1.{at}:80": 1 for at in range(others)}
    lab = Lab(web("fo", {**rest, SECOND: (9, 4, 3)}))
    ends = list(clients(4))
    assert served(lab, ends) == [SECOND] * 4
    lab.configure(web("fo", {**rest, SECOND: (0, 4, 3)}))
    for end in ends[:2]:
        reset(lab, end)
    lab.workers[0].expire(lab.clock.advance(11))
    assert lab.load(SECOND) == (2, 0)
    if chooses:
        assert lab.open("192.0.2.77:1024") != SECOND
    lab.configure(web("fo", {**rest, SECOND: (9, 4, 1)}))
    assert lab.open("192.0.2.77:1025") == SECOND


@pytest.mark.parametrize("others", [1, 20])  # a walk, a ranking
def test_a_client_that_comes_back_does_not_hide_that_others_left(others: int) -> None:
    """A template and a remembered destination lead to an overloaded server, and nobody chooses it meanwhile."""
    rest = {f"10.0.1.{at}:80": 1 for at in range(others)}
    lab = Lab(web("fo", {**rest, SECOND: (9, 4, 3)})._replace(persistence=3000))
    ends = [f"192.0.2.{at}:1000" for at in range(1, 5)]
    assert served(lab, ends) == [SECOND] * 4
    for end in ends[:2]:
        reset(lab, end)
    lab.workers[0].expire(lab.clock.advance(11))
    assert lab.load(SECOND) == (2, 0)
    assert lab.open("192.0.2.1:2000") == SECOND, "by its template"
    assert lab.open("192.0.2.50:1000") == SECOND, "it was below the lower threshold"
    assert lab.open("192.0.2.51:1000") != SECOND


def test_a_destination_that_is_known_does_not_hide_it_either() -> None:
    """(ip_vs_lblc_schedule does not ask whether the server that it remembers is overloaded.)"""
    second = SECOND.replace("80", "0")
    lab = Lab(Virtual("0.0.0.0:0", {second: (1, 4, 3)}, "lblc", mark=1))
    for host in range(1, 5):
        lab.send(tcp(f"192.0.2.{host}:1", "198.51.100.1:80", "S"), mark=1)
    for host in (1, 2):
        lab.send(tcp(f"192.0.2.{host}:1", "198.51.100.1:80", "A"), mark=1)
        lab.send(tcp(f"192.0.2.{host}:1", "198.51.100.1:80", "R"), mark=1)
    lab.workers[0].expire(lab.clock.advance(11))
    assert lab.load(second, "0.0.0.0:0") == (2, 0)
    lab.send(tcp("192.0.2.9:1", "198.51.100.1:80", "S"), mark=1)
    assert lab.load(second, "0.0.0.0:0") == (3, 0)
    lab.send(tcp("192.0.2.10:1", "198.51.100.2:80", "S"), mark=1)
    assert lab.load(second, "0.0.0.0:0") == (4, 0)


@pytest.mark.parametrize("others", [1, 20])
def test_a_server_that_comes_back_to_its_connections_knows_that_they_are_too_many(others: int) -> None:
    """(The kernel keeps what it knows of a server in its trash: ip_vs_trash_get_dest.)"""
    rest = {f"10.0.1.{at}:80": 1 for at in range(others)}
    limited = web("fo", {**rest, SECOND: (9, 4, 2)})
    lab = Lab(limited)
    ends = clients(20)
    assert [lab.open(next(ends)) for _ in range(4)] == [SECOND] * 4
    lab.configure(web("fo", dict(rest)))
    lab.configure(limited)
    assert lab.open(next(ends)) != SECOND
    lab.configure(web("fo", dict(rest)))
    lab.configure(web("fo", {**rest, SECOND: (9, 5, 2)}))
    assert lab.open(next(ends)) == SECOND, "it may have more now"
    assert lab.open(next(ends)) != SECOND


def test_thresholds_count_after_a_crash(tmp_path: Path) -> None:
    limited = web("fo", {FIRST: 1, SECOND: (9, 4, 2)})
    with (tmp_path / "table").open("w+b") as file:
        lab = Lab(limited, fd=file.fileno())
        ends = list(clients(6))
        assert served(lab, ends[:5]) == [SECOND] * 4 + [FIRST]
        lab = Lab(limited, fd=file.fileno(), clock=lab.clock)
        assert (lab.load(SECOND), lab.open(ends[5])) == ((4, 0), FIRST)
        for end in ends[:3]:
            reset(lab, end)
        lab.workers[0].expire(lab.clock.advance(11))
        assert lab.open(ends[0]) == SECOND, "until it has fewer than the lower one"


# --- mh ---------------------------------------------------------------------------------------------------------------


def picks(lab: Lab, count: int = 1000) -> list[str]:
    """The server of each of many clients, "-" where there is none."""
    found = []
    for end in clients(count):
        packet = lab.send(tcp(end, VIP, "S")).packet
        found.append("-" if packet is None else f"10.0.0.{packet[19]}:80")
    return found


def test_draining_and_coming_back_moves_nobody_else() -> None:
    reals: dict[str, int | tuple[int, int, int]] = {FIRST: 1, SECOND: 1, THIRD: 1}
    before = picks(Lab(web("mh", reals), capacity=4096))
    lab = Lab(web("mh", reals), capacity=4096)
    lab.configure(web("mh", reals | {SECOND: 0}))
    drained = picks(lab)
    assert [new for old, new in zip(before, drained, strict=True) if old != SECOND] == [
        old for old in before if old != SECOND
    ]
    assert {new for old, new in zip(before, drained, strict=True) if old == SECOND} == {"-"}
    lab = Lab(web("mh", reals | {SECOND: 0}), capacity=4096)
    assert set(picks(lab)) == {FIRST, THIRD}, "one that came with weight 0 has no places"
    lab = Lab(web("mh", {FIRST: 1, THIRD: 1}), capacity=4096)
    moved = sum(old != new for old, new in zip(before, picks(lab), strict=True) if old != SECOND)
    assert moved <= 10, "Maglev: a removal moves hardly anybody else"


def siphash(key: int, word: int) -> int:
    """hsiphash_1u32() of a 64-bit kernel (lib/siphash.c), in Python."""
    names = (0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573)
    a, b, c, d = (key ^ name for name in names)

    def turned(value: int, bits: int) -> int:
        return (value << bits | value >> 64 - bits) & 2**64 - 1

    for added in (4 << 56 | word, None, None, None):
        if added is not None:
            d ^= added
        a = a + b & 2**64 - 1
        b, a = turned(b, 13) ^ a, turned(a, 32)
        c = c + d & 2**64 - 1
        d = turned(d, 16) ^ c
        a = a + d & 2**64 - 1
        d = turned(d, 21) ^ a
        c = c + b & 2**64 - 1
        b, c = turned(b, 17) ^ c, turned(c, 32)
        if added is not None:
            a, c = a ^ added, c ^ 0xFF
    return (a ^ b ^ c ^ d) & 2**32 - 1


def maglev(size: int, reals: Mapping[str, int], ends: Iterable[str]) -> list[str]:
    """The server of each client by a table of so many places, as the paper and the kernel have it, in Python."""
    first, second = 2654435761, 2654446892
    words = {}
    for real in reals:
        address, port = real.split(":")
        words[real] = int.from_bytes(socket.inet_aton(address)) + int(port)
    servers = list(reversed(reals))  # newest first
    at = {real: siphash(first, word) % size for real, word in words.items()}
    skip = {real: siphash(second, word) % (size - 1) + 1 for real, word in words.items()}
    shift = max(0, (max(reals.values()) // math.gcd(*reals.values())).bit_length() - size.bit_length() // 2)
    places: dict[int, str] = {}
    while True:
        for real in servers:
            for _ in range(reals[real] // math.gcd(*reals.values()) >> shift or 1):
                if len(places) == size:
                    hosts = (int.from_bytes(socket.inet_aton(end.split(":")[0])) for end in ends)
                    return [places[siphash(first, host) % size] for host in hosts]
                while at[real] in places:
                    at[real] = (at[real] + skip[real]) % size
                places[at[real]] = real


@pytest.mark.parametrize("size", [251, 4093, 16381])
@pytest.mark.parametrize("weights", [(1, 1, 1), (3, 2, 7), (2000, 1, 999)])
def test_a_table_of_any_size_is_that_of_the_paper(size: int, weights: tuple[int, ...]) -> None:
    reals = dict(zip((FIRST, SECOND, THIRD), weights, strict=True))
    lab = Lab(Virtual(VIP, reals, "mh", maglev_size=size), capacity=4096)
    ends = [f"198.51.{at >> 8}.{at & 255}:40000" for at in range(1, 500)]
    assert served(lab, ends) == maglev(size, reals, ends)


@pytest.mark.parametrize("weight", [1, 0])
def test_a_fallback_does_not_look_for_servers_where_none_takes_connections(weight: int) -> None:
    """Place by place, each SYN would cost 50 ms: the test's time runs out."""
    full = dict.fromkeys((FIRST, SECOND, THIRD), (1, 1, 1))
    mh = Virtual(VIP, full, "mh", flags=("mh-fallback",), maglev_size=655373)
    lab = Lab(mh, capacity=8192)
    assert Counter(picks(lab, 3)) == {FIRST: 1, SECOND: 1, THIRD: 1}
    if not weight:
        lab.configure(mh._replace(reals=dict.fromkeys(full, 0)))
    assert set(picks(lab, 9000)[3:]) == {"-"}


def test_a_larger_table_is_fairer_and_moves_fewer() -> None:
    reals = {f"10.0.0.{at}:80": 1 for at in range(1, 101)}
    left = {real: weight for real, weight in reals.items() if real != FIRST}
    ends = [f"198.51.{at >> 8}.{at & 255}:40000" for at in range(1, 8000)]
    moved = []
    for size in (251, 655373):
        before, after = (
            served(Lab(Virtual(VIP, some, "mh", maglev_size=size), capacity=1 << 14), ends) for some in (reals, left)
        )
        moved.append(sum(one not in (FIRST, other) for one, other in zip(before, after, strict=True)))
    assert moved[1] < moved[0] / 2


# --- hrw, and keys ----------------------------------------------------------------------------------------------------

MANY = [f"198.51.{at >> 8}.{at & 255}:40000" for at in range(1, 4000)]
TEN = {f"10.0.0.{at}:80": 1 + at % 3 for at in range(1, 11)}


def hashed(scheduler: str, reals: Mapping[str, int | tuple[int, int, int]], key: bytes = b"", *flags: str) -> list[str]:
    return served(Lab(Virtual(VIP, reals, scheduler, flags=flags, hash_key=key), capacity=8192), MANY)


@pytest.mark.parametrize("key", [b"", bytes(range(16))])
@pytest.mark.parametrize("equal", [True, False])
def test_rendezvous_shares_by_weight_and_who_leaves_or_comes_moves_nobody_else(equal: bool, key: bytes) -> None:
    reals = dict.fromkeys(TEN, 7) if equal else TEN
    before = hashed("hrw", reals, key)
    counts, total = Counter(before), sum(reals.values())
    for real, weight in reals.items():  # within five standard deviations
        share = weight / total
        assert abs(counts[real] - len(MANY) * share) < 5 * math.sqrt(len(MANY) * share * (1 - share)), real
    gone = next(iter(reals))
    for fewer in ({real: weight for real, weight in reals.items() if real != gone}, {**reals, gone: 0}):
        after = hashed("hrw", fewer, key)
        assert [new for old, new in zip(before, after, strict=True) if old != gone] == [
            old for old in before if old != gone
        ]
        assert gone not in after
    more = hashed("hrw", {**reals, gone: reals[gone] + 1}, key)
    assert {new for old, new in zip(before, more, strict=True) if old != new} == {gone}, (
        "who grows takes, and loses none"
    )
    assert before == hashed("hrw", dict(reversed(reals.items())), key), "whatever the order in which they came"


def test_rendezvous_gives_the_clients_of_a_full_server_to_their_next_best_ones() -> None:
    full = {**TEN, "10.0.0.1:80": (TEN["10.0.0.1:80"], 1, 1)}
    first = MANY[hashed("hrw", TEN).index("10.0.0.1:80")]
    lab = Lab(Virtual(VIP, full, "hrw"), capacity=8192)
    assert served(lab, [first]) == ["10.0.0.1:80"]
    rest = [end for end in MANY if end != first]
    without = Lab(
        Virtual(VIP, {real: weight for real, weight in TEN.items() if real != "10.0.0.1:80"}, "hrw"), capacity=8192
    )
    assert served(lab, rest) == served(without, rest)


@pytest.mark.parametrize("flag", ["hrw-port", "mh-port", "sh-port"])
@pytest.mark.parametrize("key", [b"", bytes(16)])
def test_a_port_counts_where_it_is_asked_for(flag: str, key: bytes) -> None:
    ends = [f"192.0.2.1:{port}" for port in range(20000, 20100)]
    scheduler = flag.split("-")[0]
    for flags, few in (((), True), ((flag,), False)):
        lab = Lab(Virtual(VIP, TEN, scheduler, flags=flags, hash_key=key))
        assert (len(set(served(lab, ends))) == 1) == few


@pytest.mark.parametrize("scheduler", ["sh", "mh", "hrw"])
def test_with_a_key_nobody_can_tell_who_gets_which_server_and_all_directors_agree(scheduler: str) -> None:
    plain, one, other = (hashed(scheduler, TEN, key) for key in (b"", b"k" * 16, b"l" * 16))
    assert one == hashed(scheduler, TEN, b"k" * 16)
    for first, second in ((plain, one), (plain, other), (one, other)):  # by chance a tenth stays, a bit more by weight
        assert 0.02 < sum(a == b for a, b in zip(first, second, strict=True)) / len(MANY) < 0.25
    counts = Counter(one)
    assert all(0.5 < counts[real] / len(MANY) * sum(TEN.values()) / weight < 1.6 for real, weight in TEN.items())


def test_destinations_are_hashed_with_the_key_too() -> None:
    reals = {f"10.0.0.{at}:0": 1 for at in range(1, 9)}
    found = []
    for key in (b"", bytes(range(16))):
        lab = Lab(Virtual("0.0.0.0:0", reals, "dh", mark=1, hash_key=key))
        found.append([ask(lab, f"198.51.100.{at}:80", f"192.0.2.1:{1000 + at}") for at in range(100)])
    assert sum(a == b for a, b in zip(*found, strict=True)) < 30
    assert len(set(found[1])) == 8


@pytest.mark.parametrize("scheduler", ["sh", "mh", "hrw", "dh", "lblc", "lblcr"])
def test_ipv6_clients_are_spread_and_stay(scheduler: str) -> None:
    vips = [f"[2001:db8::{number:x}]:80" for number in range(1, 9)]
    reals = {f"[fd00::{number}]:80": 1 for number in range(1, 4)}
    lab = Lab(*(Virtual(vip, reals, scheduler) for vip in vips))
    seen = Counter()
    for at in range(240):
        address = f"2001:db8:1::{at % 80:x}"
        packets = [lab.send(tcp(f"[{address}]:{port}", vips[at % 8], "S")).packet for port in (4000 + at, 8000 + at)]
        assert packets[0] is not None
        assert packets[1] is not None
        if scheduler in ("sh", "mh", "hrw"):
            assert packets[0][24:40] == packets[1][24:40]
        seen[packets[0][39]] += 1
    assert len(seen) == 3


# --- lblc, lblcr ------------------------------------------------------------------------------------------------------

CACHES = Virtual("0.0.0.0:0", {"10.0.0.1:0": 1, "10.0.0.2:0": 1, "10.0.0.3:0": 1}, mark=1)


def ask(lab: Lab, destination: str, client: str) -> int:
    """The number of the cache that a datagram to the destination goes to."""
    packet = lab.send(udp(client, destination), mark=1).packet
    assert packet is not None
    return packet[19]


@pytest.mark.parametrize("scheduler", ["lblc", "lblcr"])
def test_destinations_stay_until_nobody_asked_for_a_day(scheduler: str) -> None:
    lab = Lab(CACHES._replace(scheduler=scheduler), capacity=65536)
    caches = {f"198.51.100.{at}:80": ask(lab, f"198.51.100.{at}:80", f"192.0.2.1:{1000 + at}") for at in range(90)}
    assert Counter(caches.values()) == {1: 30, 2: 30, 3: 30}
    (service,) = lab.services
    lab.clock.advance(DAY - 1)
    assert ask(lab, "198.51.100.0:80", "192.0.2.1:2000") == caches["198.51.100.0:80"]
    lab.clock.advance(2)
    assert service.collect(lab.clock(), False) == 0
    assert service.collect(lab.clock(), True) == 89
    assert ask(lab, "198.51.100.0:80", "192.0.2.1:2001") == caches["198.51.100.0:80"]


@pytest.mark.parametrize("scheduler", ["lblc", "lblcr"])
def test_very_many_destinations_go_when_they_were_not_used_for_minutes(scheduler: str) -> None:
    """Beyond 24,576 new ones are served and not remembered (ip_vs_lblc.c)."""
    lab = Lab(CACHES._replace(scheduler=scheduler), capacity=1 << 17)
    for at in range(25000):
        ask(lab, f"198.{at >> 8}.{at & 255}.1:80", "192.0.2.1:1000")
    (service,) = lab.services
    assert service.collect(lab.clock(), False) == 0
    lab.clock.advance(6 * MINUTE + 1)
    assert service.collect(lab.clock(), False) == 8192
    assert service.collect(lab.clock(), False) == 0
    assert service.collect(lab.clock() + DAY * NANOSECONDS, True) == 24576 - 8192
    for at in range(100):
        ask(lab, f"199.0.{at}.1:80", "192.0.2.1:1000")


@pytest.mark.parametrize("scheduler", ["lblc", "lblcr"])
def test_what_is_remembered_outlives_a_change_of_the_service(scheduler: str) -> None:
    lab = Lab(CACHES._replace(scheduler=scheduler), capacity=4096)
    before = [ask(lab, f"198.51.100.{at}:80", "192.0.2.1:1000") for at in range(30)]
    reals = dict(CACHES.reals) | {"10.0.0.4:0": 1}
    lab.configure(CACHES._replace(scheduler=scheduler, reals=reals))
    assert [ask(lab, f"198.51.100.{at}:80", "192.0.2.1:1001") for at in range(30)] == before
    lab.configure(CACHES._replace(scheduler=scheduler, reals={real: 1 for real in reals if real != "10.0.0.1:0"}))
    after = [ask(lab, f"198.51.100.{at}:80", "192.0.2.1:1002") for at in range(30)]
    assert [new for old, new in zip(before, after, strict=True) if old != 1] == [old for old in before if old != 1]
    assert 1 not in after


# --- twos -------------------------------------------------------------------------------------------------------------


def test_two_draws_by_weight_and_the_less_loaded_of_them() -> None:
    """The first server has (w + 1) / (W + 1) of the draws, the others w / (W + 1) (ip_vs_twos.c)."""
    lab = Lab(Virtual(VIP, {SECOND: 3, FIRST: 1}, "twos"), capacity=8192)
    count = 4000
    chosen = Counter()
    for end in clients(count):
        packet = lab.send(tcp(end, VIP, "S")).packet
        assert packet is not None
        chosen[packet[19]] += 1
        lab.send(tcp(f"10.0.0.{packet[19]}:80", end, "R"), hook=FORWARD)
        lab.clock.advance(11)  # nobody is busy: the first draw decides
    assert abs(chosen[1] / count - 2 / 5) < 0.04
    assert chosen[1] + chosen[2] == count


def test_two_choices_keep_loads_close() -> None:
    lab = Lab(Virtual(VIP, {f"10.0.0.{at}:80": 1 for at in range(1, 21)}, "twos"), capacity=8192)
    served(lab, list(clients(2000)))
    loads = [lab.load(f"10.0.0.{at}:80")[0] for at in range(1, 21)]
    assert max(loads) - min(loads) < 15


# --- count-total ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", ["lc", "wlc"])
@pytest.mark.parametrize("others", [0, 30])
@pytest.mark.parametrize(("flags", "chosen"), [((), SECOND), (("count-total",), FIRST)])
def test_an_active_connection_counts_as_256_inactive_ones_or_as_257(
    scheduler: str, others: int, flags: tuple[str, ...], chosen: str
) -> None:
    """256 inactive and one active are equal, and the newest server wins; with 256 * active + total they are not. With
    `others`, which are not chosen, the servers are ranked.
    """
    rest = {f"10.0.1.{at}:80": 0 for at in range(1, others + 1)}
    lab = Lab(web(scheduler, {FIRST: 1, SECOND: 0, **rest}, *flags), capacity=2048)
    for end in clients(256):
        lab.open(end)
        reset(lab, end)
    lab.configure(web(scheduler, {FIRST: 0, SECOND: 1, **rest}, *flags))
    lab.open("192.0.3.1:1")
    assert (lab.load(FIRST), lab.load(SECOND)) == ((0, 256), (1, 0))
    lab.configure(web(scheduler, {FIRST: 1, SECOND: 1, **rest}, *flags))
    assert lab.open("192.0.3.1:2") == chosen
