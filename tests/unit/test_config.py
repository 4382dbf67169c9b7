"""The configuration file: what it means, and that each mistake is named by file, line, key, value and fix."""

from __future__ import annotations

import gc
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from nfqlb.config import file
from nfqlb.config.schema import WORDS, schema
from nfqlb.config.toml import (
    ANSWERS,
    DIRECTOR,
    HA,
    HEALTH,
    OPTIONS,
    PERSISTENCE,
    QUORUM,
    REAL,
    SYNC,
    TIMEOUTS,
    Loaded,
    dumps,
    loads,
)
from nfqlb.config.toml import SERVICE as SERVICE_KEYS
from nfqlb.errors import ConfigErrors
from nfqlb.model import SCHEDULERS, Answers, Check, Health, Intent, Options, OwnTimeouts, Real, Service, Timeouts
from nfqlb.runconfig import ENGINES
from tests.intents import intents
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

[options]
conn_reuse_mode = 1
expire_nodest_conn = true

[[service]]
name = "web"
vip = "203.0.113.10:80"
mode = "nat"
scheduler = "wrr"
mss = 1400
offload = false

  [service.timeouts]
  tcp = 60

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
SERVER = '[[service.real]]\naddress = "10.0.1.11"\n'


VALIDATOR = Draft202012Validator(schema())
WEB_REALS = (Real("10.0.1.11", 8080, 3), Real("10.0.1.12", 80))


def test_a_whole_file() -> None:
    director, intent = loads(WHOLE, "nfqlb.toml")
    given = {"name": "web", "workers": 2, "queue": 10, "vip_dev": "eth0", "firewall": "leave"}
    assert director == given | {"dr_by": "frame", "dr_mask": 0xFF00}
    assert intent == Intent(
        (
            Service(
                "203.0.113.10",
                80,
                "tcp",
                "nat",
                "wrr",
                WEB_REALS,
                "web",
                mss=1400,
                offload=False,
                timeouts=OwnTimeouts(60),
            ),
            Service("2001:db8::10", 53, "udp", reals=(Real("2001:db8:1::11", 5353, 0),)),
        ),
        Timeouts(tcp=600, udp=30),
        Answers(no_connection="reset", sloppy_tcp=True),
        Options(1, expire_nodest_conn=True),
    )


CHECKED = """
[[service]]
vip = "203.0.113.10:443"

  [service.health]
  interval = 0.5
  require = "any"

    [[service.health.check]]
    type = "https"
    headers = ["X-Probe: 1"]
    version = "2"

    [[service.health.check]]
    type = "script"
    script = "/bin/true {address}"
    interval = 1
"""


def test_what_is_said_once_is_that_of_every_check_that_does_not_say_otherwise() -> None:
    checks = (
        Check("https", interval=0.5, headers=("X-Probe: 1",), version="2"),
        Check("script", script="/bin/true {address}", interval=1),
    )
    loaded = loads(CHECKED, "f.toml")
    assert loaded.intent == Intent((Service("203.0.113.10", 443, health=Health(checks=checks, require="any")),))
    assert loads(dumps(loaded), "f.toml") == loaded
    assert not list(VALIDATOR.iter_errors(tomllib.loads(dumps(loaded))))


def test_an_empty_file_is_an_empty_intent() -> None:
    assert loads("", "nfqlb.toml") == ({}, Intent())


