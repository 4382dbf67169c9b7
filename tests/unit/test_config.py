"""The configuration file: what it means, and that each mistake is named by file, line, key, value and fix."""

from __future__ import annotations

import tomllib
from contextlib import suppress

import pytest
import tomli_w
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nfqlb.config.toml import loads
from nfqlb.errors import ConfigError
from nfqlb.model import SCHEDULERS, Answers, Intent, Real, Service, Timeouts
from tests.sizes import EXAMPLES

KNOWN = ", ".join(SCHEDULERS)

WHOLE = """
[director]
name = "web"
workers = 2
queue = 10
vip_dev = "eth0"
firewall = "leave"
dr_by = "frame"
dr_mask = 0xff00

[timeouts]
tcp = 600
udp = 30

[answers]
no_connection = "reset"
sloppy_tcp = true

[[service]]
name = "web"
vip = "203.0.113.10:80"
mode = "nat"
scheduler = "wrr"
mss = 1400

  [[service.real]]
  address = "10.0.1.11:8080"
  weight = 3

  [[service.real]]
  address = "10.0.1.12"

[[service]]
vip = "[2001:db8::10]:53/udp"
real = [{ address = "[2001:db8:1::11]:5353", weight = 0 }]
"""
SERVICE = '[[service]]\nvip = "203.0.113.10:80"\n'
REAL = '[[service.real]]\naddress = "10.0.1.11"\n'


WEB_REALS = (Real("10.0.1.11", 8080, 3), Real("10.0.1.12", 80))


def test_a_whole_file() -> None:
    director, intent = loads(WHOLE, "nfqlb.toml")
    given = {"name": "web", "workers": 2, "queue": 10, "vip_dev": "eth0", "firewall": "leave"}
    assert director == given | {"dr_by": "frame", "dr_mask": 0xFF00}
    assert intent == Intent(
        (
            Service("203.0.113.10", 80, "tcp", "nat", "wrr", WEB_REALS, "web", mss=1400),
            Service("2001:db8::10", 53, "udp", reals=(Real("2001:db8:1::11", 5353, 0),)),
        ),
        Timeouts(tcp=600, udp=30),
        Answers(no_connection="reset", sloppy_tcp=True),
    )


