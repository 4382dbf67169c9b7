"""The tools for tests are tested too: packets against literal bytes and against scapy, the queue against a worker."""

from __future__ import annotations

import threading

import pytest

from nfqlb.testing import FRAGMENT, FakeClock, MemoryQueue, checksum, endpoint, fragments, ip, tcp, udp
from tests.core.lab import CLIENT, REAL, VIP, Lab, Virtual


def test_a_syn_byte_for_byte() -> None:
    assert tcp("192.0.2.10:40000", "203.0.113.1:80") == bytes.fromhex(
        "45000028 00014000 4006 3cc3 c000020a cb007101 9c40 0050 000003e8 00000000 5002 faf0 166d 0000"
    )


def test_ends_as_the_data_path_wants_them() -> None:
    assert endpoint("10.0.0.2:8080") == (bytes.fromhex("00000000000000000000ffff0a000002"), 8080)
    assert endpoint("[2001:db8::1]:53") == (bytes.fromhex("20010db8000000000000000000000001"), 53)
    for text in ("10.0.0.2:8080", "[2001:db8::1]:53"):
        assert str(endpoint(text)) == text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what scapy's own imports warn of
def test_scapy_builds_the_same() -> None:
    from scapy.layers import inet, inet6

    four = inet.IP(src="192.0.2.10", dst="203.0.113.1", id=1, flags="DF")
    six = inet6.IPv6(src="2001:db8::10", dst="2001:db8::1", hlim=64)
    mss = inet.TCP(sport=40000, dport=80, seq=5, ack=6, window=7, flags="SA", options=[("MSS", 1460)])
    push = inet.TCP(sport=40000, dport=80, seq=5, ack=6, window=7, flags="PA")
    assert bytes(four / mss) == tcp(CLIENT, VIP, "SA", seq=5, ack=6, window=7, options=b"\2\4\5\xb4")
    assert bytes(four / inet.UDP(sport=40000, dport=80) / b"odd") == udp(CLIENT, VIP, b"odd")
    six_ends = "[2001:db8::10]:40000", "[2001:db8::1]:80"
    assert bytes(six / push / b"odd") == tcp(*six_ends, "PA", b"odd", seq=5, ack=6, window=7)
    atomic = inet6.IPv6ExtHdrFragment(id=9) / inet.UDP(sport=40000, dport=80) / b"even"
    options = inet6.IPv6ExtHdrDestOpt(options=[inet6.PadN(optdata=bytes(4))])
    extensions = [(60, b"\1\4" + bytes(4)), (FRAGMENT, b"\0\0\0\0\0\x09")]
    assert bytes(six / options / atomic) == udp(*six_ends, b"even", extensions=extensions)
    with_options = inet.IP(
        src="192.0.2.10", dst="203.0.113.1", id=1, flags="DF", options=[inet.IPOption_Router_Alert()]
    )
    assert bytes(with_options / inet.UDP(sport=40000, dport=80)) == udp(CLIENT, VIP, ip_options=b"\x94\x04\0\0")


def test_checksums_of_other_kinds() -> None:
    assert udp(CLIENT, VIP, check="none")[26:28] == b"\0\0"
    # complemented, the sum of the pseudo header is the checksum of an empty payload
    pseudo = bytes.fromhex("c000020a cb007101 0011 0008")
    assert int.from_bytes(udp(CLIENT, VIP, check="unfinished")[26:28], "big") == 0xFFFF - checksum(pseudo)


@pytest.mark.parametrize("ends", [(CLIENT, VIP), ("[2001:db8::10]:40000", "[2001:db8::1]:80")])
def test_fragments_carry_the_whole_payload(ends: tuple[str, str]) -> None:
    whole = udp(*ends, bytes(range(100)))
    header = 20 if whole[0] >> 4 == 4 else 40
    pieces = fragments(whole, 48)
    skip = header if header == 20 else 48
    assert [len(piece) - skip for piece in pieces] == [48, 48, 12]
    assert b"".join(piece[skip:] for piece in pieces) == whole[header:]


def test_an_ip_packet_of_any_protocol() -> None:
    assert ip("192.0.2.1", "192.0.2.2", 47, b"\0\0\x08\0") == bytes.fromhex(
        "45000018 00014000 402f b6b2 c0000201 c0000202 00000800"
    )


def test_the_clock_stands_until_it_is_told() -> None:
    clock = FakeClock(5)
    assert (clock(), clock(), clock.advance(0.25), clock()) == (5 * 10**9, 5 * 10**9, 5_250_000_000, 5_250_000_000)


def test_a_queue_in_memory_answers_all_that_was_put_before_the_stop() -> None:
    lab = Lab(Virtual(VIP, {REAL: 1}))
    engine = MemoryQueue(lab.workers[0], lab.clock, maxlen=200)
    thread = threading.Thread(target=engine.run)
    thread.start()
    numbers = [engine.put(tcp(f"192.0.2.10:{port}", VIP)) for port in range(1000, 1100)]
    numbers.append(engine.put(b"no packet"))
    engine.stop()
    thread.join(10)
    assert not thread.is_alive()
    assert sorted(engine.verdicts) == numbers
    assert engine.verdicts[numbers[0]].packet == tcp("192.0.2.10:1000", REAL)
    assert engine.verdicts[numbers[-1]] == ("drop", "malformed", None)


def test_a_full_queue_drops_and_counts() -> None:
    lab = Lab(Virtual(VIP, {REAL: 1}))
    engine = MemoryQueue(lab.workers[0], lab.clock, maxlen=3)
    numbers = [engine.put(tcp(CLIENT, VIP)) for _ in range(5)]
    engine.stop()
    engine.run()
    assert sorted(engine.verdicts) == numbers[:3]
    assert engine.statistics() == [{"packets": 3, "overruns": 2, "refused": 0, "ignored": 0}]