def test_times_may_have_a_unit() -> None:
    text = (
        '[timeouts]\ntcp = "1h"\nudp = 30\n[[service]]\nvip = "203.0.113.10:80"\nslow_start = "1.5m"\n'
        'persistence = { timeout = "2d" }\n[service.health]\ninterval = "250ms"\ntimeout = "1.5s"\nhold = "10"\n'
    )
    intent = loads(text, "f.toml").intent
    [service] = intent.services
    assert service.health
    assert service.persistence
    assert (intent.timeouts.tcp, intent.timeouts.udp, service.slow_start) == (3600, 30, 90)
    assert (service.persistence.timeout, service.health.hold) == (172800, 10)
    assert (service.health.interval, service.health.timeout) == (0.25, 1.5)
    VALIDATOR.validate(tomllib.loads(text))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "[director\n",
            "config 'f.toml': is not TOML: Expected ']' at the end of a table declaration (at line 1, column 10)",
        ),
        (
            "name = 1\n",
            "f.toml:1: name '1': is not known here; "
            "the keys are director, ha, timeouts, answers, options, sync, service",
        ),
        ("director = 1\n", "f.toml:1: director '1': is not a table"),
        ("\n[service]\n", "f.toml:2: service '{}': is not a list"),
        ("service = [1]\n", "f.toml:1: service '1': is not a table"),
        (
            "[director]\nthreads = 2\n",
            "f.toml:2: director.threads '2': is not known here; the keys are "
            "name, api, vip_dev, queue, workers, engine, diverter, firewall, on_failure, connections, dr_by, dr_mask, "
            "offload, metrics, log_format, script_user, notify, webhook, webhook_token, mail_to, mail_from, smtp, "
            "smtp_login",
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
        ('[timeouts]\nudp = "500ms"\n', "f.toml:2: timeouts.udp '500ms': is not a time; write 90, 90s, 5m, 2h or 1d"),
        (
            "[timeouts]\nudp = true\n",
            "f.toml:2: timeouts.udp 'True': is not a whole number of seconds, or a time as in \"5m\"",
        ),
        (
            SERVICE + 'health = { interval = "soon" }\n',
            "f.toml:3: service.health.interval 'soon': is not a time; write 2, 1.5s, 500ms or 5m",
        ),
        ("[timeouts]\ntcp = 0\n", "f.toml:2: timeouts.tcp '0': out of range; use 1 to 2147483 seconds"),
        (
            "[answers]\nno_server = 'rst'\n",
            "f.toml:2: answers.no_server 'rst': is not known; did you mean reset? choose from icmp, reset, drop",
        ),
        ("[answers]\nsloppy_tcp = 1\n", "f.toml:2: answers.sloppy_tcp '1': is not true or false"),
        ("[options]\namemthresh = -1\n", "f.toml:2: options.amemthresh '-1': out of range; use 0 to 4294967295"),
        ("[options]\nconn_reuse_mode = 4\n", "f.toml:2: options.conn_reuse_mode '4': out of range; use 0 to 3"),
        (
            "[timeouts]\nicmp = 1\n",
            "f.toml:2: timeouts.icmp '1': is not known here; the keys are " + ", ".join(TIMEOUTS),
        ),
        (
            SERVICE + "timeouts = { udp = 1 }\n",
            "f.toml:3: service.timeouts.udp '1': is nothing that tcp has; give it to a service of udp",
        ),
        (
            SERVICE + "[service.timeouts]\ntcp = -1\n",
            "f.toml:4: service.timeouts.tcp '-1': out of range; "
            "use 1 to 2147483 seconds, or 0 for that of all services",
        ),
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
            "f.toml:3: service.family 'v6': is not known; did you mean ipv6? choose from ipv4, ipv6",
        ),
        (
            SERVICE + "family = 'ipv6'\n",
            "f.toml:3: service.family 'ipv6': belongs to a fwmark; the vip says its own family",
        ),
        (
            '[[service]]\nvip = "1.2.3.4:80/icmp"\n',
            "f.toml:2: service.vip 'icmp': is not known; choose from tcp, udp, sctp",
        ),
        (SERVICE + 'mode = "proxy"\n', "f.toml:3: service.mode 'proxy': is not known; choose from nat, dr, tun"),
        (
            SERVICE + "scheduler = 'best'\n",
            f"f.toml:3: service.scheduler 'best': is not known; choose from {KNOWN}",
        ),
        (
            SERVICE + "port = 1\n",
            "f.toml:3: service.port '1': is not known here; the keys are "
            "name, vip, fwmark, family, mode, scheduler, fallback, budget, shadow, flags, persistence, one_packet, "
            "mss, health, offload, quorum, timeouts, connections_max, slow_start, maglev_size, real",
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
            "f.toml:3: service.persistence.time '9': is not known here; "
            "did you mean timeout? the keys are timeout, netmask, quiescent, engine",
        ),
        (
            SERVICE + "one_packet = true\n",
            "f.toml:3: service.one_packet 'true': is not for tcp; it is for UDP and firewall marks",
        ),
        (
            SERVICE + '[service.health]\ntype = "http"\npath = "healthz"\n',
            "f.toml:5: service.health.path 'healthz': is not a path; write it like /healthz",
        ),
        (
            SERVICE + "[service.health]\ninterval = 0\n",
            "f.toml:4: service.health.interval '0': out of range; use 0.01 to 86400",
        ),
        (
            SERVICE + 'health = { type = "pong" }\n',
            "f.toml:3: service.health.type 'pong': is not known; "
            "did you mean ping? choose from tcp, http, https, udp, dns, smtp, imap, ftp, ping, script, file, agent",
        ),
        (
            SERVICE + 'health = { type = "http", expect = "(" }\n',
            "f.toml:3: service.health.expect '(': is no regular expression: missing ), unterminated subpattern at "
            "position 0",
        ),
        (
            SERVICE + 'health = { type = "dns", send = "x" }\n',
            "f.toml:3: service.health.send 'x': means nothing to dns; it is for tcp, udp, agent",
        ),
        (
            SERVICE + '[[service.health.check]]\nfall = 0\n[[service.health.check]]\ntype = "smtp"\nheaders = [1]\n',
            "f.toml:4: service.health.check.fall '0': out of range; use 1 to 1000\n"
            "f.toml:7: service.health.check.headers '[1]': is not a list of strings",
        ),
        (
            SERVICE + '[service.health]\ntype = "http"\n[[service.health.check]]\n',
            "f.toml:4: service.health.type 'http': stands beside checks of their own; give it to those that it is for",
        ),
        (
            SERVICE + '[service.quorum]\nsorry = "10.0.1.11"\n' + SERVER,
            "f.toml:4: service.quorum.sorry '10.0.1.11:80': is a real server of the service; name another one",
        ),
        (
            SERVICE + "quorum = { weight = 2, hysteresis = 2 }\n",
            "f.toml:3: service.quorum.hysteresis '2': out of range; use 0 to 1, less than weight",
        ),
        (
            SERVICE + "health = { fall = 1.5 }\n",
            "f.toml:3: service.health.fall '1.5': is not a whole number",
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
            SERVICE + SERVER + "weight = -1\n",
            "f.toml:5: service.real.weight '-1': out of range; use 0 to 2147483647, 0 takes no new connections",
        ),
        (SERVICE + SERVER + "weight = 1.5\n", "f.toml:5: service.real.weight '1.5': is not a whole number"),
        (
            SERVICE + '[[service.real]]\naddress = "10.0.1.11,weight=2"\n',
            "f.toml:4: service.real.address '10.0.1.11,weight=2': holds more than the address; write weight = N",
        ),
        (
            SERVICE + SERVER + '[[service.real]]\naddress = "web1:80"\n',
            "f.toml:6: service.real.address 'web1': is not an IP address; write it as 10.0.0.1 or [2001:db8::1]",
        ),
        (
            SERVICE + SERVER + '[[service.real]]\naddress = "[2001:db8::1]:80"\n',
            "f.toml:6: service.real.address '[2001:db8::1]:80': is not of the VIP's family (203.0.113.10); "
            "mode nat cannot mix IPv4 and IPv6",
        ),
        (
            SERVICE + SERVER + SERVER,
            "f.toml:6: service.real.address '10.0.1.11:80': "
            "is there twice; name each real server once and give it a weight",
        ),
        (
            SERVICE + '\nreal = [\n  { address = "10.0.1.11" },\n  { address = "10.0.1.12", weight = -1 },\n]\n',
            "f.toml:4: service.real.weight '-1': out of range; use 0 to 2147483647, 0 takes no new connections",
        ),
        (
            SERVICE + SERVER + SERVICE.replace("80", "81") + SERVER + SERVER + "weight = 'x'\n",
            "f.toml:10: service.real.address '10.0.1.11:81': "
            "is there twice; name each real server once and give it a weight\n"
            "f.toml:11: service.real.weight 'x': is not a whole number",
        ),
    ],
)
def test_a_mistake_is_named_with_its_place_and_its_fix(text: str, sentence: str) -> None:
    with pytest.raises(ConfigErrors) as error:
        loads(text, "f.toml")
    assert str(error.value) == sentence