def test_an_empty_file_is_an_empty_intent() -> None:
    assert loads("", "nfqlb.toml") == ({}, Intent())


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "[director\n",
            "config 'f.toml': is not TOML: Expected ']' at the end of a table declaration (at line 1, column 10)",
        ),
        ("name = 1\n", "f.toml:1: name '1': is not known here; the keys are director, timeouts, answers, service"),
        ("director = 1\n", "f.toml:1: director '1': is not a table"),
        ("\n[service]\n", "f.toml:2: service '{}': is not a list"),
        ("service = [1]\n", "f.toml:1: service '1': is not a table"),
        (
            "[director]\nthreads = 2\n",
            "f.toml:2: director.threads '2': is not known here; the keys are "
            "name, api, vip_dev, queue, workers, engine, diverter, firewall, connections, dr_by, dr_mask, "
            "metrics, log_format",
        ),
        ('[director]\nworkers = "2"\n', "f.toml:2: director.workers '2': is not a whole number"),
        ("[director]\nworkers = true\n", "f.toml:2: director.workers 'True': is not a whole number"),
        ("[director]\n\nworkers = 0\n", "f.toml:3: director.workers '0': out of range; use 1 to 64"),
        ("[director]\nname = 7\n", "f.toml:2: director.name '7': is not a string in quotes"),
        ('director.engine = "slow"\n', "f.toml:1: director.engine 'slow': is not known; choose from fast, reference"),
        (
            '[director]\nmetrics = "127.0.0.1"\n',
            "f.toml:2: director.metrics '127.0.0.1': has no port; write ADDRESS:PORT, as in 127.0.0.1:9105",
        ),
        ("[timeouts]\ntcp = 0\n", "f.toml:2: timeouts.tcp '0': out of range; use 1 to 2147483 seconds"),
        (
            "[answers]\nno_server = 'rst'\n",
            "f.toml:2: answers.no_server 'rst': is not known; choose from icmp, reset, drop",
        ),
        ("[answers]\nsloppy_tcp = 1\n", "f.toml:2: answers.sloppy_tcp '1': is not true or false"),
        ("[timeouts]\nsctp = 1\n", "f.toml:2: timeouts.sctp '1': is not known here; the keys are tcp, tcp_fin, udp"),
        (
            '[[service]]\nmode = "nat"\n',
            "f.toml:1: service '': has no vip; write vip = \"ADDRESS:PORT/tcp\", or fwmark = N",
        ),
        (
            '[[service]]\nvip = "203.0.113.10"\n',
            "f.toml:2: service.vip '203.0.113.10': has no port; write ADDRESS:PORT, as in 203.0.113.10:80",
        ),
        ('[[service]]\nvip = "203.0.113.10:-1"\n', "f.toml:2: service.vip '': is not a whole number"),
        ('[[service]]\nvip = "203.0.113.10:65536"\n', "f.toml:2: service.vip '65536': out of range; use 0 to 65535"),
        (
            '[[service]]\nvip = "203.0.113.10:90-80"\n',
            "f.toml:2: service.vip '90-80': is not a range; write FIRST-LAST, in 1 to 65535",
        ),
        (
            '[[service]]\nvip = "203.0.113.10:80-90"\n[[service]]\nvip = "203.0.113.10:90-99"\n',
            "f.toml:4: service.vip '203.0.113.10:90-99/tcp': has ports of 203.0.113.10:80-90/tcp, too; "
            "give each port to one service",
        ),
        ("[[service]]\nfwmark = 0\n", "f.toml:2: service.fwmark '0': out of range; use 1 to 4294967295"),
        (
            "[[service]]\nfwmark = 7\nfamily = 'v6'\n",
            "f.toml:3: service.family 'v6': is not known; choose from ipv4, ipv6",
        ),
        (
            SERVICE + "family = 'ipv6'\n",
            "f.toml:3: service.family 'ipv6': belongs to a fwmark; the vip says its own family",
        ),
        ('[[service]]\nvip = "1.2.3.4:80/icmp"\n', "f.toml:2: service.vip 'icmp': is not known; choose from tcp, udp"),
        (SERVICE + 'mode = "proxy"\n', "f.toml:3: service.mode 'proxy': is not known; choose from nat, dr, tun"),
        (
            SERVICE + "scheduler = 'best'\n",
            f"f.toml:3: service.scheduler 'best': is not known; choose from {KNOWN}",
        ),
        (
            SERVICE + "port = 1\n",
            "f.toml:3: service.port '1': is not known here; the keys are "
            "name, vip, fwmark, family, mode, scheduler, flags, persistence, one_packet, mss, real",
        ),
        (
            SERVICE + "fwmark = 7\n",
            "f.toml:1: service '': has a vip and a fwmark; write vip = \"ADDRESS:PORT/tcp\", or fwmark = N",
        ),
        (
            SERVICE + "persistence = { timeout = 0 }\n",
            "f.toml:3: service.persistence.timeout '0': out of range; use 1 to 2147483",
        ),
        (
            SERVICE + "persistence = { netmask = 33 }\n",
            "f.toml:3: service.persistence.netmask '33': out of range; use 1 to 32",
        ),
        (
            SERVICE + "persistence = { quiescent = 'leave' }\n",
            "f.toml:3: service.persistence.quiescent 'leave': is not known; choose from keep, move",
        ),
        (
            SERVICE + "persistence = { time = 9 }\n",
            "f.toml:3: service.persistence.time '9': is not known here; the keys are timeout, netmask, quiescent",
        ),
        (
            SERVICE + "one_packet = true\n",
            "f.toml:3: service.one_packet 'true': is not for tcp; it is for UDP and firewall marks",
        ),
        (
            SERVICE + '[service.health]\ntype = "http"\npath = "/a/long/path/to/the/health/page"\n',
            "f.toml:3: service.health \"{'type': 'http', 'path': '/a/long/pat...\": "
            "this version of nfqlb does not do health checks; take it out of the file",
        ),
        (
            SERVICE + SERVICE,
            "f.toml:4: service.vip '203.0.113.10:80/tcp': is there twice; put all its real servers into one service",
        ),
        (
            '[[service]]\nname = "a"\nvip = "1.2.3.4:1"\n[[service]]\nname = "a"\nvip = "1.2.3.4:2"\n',
            "f.toml:5: service.name 'a': is there twice; give each service a name of its own",
        ),
        (
            SERVICE + "[[service.real]]\nweight = 1\n",
            "f.toml:3: service.real '': has no address; write address = \"ADDRESS:PORT\"",
        ),
        (
            SERVICE + REAL + "weight = -1\n",
            "f.toml:5: service.real.weight '-1': out of range; use 0 to 2147483647, 0 takes no new connections",
        ),
        (SERVICE + REAL + "weight = 1.5\n", "f.toml:5: service.real.weight '1.5': is not a whole number"),
        (
            SERVICE + '[[service.real]]\naddress = "10.0.1.11,weight=2"\n',
            "f.toml:4: service.real.address '10.0.1.11,weight=2': holds more than the address; write weight = N",
        ),
        (
            SERVICE + REAL + '[[service.real]]\naddress = "web1:80"\n',
            "f.toml:6: service.real.address 'web1': is not an IP address; write it as 10.0.0.1 or [2001:db8::1]",
        ),
        (
            SERVICE + REAL + '[[service.real]]\naddress = "[2001:db8::1]:80"\n',
            "f.toml:6: service.real.address '[2001:db8::1]:80': is not of the VIP's family (203.0.113.10); "
            "mode nat cannot mix IPv4 and IPv6",
        ),
        (
            SERVICE + REAL + REAL,
            "f.toml:6: service.real.address '10.0.1.11:80': "
            "is there twice; name each real server once and give it a weight",
        ),
        (
            SERVICE + '\nreal = [\n  { address = "10.0.1.11" },\n  { address = "10.0.1.12", weight = -1 },\n]\n',
            "f.toml:4: service.real.weight '-1': out of range; use 0 to 2147483647, 0 takes no new connections",
        ),
        (
            SERVICE + REAL + SERVICE.replace("80", "81") + REAL + REAL + "weight = 'x'\n",
            "f.toml:11: service.real.weight 'x': is not a whole number",
        ),
    ],
)
def test_a_mistake_is_named_with_its_place_and_its_fix(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        loads(text, "f.toml")
    assert str(error.value) == sentence


TABLES = st.recursive(
    st.integers(-1, 99) | st.booleans() | st.sampled_from(["nat", "rr", "10.0.0.1:80", "10.0.0.2:80", "[::1]:80", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["director", "service", "real", "vip", "address", "weight", "name"]), inner)
    ),
    max_leaves=8,
)


@settings(max_examples=EXAMPLES // 2)
@given(st.dictionaries(st.sampled_from(["director", "service", "timeouts"]), TABLES))
@example({"service": [{"vip": "10.0.0.1:80", "real": [{"address": "10.0.0.1:80"}]}]})
def test_any_toml_is_an_intent_or_a_refusal(tables: dict[str, object]) -> None:
    text = tomli_w.dumps(tables)
    assert tomllib.loads(text) == tables
    with suppress(ConfigError):
        loads(text, "f.toml")
