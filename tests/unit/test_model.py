"""What the model refuses, each with its sentence, and how text becomes values."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from nfqlb.errors import ConfigError
from nfqlb.model import (
    ANY_ADDRESS,
    SCHEDULERS,
    Health,
    Intent,
    Key,
    Options,
    Real,
    Service,
    Timeouts,
    canonical,
    endpoint,
    family,
    parse_name,
    parse_real,
    parse_vip,
)

KNOWN = ", ".join(SCHEDULERS)
NO_FILE = "is no name of a file; write NAME.py, or its whole path from / on"

VIP, REAL = "203.0.113.10", "10.0.1.11"
WEB, MARKED = Key("tcp", VIP, 80), Key("any", "0.0.0.0", 0, mark=7)
UNICAST = "use a unicast address without a zone"
A_NAME = "use a letter, then letters, digits and '-', at most 15 in all"
ADDRESSES = st.ip_addresses().map(str)


def many(count: int) -> tuple[Real, ...]:
    return tuple(Real(f"10.1.{at >> 8}.{at & 255}", 80) for at in range(count))


def refusal(build: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as error:
        build()
    return str(error.value)


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: Service("web", 80), "vip 'web': is not an IP address; write it as 10.0.0.1 or [2001:db8::1]"),
        (lambda: Service("0.0.0.0", 80), f"vip '0.0.0.0': cannot be the address of a server; {UNICAST}"),
        (lambda: Service("ff02::1", 80), f"vip 'ff02::1': cannot be the address of a server; {UNICAST}"),
        (lambda: Service("fe80::1%eth0", 80), f"vip 'fe80::1%eth0': cannot be the address of a server; {UNICAST}"),
        (
            lambda: Service("::ffff:10.0.0.1", 80),
            "vip '::ffff:10.0.0.1': is an IPv4 address in IPv6 notation; write 10.0.0.1",
        ),
        (lambda: Service(VIP, -1), "vip port '-1': out of range; use 0 to 65535"),
        (lambda: Service(VIP, 65536), "vip port '65536': out of range; use 0 to 65535"),
        (lambda: Service(VIP, 80, "icmp"), "protocol 'icmp': is not known; choose from tcp, udp, sctp"),
        (lambda: Service(VIP, 80, mode="proxy"), "mode 'proxy': is not known; choose from nat, dr, tun"),
        (
            lambda: Service(VIP, 80, mode="masq"),
            "mode 'masq': is not known; did you mean nat? choose from nat, dr, tun",
        ),
        (
            lambda: Service(VIP, 80, scheduler="leastconn"),
            f"scheduler 'leastconn': is not known; did you mean lc? choose from {KNOWN}",
        ),
        (
            lambda: Service(VIP, 80, scheduler="best"),
            f"scheduler 'best': is not known; choose from {KNOWN}",
        ),
        (lambda: Service(VIP, 80, scheduler="a b.py"), f"scheduler 'a b.py': {NO_FILE}"),
        (lambda: Service(VIP, 80, scheduler="own/a.py"), f"scheduler 'own/a.py': {NO_FILE}"),
        (
            lambda: Options(hash_key="0123456789abcdef0123456789abcdeg"),
            "hash_key '(secret)': is not 32 hexadecimal digits; use 32 of them, as `openssl rand -hex 16` writes",
        ),
        (lambda: Service(VIP, 80, shadow=".py"), f"shadow '.py': {NO_FILE}"),
        (lambda: Service(VIP, 80, shadow="best"), f"shadow 'best': is not known; choose from {KNOWN}"),
        (
            lambda: Service(VIP, 80, scheduler="a.py", shadow="a.py"),
            "shadow 'a.py': is the scheduler itself; name another one to compare",
        ),
        (lambda: Service(VIP, 80, fallback="a.py"), f"fallback 'a.py': is not known; choose from {KNOWN}"),
        (lambda: Service(VIP, 80, budget=0), "budget '0': out of range; use 1 to 1000000"),
        (lambda: Service(VIP, 80, mss=535), "mss '535': out of range; use 536 to 65495 bytes, or 0 for any"),
        (lambda: Service(VIP, 80, mss=-1), "mss '-1': out of range; use 536 to 65495 bytes, or 0 for any"),
        (lambda: Service(VIP, 53, "udp", mss=1400), "mss '1400': is nothing that udp has; give it to a service of tcp"),
        (
            lambda: Service(VIP, 80, reals=(Real("2001:db8::1", 80),)),
            "real '[2001:db8::1]:80': is not of the VIP's family (203.0.113.10); mode nat cannot mix IPv4 and IPv6",
        ),
        (
            lambda: Service(VIP, 80, reals=(Real(VIP, 80),)),
            "real '203.0.113.10:80': is the virtual service itself; name the address of a real server",
        ),
        (
            lambda: Service(VIP, 80, reals=(Real(REAL, 80), Real(REAL, 80, 2))),
            "real '10.0.1.11:80': is there twice; name each real server once and give it a weight",
        ),
        (
            lambda: Intent((Service(VIP, 80), Service(VIP, 80, scheduler="rr"))),
            "vip '203.0.113.10:80/tcp': is there twice; put all its real servers into one service",
        ),
        (lambda: Real("10.0.1", 80), "real '10.0.1': is not an IP address; write it as 10.0.0.1 or [2001:db8::1]"),
        (lambda: Real(REAL, 70000), "real port '70000': out of range; use 0 to 65535"),
        (lambda: Real(REAL, 80, -1), "weight '-1': out of range; use 0 to 2147483647, 0 takes no new connections"),
        (
            lambda: Real(REAL, 80, 2**31),
            "weight '2147483648': out of range; use 0 to 2147483647, 0 takes no new connections",
        ),
        (lambda: Timeouts(tcp=0), "timeout tcp '0': out of range; use 1 to 2147483 seconds"),
        (lambda: Timeouts(tcp_fin=-5), "timeout tcp_fin '-5': out of range; use 1 to 2147483 seconds"),
        (lambda: Timeouts(udp=2147484), "timeout udp '2147484': out of range; use 1 to 2147483 seconds"),
        (lambda: parse_vip(VIP), "vip '203.0.113.10': has no port; write ADDRESS:PORT, as in 203.0.113.10:80"),
        (lambda: parse_vip(f"{VIP}:"), "vip '203.0.113.10:': has no port; write ADDRESS:PORT, as in 203.0.113.10:80"),
        (lambda: parse_vip(f"{VIP}:http"), "vip port 'http': is not a whole number"),
        (lambda: parse_vip(f"{VIP}:80/icmp"), "protocol 'icmp': is not known; choose from tcp, udp, sctp"),
        (
            lambda: parse_vip("[2001:db8::1:80"),
            "vip '[2001:db8::1:80': is not [ADDRESS]:PORT; close the bracket before the port",
        ),
        (
            lambda: parse_vip("[2001:db8::1]80"),
            "vip '[2001:db8::1]80': is not [ADDRESS]:PORT; close the bracket before the port",
        ),
        (lambda: parse_vip("2001:db8::1"), "vip '2001:db8::1': has no port; write ADDRESS:PORT, as in 203.0.113.10:80"),
        (
            lambda: Service(VIP, 80, last=80),
            "vip port '80-80': is not a range; write FIRST-LAST, in 1 to 65535",
        ),
        (
            lambda: Service(VIP, 80, last=70000),
            "vip port '80-70000': is not a range; write FIRST-LAST, in 1 to 65535",
        ),
        (lambda: Service(VIP, 0, last=9), "vip port '0-9': is not a range; write FIRST-LAST, in 1 to 65535"),
        (lambda: Service(VIP, 80, reals=(Real(REAL, 0),)), "real '10.0.1.11:0': has no port; write 10.0.1.11:80"),
        (
            lambda: Service(VIP, 80, mode="dr", last=90, reals=(Real(REAL, 80),)),
            "real port '80': is not the service's; mode dr changes no port: leave it out",
        ),
        (
            lambda: Service(VIP, 0, reals=(Real(VIP, 99),)),
            "real '203.0.113.10:99': is the virtual service itself; name the address of a real server",
        ),
        (
            lambda: Intent((Service(VIP, 80, last=90), Service(VIP, 90, last=99))),
            "vip '203.0.113.10:90-99/tcp': has ports of 203.0.113.10:80-90/tcp, too; give each port to one service",
        ),
        (lambda: Real(REAL, 80, upper=-1), "upper '-1': out of range; use 0 to 4294967295"),
        (lambda: Real(REAL, 80, upper=9, lower=10), "lower '10': is above upper (9); use at most as many"),
        (
            lambda: Service(VIP, 80, scheduler="sh", flags=("sh-port", "mh-port")),
            "flags 'mh-port': is not a flag of scheduler sh; it knows sh-fallback, sh-port",
        ),
        (
            lambda: Service(VIP, 80, flags=("sh-port",)),
            "flags 'sh-port': is not a flag of scheduler wlc; it knows count-total",
        ),
        (
            lambda: Service(VIP, 80, scheduler="rr", flags=("count-total",)),
            "flags 'count-total': is not a flag of scheduler rr; it knows none",
        ),
        (
            lambda: Service(VIP, 80, scheduler="mh", maglev_size=65536),
            "maglev_size '65536': is no prime; the next ones are 65521 and 65537",
        ),
        (
            lambda: Service(VIP, 80, scheduler="mh", maglev_size=655374),
            "maglev_size '655374': out of range; use 251 to 655373",
        ),
        (
            lambda: Service(VIP, 80, maglev_size=251),
            "maglev_size '251': is nothing that scheduler wlc has; use mh, or 4093, the default",
        ),
        (
            lambda: Service(VIP, 80, scheduler="mh", maglev_size=251, reals=many(252)),
            "maglev_size '251': is too small for 252 real servers; use a prime of so many places at least, "
            "about a hundred for each server make shares even",
        ),
        (
            lambda: Service(VIP, 80, scheduler="x.py", fallback="sh", flags=("mh-port",)),
            "flags 'mh-port': is not a flag of scheduler sh; it knows sh-fallback, sh-port",
        ),
        (lambda: Service(fwmark=2**32), "fwmark '4294967296': out of range; use 1 to 4294967295"),
        (lambda: Service(fwmark=7, port=80), "fwmark '7': has a port or a protocol; leave out one or the other"),
        (lambda: Service(VIP, fwmark=7), f"fwmark '7': has the VIP {VIP}; leave out one or the other"),
        (lambda: parse_vip("fwmark:0"), "fwmark '0': out of range; use 1 to 4294967295"),
        (lambda: parse_vip("fwmark:x"), "fwmark 'x': is not a whole number"),
        (lambda: parse_vip(f"{VIP}:٣"), "vip port '٣': is not a whole number"),
        (lambda: parse_vip(f"{VIP}:8_0"), "vip port '8_0': is not a whole number"),
        (lambda: parse_vip(f"{VIP}:+81"), "vip port '+81': is not a whole number"),
        (
            lambda: parse_vip(f"{VIP}:{'9' * 21}"),
            f"vip port '{'9' * 21}': is out of every range; use at most 20 digits",
        ),
        (lambda: parse_real(f"{REAL}:80,weight= 5", WEB), "weight ' 5': is not a whole number"),
        (
            lambda: parse_real(f"{REAL}:80,weight=3,weight=4", WEB),
            "real '10.0.1.11:80,weight=3,weight=4': has weight twice; give each option once",
        ),
        (
            lambda: Service("255.255.255.255", 80),
            "vip '255.255.255.255': cannot be the address of a server; use a unicast address without a zone",
        ),
        (
            lambda: Real("255.255.255.255", 80),
            "real '255.255.255.255': cannot be the address of a server; use a unicast address without a zone",
        ),
        (lambda: Service(VIP, 80, name="a\nb"), "name 'a\\nb': is no short line; use at most 200 characters"),
        (lambda: Service(VIP, 80, name="a\x1b[2J"), "name 'a\\x1b[2J': is no short line; use at most 200 characters"),
        (
            lambda: Service(VIP, 80, name="x" * 5000),
            f"name '{'x' * 200}': is no short line; use at most 200 characters",
        ),
        (
            lambda: Health("http", status="200,399-301"),
            "health status '399-301': ends before it begins; write 301-399",
        ),
        (
            lambda: Health("http", host="a\nb"),
            "health host 'a\\nb': is no name of a host; write it like example.com",
        ),
        (
            lambda: Health("dns", query="a..b"),
            "health query 'a..b': is no name of DNS; "
            "write it like example.com, 253 characters at most, 63 between dots",
        ),
        (
            lambda: Health("dns", query="q" * 64),
            f"health query '{'q' * 64}': is no name of DNS; "
            "write it like example.com, 253 characters at most, 63 between dots",
        ),
        (lambda: parse_vip("fwmark:7/tcp"), "family 'tcp': is not known; choose from ipv4, ipv6"),
        (lambda: parse_real(f"{REAL}:80,weight=x", WEB), "weight 'x': is not a whole number"),
        (
            lambda: parse_real(f"{REAL}:80,wieght=2", WEB),
            "real '10.0.1.11:80,wieght=2': has the unknown option 'wieght'; "
            "weight=, upper=, lower=, mode=, agent_port= can follow the address",
        ),
        (lambda: parse_name(""), f"name '': cannot be used; {A_NAME}"),
        (lambda: parse_name("1st"), f"name '1st': cannot be used; {A_NAME}"),
        (lambda: parse_name("../etc"), f"name '../etc': cannot be used; {A_NAME}"),
        (lambda: parse_name("ä"), f"name 'ä': cannot be used; {A_NAME}"),
        (
            lambda: parse_name("a234567890123456"),
            f"name 'a234567890123456': cannot be used; {A_NAME}",
        ),
    ],
)
def test_what_cannot_be_right_is_refused_with_its_fix(build: Callable[[], object], sentence: str) -> None:
    assert refusal(build) == sentence


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("203.0.113.10:80", Key("tcp", "203.0.113.10", 80)),
        ("203.0.113.10:53/udp", Key("udp", "203.0.113.10", 53)),
        ("[2001:DB8:0::10]:443/tcp", Key("tcp", "2001:db8::10", 443)),
    ],
)
def test_a_vip_is_read_into_its_canonical_key(text: str, key: Key) -> None:
    assert parse_vip(text) == key


@pytest.mark.parametrize(
    ("text", "real"),
    [
        ("10.0.1.11", Real("10.0.1.11", 80)),
        ("10.0.1.11:8080", Real("10.0.1.11", 8080)),
        ("10.0.1.11,weight=0", Real("10.0.1.11", 80, 0)),
        ("10.0.1.11:8080,weight=3", Real("10.0.1.11", 8080, 3)),
        ("2001:db8::1", Real("2001:db8::1", 80)),
        ("[2001:db8::1]", Real("2001:db8::1", 80)),
        ("[2001:db8:0:0::1]:8080,weight=3", Real("2001:db8::1", 8080, 3)),
    ],
)
def test_a_real_server_has_the_services_port_and_weight_1_unless_it_says_otherwise(text: str, real: Real) -> None:
    assert parse_real(text, WEB) == real


@pytest.mark.parametrize("service", [MARKED, Key("tcp", VIP, 0), Key("udp", VIP, 80, 90)], ids=str)
def test_a_real_server_of_many_ports_keeps_that_of_the_packet_unless_it_has_one(service: Key) -> None:
    assert parse_real(REAL, service) == Real(REAL, 0)
    assert parse_real(f"{REAL}:8080", service) == Real(REAL, 8080)


@given(ADDRESSES, st.integers(0, 65535), st.integers(1, 65535), st.sampled_from(["tcp", "udp"]))
@example("::1", 1, 1, "tcp")
@example("::1", 0, 1, "udp")
def test_a_key_reads_back_from_its_text(address: str, port: int, last: int, protocol: str) -> None:
    try:
        key = Key(protocol, canonical("vip", address), port, last if 0 < port < last else 0)
    except ConfigError:
        assume(False)
    assert parse_vip(str(key)) == key == Service(key.address, port, protocol, last=key.last).key
    assert parse_real(endpoint(key.address, key.port), key) == Real(key.address, key.port)


@given(st.sampled_from([4, 6]), st.integers(1, 2**32 - 1))
def test_a_mark_reads_back_from_its_text(version: int, mark: int) -> None:
    key = Service(ANY_ADDRESS[version], fwmark=mark).key
    assert parse_vip(str(key)) == key
    assert (family(key.address), key.mark, key.ports) == (version, mark, (0, 65535))


@given(st.ip_addresses(v=6), st.ip_addresses(v=4))
def test_the_family_shows_in_the_canonical_address(six: IPv6Address, four: IPv4Address) -> None:
    assert (family(str(six)), family(str(four))) == (6, 4)


@given(st.text())
@example("[")
@example("1.2.3.4:²")
@example(",")
def test_any_text_is_a_value_or_a_refusal(text: str) -> None:
    for parse in (parse_vip, partial(parse_real, service=WEB), parse_name):
        with suppress(ConfigError):
            parse(text)


def test_a_value_does_not_change() -> None:
    with pytest.raises(AttributeError):
        Real(REAL, 80).weight = 2  # type: ignore[misc]