BROKEN = """\
[director]
workers = 0
threads = 2
queue = "ten"

[timeouts]
tcp = 0
udp = 0

[[service]]
name = "web"
vip = "203.0.113.10:80"
mode = "proxy"
scheduler = "best"

  [[service.real]]
  address = "10.0.1.11,weight=2"

  [[service.real]]
  address = "web1"
  weight = -1

  [[service.real]]
  address = "10.0.1.12"

  [[service.real]]
  address = "10.0.1.12"
  weight = 2

[[service]]
name = "web"
vip = 80
mode = 1

[[service]]
vip = "203.0.113.10:http"
scheduler = "rr"
real = [{ address = "[::1" }, { weight = "2" }]

[[service]]
vip = "203.0.113.10:80/tcp"

[[service]]
vip = "203.0.113.11:80"
mode = "dr"
real = [{ address = "10.0.1.1:81" }, { address = "10.0.1.2:82" }, { address = "203.0.113.11:80" }]
"""


def test_one_reading_finds_every_mistake_in_the_order_of_the_lines() -> None:
    with pytest.raises(ConfigErrors) as error:
        loads(BROKEN, "f.toml")
    assert str(error.value).splitlines() == [
        "f.toml:2: director.workers '0': out of range; use 1 to 64",
        "f.toml:3: director.threads '2': is not known here; the keys are "
        "name, api, vip_dev, queue, workers, engine, diverter, firewall, on_failure, connections, dr_by, dr_mask, "
        "offload, metrics, log_format, script_user, notify, webhook, webhook_token, mail_to, mail_from, smtp, "
        "smtp_login",
        "f.toml:4: director.queue 'ten': is not a whole number",
        "f.toml:7: timeouts.tcp '0': out of range; use 1 to 2147483 seconds",
        "f.toml:8: timeouts.udp '0': out of range; use 1 to 2147483 seconds",
        "f.toml:13: service.mode 'proxy': is not known; choose from nat, dr, tun",
        f"f.toml:14: service.scheduler 'best': is not known; choose from {KNOWN}",
        "f.toml:17: service.real.address '10.0.1.11,weight=2': holds more than the address; write weight = N",
        "f.toml:20: service.real.address 'web1': is not an IP address; write it as 10.0.0.1 or [2001:db8::1]",
        "f.toml:21: service.real.weight '-1': out of range; use 0 to 2147483647, 0 takes no new connections",
        "f.toml:27: service.real.address '10.0.1.12:80': "
        "is there twice; name each real server once and give it a weight",
        "f.toml:31: service.name 'web': is there twice; give each service a name of its own",
        "f.toml:32: service.vip '80': is not a string in quotes",
        "f.toml:33: service.mode '1': is not a string in quotes",
        "f.toml:36: service.vip 'http': is not a whole number",
        "f.toml:38: service.real.address '[::1': is not [ADDRESS]:PORT; close the bracket before the port",
        "f.toml:38: service.real.weight '2': is not a whole number",
        "f.toml:38: service.real '': has no address; write address = \"ADDRESS:PORT\"",
        "f.toml:41: service.vip '203.0.113.10:80/tcp': is there twice; put all its real servers into one service",
        "f.toml:46: service.real.address '81': is not the service's; mode dr changes no port: use 80",
        "f.toml:46: service.real.address '82': is not the service's; mode dr changes no port: use 80",
        "f.toml:46: service.real.address '203.0.113.11:80': "
        "is the virtual service itself; name the address of a real server",
    ]


def test_a_file_is_written_as_one_writes_it() -> None:
    loaded = loads(WHOLE, "nfqlb.toml")
    assert dumps(loaded).startswith('[director]\nname = "web"\nvip_dev = "eth0"\n')
    assert '  { address = "10.0.1.11:8080", weight = 3 },\n' in dumps(loaded)
    assert dumps(loads("", "nfqlb.toml")) == "service = []\n"


SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.just("web"),
        "vip_dev": st.just("eth0"),
        "queue": st.integers(0, 99),
        "workers": st.integers(1, 64),
        "engine": st.sampled_from(ENGINES),
        "connections": st.integers(64, 9999),
    },
)


@settings(max_examples=EXAMPLES // 2)
@given(SETTINGS, intents())
def test_what_is_written_is_read_as_the_same(director: dict[str, Any], intent: Intent) -> None:
    text = dumps(Loaded(director, intent))
    assert loads(text, "f.toml") == (director, intent)
    assert dumps(loads(text, "f.toml")) == text


@settings(max_examples=EXAMPLES // 10)
@given(SETTINGS, intents())
def test_the_schema_takes_what_the_reader_takes(director: dict[str, Any], intent: Intent) -> None:
    VALIDATOR.validate(tomllib.loads(dumps(Loaded(director, intent))))


def test_the_schema_knows_the_keys_of_the_reader_and_a_word_about_each() -> None:
    Draft202012Validator.check_schema(schema())
    tables = schema()["properties"]
    service = tables["service"]["items"]
    shown = {
        "director": tables["director"],
        "ha": tables["ha"],
        "timeouts": tables["timeouts"],
        "answers": tables["answers"],
        "options": tables["options"],
        "sync": tables["sync"],
        "service": service,
        "persistence": service["properties"]["persistence"],
        "health": service["properties"]["health"],
        "quorum": service["properties"]["quorum"],
        "real": service["properties"]["real"]["items"],
    }
    read = {"director": DIRECTOR, "ha": HA, "timeouts": TIMEOUTS, "answers": ANSWERS, "options": OPTIONS}
    read |= {"sync": SYNC, "service": SERVICE_KEYS}
    read |= {"persistence": PERSISTENCE, "health": HEALTH, "quorum": QUORUM, "real": REAL}
    assert {name: list(table["properties"]) for name, table in shown.items()} == {n: list(k) for n, k in read.items()}
    wordless = [(name, key) for name, known in read.items() for key in known if (name, key) not in WORDS]
    assert wordless == [("service", "real")]
    assert WORDS.keys() == {(name, key) for name, known in read.items() for key in known if key != "real"}


@pytest.mark.parametrize(
    "text",
    [
        "name = 1\n",
        "[director]\nthreads = 2\n",
        "[director]\nworkers = 0\n",
        '[director]\nengine = "slow"\n',
        "[timeouts]\ntcp = 'soon'\n",
        "[answers]\nsloppy_tcp = 1\n",
        "[options]\nconn_reuse_mode = 4\n",
        '[[service]]\nmode = "nat"\n',
        SERVICE + "fwmark = 7\n",
        SERVICE + 'mode = "proxy"\n',
        SERVICE + "[[service.real]]\nweight = 1\n",
        SERVICE + SERVER + "weight = -1\n",
    ],
)
def test_the_schema_refuses_what_the_reader_refuses(text: str) -> None:
    assert not VALIDATOR.is_valid(tomllib.loads(text))
    with pytest.raises(ConfigErrors):
        loads(text, "f.toml")


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
    with suppress(ConfigErrors):
        loads(text, "f.toml")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("", "interface"),
        ('interface = "eth1"\nid = 256', "256"),
        ('interface = "eth1"\ngroup = "192.0.2.1"', "no multicast address"),
        ('interface = "eth1"\nthreshold = 50', "never reached"),
        ('interface = "eth1"\nkey_file = "sync.key"', "not an absolute path"),
        ('peers = ["192.0.2.1", "2001:db8::1"]', "two families"),
        ('peers = ["192.0.2.1"]\nrole = "slave"', "not known"),
    ],
)
def test_what_is_wrong_with_sync_is_named(line: str, problem: str) -> None:
    with pytest.raises(ConfigErrors) as refused:
        loads(f"[sync]\n{line}\n", "f.toml")
    assert problem in str(refused.value)
    assert str(refused.value).startswith("f.toml:")


def test_sync_is_written_as_it_was_read() -> None:
    text = '[sync]\nrole = "backup"\nid = 7\npeers = [\n    "192.0.2.1",\n]\n'
    assert dumps(loads(text, "f.toml")) == f"service = []\n\n{text}"


def test_of_very_many_mistakes_the_first_are_told_and_how_many_more_there_are() -> None:
    with pytest.raises(ConfigErrors) as refused:
        loads("[[service]]\nvip = 'x'\n" * 150, "file.toml")
    assert len(refused.value.errors) == 150
    *told, last = str(refused.value).splitlines()
    assert (len(told), last) == (100, "and 50 more")


def test_a_file_is_read_without_a_look_for_garbage_which_goes_on_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def collecting(*_: object, **__: object) -> None:
        seen.append(gc.isenabled())
        raise ZeroDivisionError

    monkeypatch.setattr(file, "loads", collecting)
    (tmp_path / "nfqlb.toml").write_text("")
    with pytest.raises(ZeroDivisionError):
        file.read(str(tmp_path / "nfqlb.toml"))
    assert (seen, gc.isenabled()) == ([False], True)
