"""The command line: what it prints, what it asks of the director, and the sentence and exit code of each refusal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nfqlb import __version__, runconfig
from nfqlb.api.client import Client
from nfqlb.cli import COMMANDS, main
from nfqlb.cli.env import Env
from nfqlb.config.schema import schema
from nfqlb.model import SCHEDULERS, Answers, Intent, OwnTimeouts, Persistence, Real, Service
from nfqlb.runconfig import RunConfig
from tests.unit.fakes import DNS, WEB, Command, FakeDirector

KNOWN = ", ".join(SCHEDULERS)

VIP, REAL = "203.0.113.10:80", "10.0.1.11:8080"
HEAVY = ("aiohttp", "asyncio", "http.client", "msgspec", "nfqlb._core", "nfqlb.model", "pathlib", "pyroute2", "ssl")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    command = Command(capsys, NFQLB_RUN_DIR="/nowhere")
    yield command
    for _, argv in command.executed:
        os.close(int(argv[-1]))


@pytest.fixture
def live(command: Command, client: Client) -> Command:
    """The command, where a director answers."""
    command.environ["NFQLB_API"] = client.path
    return command


def handed_over(command: Command) -> RunConfig:
    """What `nfqlb run` left for the holder."""
    [(program, argv)] = command.executed
    assert program == sys.executable
    assert argv[:-1] == [sys.executable, "-P", "-m", "nfqlb.holder", "--config-fd"]
    fd = int(argv[-1])
    assert os.get_inheritable(fd)
    return runconfig.decode(os.pread(fd, os.fstat(fd).st_size, 0))


# --- help


def test_help_lists_the_commands(command: Command) -> None:
    ended = command("--help")
    assert ended.code == 0
    assert [name in ended.out for name in COMMANDS] == [True] * len(COMMANDS)


def test_without_a_command_there_is_help_and_a_failure(command: Command) -> None:
    ended = command()
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("Usage: nfqlb ")


def test_the_version_is_told(command: Command) -> None:
    assert command("--version").out == f"nfqlb {__version__}\n"


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "ipvsadm"])
def test_a_command_helps_and_is_described_as_in_the_list(command: Command, name: str) -> None:
    ended = command(name, "--help")
    assert ended.code == 0
    assert ended.out.startswith(f"Usage: nfqlb {name} ")


@pytest.mark.parametrize(("group", "verb"), [(g, v) for g in ("service", "real") for v in ("add", "edit", "delete")])
def test_a_verb_helps(command: Command, group: str, verb: str) -> None:
    assert command(group, verb, "--help").out.startswith(f"Usage: nfqlb {group} {verb} [OPTIONS] VIP")


@pytest.mark.parametrize("args", [["--help"], ["show", "services", "--json"], ["show", "daemon"]])
def test_what_scripts_call_often_loads_little(client: Client, args: list[str]) -> None:
    code = f"""
import sys
from nfqlb.cli import main
try:
    main({args!r})
except SystemExit as ended:
    assert not ended.code, ended.code
print(sorted({set(HEAVY)!r} & set(sys.modules)), file=sys.stderr)
"""
    environ = {**os.environ, "NFQLB_API": client.path}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ, check=True)
    assert ran.stderr == "[]\n"


# --- show


def test_show_alone_shows_the_services(live: Command) -> None:
    ended = live("show")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == (
        "Prot LocalAddress:Port Scheduler Flags\n"
        "  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn\n"
        "TCP  203.0.113.10:80 wrr\n"
        "  -> 10.0.1.11:8080               nat     3      2          5\n"
        "  -> 10.0.1.12:8080               nat     1      1          2         1.5 ms\n"
        "  -> 10.0.1.13:80                 nat     0      0          0\n"
        "UDP  [2001:db8::10]:53 rr\n"
        "  -> [2001:db8:1::11]:53          nat     1      0          4\n"
    )


@pytest.mark.parametrize("what", ["services", "health", "connections", "stats", "reasons", "daemon"])
def test_every_list_is_text_or_the_json_of_the_api(live: Command, client: Client, what: str) -> None:
    assert json.loads(live("show", what, "--json").out) == getattr(client, what)()
    shown = live("show", what)
    assert shown.code == 0
    assert "\x1b" not in shown.out


def test_connections_can_be_limited(live: Command, director: FakeDirector) -> None:
    director.rows = [(6, b"\x20" * 16, port, b"\x20" * 16, 80, b"\x20" * 16, 80, 1, 9, False) for port in range(1, 9)]
    assert len(json.loads(live("show", "connections", "--json").out)["connections"]) == 8
    assert len(json.loads(live("show", "connections", "--json", "--limit", "3").out)["connections"]) == 3


# --- drain


@pytest.mark.parametrize(
    ("end", "args", "code", "last"),
    [
        ("empty", ["--timeout", "2m"], 0, "10.0.1.11:8080: its last connection has ended; it is deleted"),
        ("empty", ["--keep"], 0, "10.0.1.11:8080: its last connection has ended; it is still there"),
        ("deadline", [], 1, "10.0.1.11:8080: time was up, 2 connections were left; it is deleted"),
        ("called off", [], 1, "10.0.1.11:8080: called off, its weight is no longer 0; it is still there"),
    ],
)
def test_a_drain_is_waited_for(
    live: Command,
    director: FakeDirector,
    monkeypatch: pytest.MonkeyPatch,
    end: str,
    args: list[str],
    code: int,
    last: str,
) -> None:
    monkeypatch.setattr("nfqlb.cli.drain.POLL", 0.0)
    director.draining.end = end
    ended = live("drain", VIP, REAL, *args)
    seconds = 120 if args[:1] == ["--timeout"] else 300
    assert ended.out.splitlines() == [
        f"10.0.1.11:8080: 1 active and 2 inactive connections, {seconds} s left",
        f"10.0.1.11:8080: 0 active and 2 inactive connections, {seconds} s left",
        last,
    ]
    assert (ended.code, ended.err) == (code, "")
    assert director.intent().services[0].reals[0] == Real("10.0.1.11", 8080, 0)


def test_a_drain_need_not_be_waited_for(live: Command) -> None:
    ended = live("real", "drain", VIP, REAL, "--no-wait", "--timeout", "1h")
    assert ended == (0, "10.0.1.11:8080: 1 active and 2 inactive connections, 3600 s left\n", "")


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        ([VIP, REAL, "--timeout", "soon"], 2, "--timeout 'soon': is not a time; write 90, 90s, 5m, 2h or 1d"),
        ([VIP, REAL, "--timeout", "31d"], 2, "timeout '2678400.0': out of range"),
        ([VIP, "10.0.1.99"], 1, "has no real server 10.0.1.99:80"),
    ],
)
def test_a_drain_that_cannot_be(live: Command, args: list[str], code: int, words: str) -> None:
    ended = live("drain", *args)
    assert (ended.code, ended.out) == (code, "")
    assert words in ended.err


# --- which director


@pytest.mark.parametrize(
    ("args", "environ", "socket"),
    [
        ([], {}, "/run/nfqlb/main/api.sock"),
        ([], {"NFQLB_NAME": "web"}, "/run/nfqlb/web/api.sock"),
        (["--name", "dns"], {"NFQLB_NAME": "web", "NFQLB_RUN_DIR": "/nowhere"}, "/nowhere/dns/api.sock"),
        (["--name", "dns"], {"NFQLB_API": "/nowhere/a.sock"}, "/nowhere/a.sock"),
        (["--api", "/nowhere/b.sock"], {"NFQLB_API": "/nowhere/a.sock", "NFQLB_NAME": "web"}, "/nowhere/b.sock"),
    ],
)
def test_the_director_is_found_by_option_then_environment_then_name(
    command: Command, args: list[str], environ: dict[str, str], socket: str
) -> None:
    command.environ = environ
    ended = command("show", *args)
    assert (ended.code, ended.out) == (6, "")
    assert ended.err == (
        f"nfqlb: no director answers on {socket}; start one with `nfqlb run`, or name its socket with --api\n"
    )


# --- changes


@pytest.mark.parametrize(
    ("args", "services"),
    [
        (["service", "add", "203.0.113.11:443"], (WEB, DNS, Service("203.0.113.11", 443))),
        (
            [
                "service",
                "add",
                "[::9]:53/udp",
                "--mode",
                "nat",
                "--scheduler",
                "rr",
                "--real",
                "::1",
                "--real",
                "[::2]:5353,weight=0",
            ],
            (WEB, DNS, Service("::9", 53, "udp", "nat", "rr", (Real("::1", 53), Real("::2", 5353, 0)))),
        ),
        (["service", "edit", VIP, "--scheduler", "lc"], (msgspec.structs.replace(WEB, scheduler="lc"), DNS)),
        (
            ["real", "add", VIP, "10.0.1.14,mode=tun,weight=2"],
            (msgspec.structs.replace(WEB, reals=(*WEB.reals, Real("10.0.1.14", 80, 2, mode="tun"))), DNS),
        ),
        (
            ["service", "edit", "[2001:db8::10]:53/udp", "--mode", "dr", "--label", "names"],
            (WEB, msgspec.structs.replace(DNS, mode="dr", name="names")),
        ),
        (
            ["service", "edit", VIP, "--mss", "1400", "--if-revision", "1"],
            (msgspec.structs.replace(WEB, mss=1400), DNS),
        ),
        (["service", "edit", VIP, "--slow-start", "5m"], (msgspec.structs.replace(WEB, slow_start=300), DNS)),
        (["service", "add", "[::9]:53", "--slow-start", "9"], (WEB, DNS, Service("::9", 53, slow_start=9))),
        (
            ["service", "edit", VIP, "--scheduler", "mh", "--maglev-size", "65537"],
            (msgspec.structs.replace(WEB, scheduler="mh", maglev_size=65537), DNS),
        ),
        (
            ["service", "add", "[::9]:53", "--scheduler", "mh", "--maglev-size", "251"],
            (WEB, DNS, Service("::9", 53, scheduler="mh", maglev_size=251)),
        ),
        (["service", "edit", VIP, "--no-offload"], (msgspec.structs.replace(WEB, offload=False), DNS)),
        (
            ["service", "add", "[::9]:53", "--mss", "1220"],
            (WEB, DNS, Service("::9", 53, mss=1220)),
        ),
        (
            ["service", "edit", "[2001:db8::10]:53/udp", "--timeout", "udp=1m", "--connections-max", "9"],
            (WEB, msgspec.structs.replace(DNS, timeouts=OwnTimeouts(udp=60), connections_max=9)),
        ),
        (
            ["service", "add", "[::9]:53", "--timeout", "tcp=5", "--timeout", "tcp_close=1"],
            (WEB, DNS, Service("::9", 53, timeouts=OwnTimeouts(5, tcp_close=1))),
        ),
        (["service", "delete", "[2001:DB8::10]:53/udp"], (WEB,)),
        (
            ["real", "add", "[2001:db8::10]:53/udp", "2001:db8:1::12,weight=2"],
            (WEB, msgspec.structs.replace(DNS, reals=(*DNS.reals, Real("2001:db8:1::12", 53, 2)))),
        ),
        (
            ["real", "edit", "[2001:db8::10]:53/udp", "[2001:db8:1::11]:53", "--weight", "0"],
            (WEB, msgspec.structs.replace(DNS, reals=(Real("2001:db8:1::11", 53, 0),))),
        ),
        (["real", "delete", VIP, REAL], (msgspec.structs.replace(WEB, reals=WEB.reals[1:]), DNS)),
    ],
)
def test_a_change_is_made_in_silence(
    live: Command, director: FakeDirector, args: list[str], services: tuple[Service, ...]
) -> None:
    assert live(*args) == (0, "", "")
    assert director.intent() == Intent(services)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        (["--persistent", "60"], Persistence(60, 96, "move", "sip")),
        (["--netmask", "64"], Persistence(600, 64, "move", "sip")),
        (["--quiescent", "keep"], Persistence(600, 96, "keep", "sip")),
        (["--persistence-engine", "", "--scheduler", "lc"], Persistence(600, 96, "move")),
        (["--persistent", "0"], None),
        (["--scheduler", "lc"], Persistence(600, 96, "move", "sip")),
    ],
)
def test_an_edit_of_persistence_changes_what_it_names(
    live: Command, director: FakeDirector, options: list[str], kept: Persistence | None
) -> None:
    vip = ("[::9]:5060/udp", "--persistent", "600", "--netmask", "96", "--quiescent", "move")
    assert live("service", "add", *vip, "--persistence-engine", "sip") == (0, "", "")
    assert live("service", "edit", vip[0], *options) == (0, "", "")
    assert director.intent().services[-1].persistence == kept


@pytest.mark.parametrize("verb", ["edit", "add"])
@pytest.mark.parametrize(("option", "value"), [("netmask", "24"), ("persistence-engine", "sip"), ("quiescent", "move")])
def test_without_persistence_nothing_of_it_can_be_said(live: Command, verb: str, option: str, value: str) -> None:
    sentence = f"{option} '{value}': means nothing without persistence; give --persistent TIME, too"
    for more in ((), ("--scheduler", "rr")) if verb == "add" else ((), ("--scheduler", "rr"), ("--persistent", "0")):
        assert live("service", verb, VIP, f"--{option}", value, *more) == (2, "", f"nfqlb: {sentence}\n")


def test_datagrams_are_scheduled_one_by_one_from_now_on_or_no_more(live: Command, director: FakeDirector) -> None:
    for option, on in (("--one-packet", True), ("--no-one-packet", False)):
        assert live("service", "edit", "[2001:db8::10]:53/udp", option) == (0, "", "")
        assert director.intent().services[-1].one_packet is on


@pytest.mark.parametrize(
    ("args", "code", "sentence"),
    [
        (
            ["service", "add", VIP],
            1,
            "service 203.0.113.10:80/tcp: exists already; change it with `nfqlb service edit`",
        ),
        (
            ["service", "edit", VIP, "--scheduler", "best"],
            2,
            f"scheduler 'best': is not known; choose from {KNOWN}",
        ),
        (
            ["service", "delete", "1.2.3.4:80"],
            1,
            "service 1.2.3.4:80/tcp: there is none; `nfqlb show` lists the services",
        ),
        (
            ["real", "add", VIP, REAL],
            1,
            "service 203.0.113.10:80/tcp: has the real server 10.0.1.11:8080 already; change it with `nfqlb real edit`",
        ),
        (
            ["real", "add", VIP, VIP],
            2,
            f"real '{VIP}': is the virtual service itself; name the address of a real server",
        ),
        (
            ["real", "edit", VIP, REAL, "--weight", "-1"],
            2,
            "weight '-1': out of range; use 0 to 2147483647, 0 takes no new connections",
        ),
        (
            ["real", "delete", VIP, "10.0.1.11"],
            1,
            "service 203.0.113.10:80/tcp: has no real server 10.0.1.11:80; `nfqlb show` lists them",
        ),
    ],
)
def test_what_the_director_refuses_is_said_in_its_words(
    live: Command, director: FakeDirector, args: list[str], code: int, sentence: str
) -> None:
    assert live(*args) == (code, "", f"nfqlb: {sentence}\n")
    assert director.revision == 1


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["frob"], "no such command 'frob'; see `nfqlb --help`"),
        (["shwo"], "no such command 'shwo'. Did you mean show? See `nfqlb --help`"),
        (["service", "ad"], "no such command 'ad'. Did you mean 'add'? See `nfqlb service --help`"),
        (["--frob"], "no such option '--frob'; see `nfqlb --help`"),
        (
            ["show", "rules"],
            "invalid value for '[WHAT]': "
            "'rules' is not one of 'services', 'health', 'schedulers', 'connections', 'stats', 'reasons', 'daemon'; "
            "see `nfqlb show --help`",
        ),
        (
            ["show", "connections", "--limit", "-1"],
            "invalid value for '--limit': -1 is not in the range x>=0; see `nfqlb show --help`",
        ),
        (["service", "add"], "missing argument 'VIP'; see `nfqlb service add --help`"),
        (["service", "add", "web:80"], "vip 'web': is not an IP address; write it as 10.0.0.1 or [2001:db8::1]"),
        (["service", "add", VIP, "--real", "10.0.1.11:x"], "real port 'x': is not a whole number"),
        (
            ["service", "edit", VIP],
            "edit '': says nothing to change; "
            "give --scheduler or --fallback or --budget or --shadow or --flag or --persistent or --netmask or "
            "--persistence-engine or --quiescent or --one-packet or --mss or --offload or --mode or "
            "--label or --timeout or --connections-max or --slow-start or --maglev-size",
        ),
        (
            ["service", "delete", "203.0.113.10"],
            "vip '203.0.113.10': has no port; write ADDRESS:PORT, as in 203.0.113.10:80",
        ),
        (
            ["real", "edit", VIP, REAL],
            "edit '': says nothing to change; give --weight or --upper or --lower or --mode or --agent-port",
        ),
        (
            ["real", "edit", VIP, REAL, "--weight", "x"],
            "invalid value for '--weight': 'x' is not a valid integer; see `nfqlb real edit --help`",
        ),
        (["real", "add", VIP, "web1"], "real 'web1': is not an IP address; write it as 10.0.0.1 or [2001:db8::1]"),
    ],
)
def test_wrong_usage_is_one_sentence_before_anybody_is_asked(command: Command, args: list[str], sentence: str) -> None:
    assert command(*args) == (2, "", f"nfqlb: {sentence}\n")


# --- run


def test_run_becomes_the_holder_with_all_that_was_asked(command: Command) -> None:
    vips = ("--vip", VIP, "--vip", "203.0.113.10:443")
    ended = command(
        "run", "--mode", "nat", *vips, "--real", "10.0.1.11", "--real", "10.0.1.12,weight=2", "--scheduler", "rr"
    )
    assert ended == (0, "", "")
    ends = [tuple(Real(f"10.0.1.{host}", port, weight) for host, weight in ((11, 1), (12, 2))) for port in (80, 443)]
    assert handed_over(command) == RunConfig(
        api="/nowhere/main/api.sock",
        origin="command line",
        intent=Intent(
            (
                Service("203.0.113.10", 80, scheduler="rr", reals=ends[0]),
                Service("203.0.113.10", 443, scheduler="rr", reals=ends[1]),
            )
        ),
    )


def test_run_takes_every_setting(command: Command) -> None:
    settings = "--workers 2 --vip-dev lo --name web --queue 7 --api a.sock --engine reference"
    settings += " --diverter iptables --firewall leave --connections 1000 --restore --dr-by route --dr-mask 0xff0"
    command("run", *settings.split())
    assert handed_over(command) == RunConfig(
        api=os.path.abspath("a.sock"),
        name="web",
        restore=True,
        origin="saved state",
        workers=2,
        vip_dev="lo",
        queue=7,
        engine="reference",
        diverter="iptables",
        firewall="leave",
        connections=1000,
        dr_by="route",
        dr_mask=0xFF0,
    )


def test_run_takes_the_answers_of_its_services(command: Command) -> None:
    command("run", *f"--vip {VIP} --no-server reset --no-connection drop --sloppy-tcp".split())
    intent = handed_over(command).intent
    assert intent is not None
    assert intent.answers == Answers("reset", "drop", True)


def test_run_with_nothing_starts_empty(command: Command) -> None:
    command("run")
    assert handed_over(command) == RunConfig(api="/nowhere/main/api.sock")


FILE = """
[director]
name = "web"
workers = 2
firewall = "leave"
[[service]]
vip = "203.0.113.10:80"
"""


@pytest.mark.parametrize(
    ("args", "environ", "changed"),
    [
        ([], {}, {}),
        (["--workers", "3"], {}, {"workers": 3}),
        ([], {"NFQLB_NAME": "env"}, {"name": "env", "api": "/nowhere/env/api.sock"}),
        (["--name", "arg"], {"NFQLB_NAME": "env"}, {"name": "arg", "api": "/nowhere/arg/api.sock"}),
        ([], {"NFQLB_API": "/a.sock"}, {"api": "/a.sock"}),
    ],
)
def test_the_command_line_wins_over_the_environment_and_that_over_the_file(
    command: Command, tmp_path: Path, args: list[str], environ: dict[str, str], changed: dict[str, Any]
) -> None:
    file = tmp_path / "nfqlb.toml"
    file.write_text(FILE)
    command.environ.update(environ)
    command("run", "--config", str(file), *args)
    expected = RunConfig(
        api="/nowhere/web/api.sock",
        name="web",
        origin=str(file),
        workers=2,
        firewall="leave",
        intent=Intent((Service("203.0.113.10", 80),)),
    )
    assert handed_over(command) == msgspec.structs.replace(expected, **changed)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ("--vip 203.0.113.10", "vip '203.0.113.10': has no port; write ADDRESS:PORT, as in 203.0.113.10:80"),
        ("--vip 203.0.113.10:99999", "vip port '99999': out of range; use 0 to 65535"),
        (
            f"--vip {VIP} --vip {VIP}/tcp",
            "vip '203.0.113.10:80/tcp': is there twice; put all its real servers into one service",
        ),
        (
            f"--vip {VIP} --real {VIP}",
            f"real '{VIP}': is the virtual service itself; name the address of a real server",
        ),
        (
            f"--vip {VIP} --real 10.0.1.11,weight=-1",
            "weight '-1': out of range; use 0 to 2147483647, 0 takes no new connections",
        ),
        (
            f"--vip {VIP} --real ::1",
            "real '[::1]:80': is not of the VIP's family (203.0.113.10); mode nat cannot mix IPv4 and IPv6",
        ),
        (
            f"--vip {VIP} --scheduler best",
            f"scheduler 'best': is not known; choose from {KNOWN}",
        ),
        (f"--vip {VIP} --mode proxy", "mode 'proxy': is not known; choose from nat, dr, tun"),
        (
            "--real 10.0.1.11 --real 10.0.1.12",
            "--real '10.0.1.11, 10.0.1.12': belongs to a --vip; add --vip ADDRESS:PORT",
        ),
        ("--scheduler rr", "--scheduler 'rr': belongs to a --vip; add --vip ADDRESS:PORT"),
        ("--mode nat", "--mode 'nat': belongs to a --vip; add --vip ADDRESS:PORT"),
        (
            f"--vip {VIP} --restore",
            "services '--vip and --restore': are given together; choose one place that the services come from",
        ),
        (
            f"--vip {VIP} --config a.toml",
            "services '--vip and --config': are given together; choose one place that the services come from",
        ),
        (
            f"--vip {VIP} --config a.toml --restore",
            "services '--vip and --config and --restore': are given together; "
            "choose one place that the services come from",
        ),
        ("--config /nowhere/a.toml", "config '/nowhere/a.toml': cannot be read: No such file or directory"),
        ("--name a/b", "name 'a/b': cannot be used; use a letter, then letters, digits and '-', at most 15 in all"),
        ("--workers 0", "workers '0': out of range; use 1 to 64"),
        ("--workers x", "invalid value for '--workers': 'x' is not a valid integer; see `nfqlb run --help`"),
        ("--queue 65535", "queue '65535': out of range; use 0 to 65532"),
        ("--vip-dev a/b", "vip_dev 'a/b': is not the name of a network device; see `ip link`"),
        ("--dr-by mark", "dr_by 'mark': is not known; choose from auto, frame, route"),
        ("--dr-mask ff", "--dr-mask 'ff': is not a number; write it like 0xff000000"),
        ("--dr-mask 0", "dr_mask '0x0': is no block of bits of a 32-bit mark; write it like 0xff000000"),
        ("--engine slow", "engine 'slow': is not known; choose from fast, reference"),
        ("--diverter pf", "diverter 'pf': is not known; choose from auto, nft, iptables"),
        ("--firewall drop", "firewall 'drop': is not known; choose from accept, leave"),
        (
            f"--vip {VIP} --no-server rst",
            "no_server 'rst': is not known; did you mean reset? choose from icmp, reset, drop",
        ),
        ("--no-connection reset", "--no-connection 'reset': belongs to a --vip; add --vip ADDRESS:PORT"),
        ("--connections 0", "connections '0': out of range; use 64 to 67108864"),
        ("extra", "got unexpected extra argument (extra); see `nfqlb run --help`"),
    ],
)
@pytest.mark.parametrize("uid", [0, 1000], ids=["root", "user"])
def test_run_refuses_bad_arguments_whoever_asks(command: Command, args: str, sentence: str, uid: int) -> None:
    command.uid = uid
    assert command("run", *args.split()) == (2, "", f"nfqlb: {sentence}\n")
    assert not command.executed


def test_run_needs_root(command: Command) -> None:
    command.uid = 1000
    assert command("run", "--vip", VIP) == (
        3,
        "",
        "nfqlb: `nfqlb run` needs root: it changes packet rules of the kernel; use sudo or a root shell\n",
    )
    assert not command.executed


def test_a_file_that_is_not_text_is_refused(command: Command, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b"\xff\xfe")
    assert command("run", "--config", str(tmp_path / "a.toml")) == (
        2,
        "",
        f"nfqlb: config '{tmp_path / 'a.toml'}': is not UTF-8 text\n",
    )


def test_every_mistake_in_a_file_is_told_at_once(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('[director]\nworkers = 0\n[[service]]\nvip = "203.0.113.10"\n')
    assert command("run", "--config", str(file)) == (
        2,
        "",
        f"nfqlb: {file}:2: director.workers '0': out of range; use 1 to 64\n"
        f"nfqlb: {file}:4: service.vip '203.0.113.10': has no port; write ADDRESS:PORT, as in 203.0.113.10:80\n",
    )
    assert not command.executed


def test_the_schema_of_the_file_is_printed(command: Command) -> None:
    assert json.loads(command("schema").out) == schema()


ODD = "\udcff"  # what Python makes of the byte ff


@pytest.mark.parametrize(
    "args",
    [
        ["apply", f"{ODD}.toml"],
        ["run", "--vip-dev", ODD],
        ["service", "add", VIP, "--label", ODD],
        ["set", f"options.hash_key={ODD}"],
        ["real", "maint", VIP, REAL, "--why", ODD],
    ],
)
def test_an_argument_that_is_no_text_is_refused(command: Command, args: list[str]) -> None:
    ended = command(*args)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("nfqlb: argument '")
    assert ended.err.endswith("': is not UTF-8 text\n")


@pytest.mark.parametrize(("to", "why"), [(">&-", "Bad file descriptor"), ("> /dev/full", "No space left on device")])
@pytest.mark.parametrize("words", ["show", "schema", "export", "ipvsadm -Ln"])
def test_a_standard_output_that_takes_nothing_is_one_sentence(client: Client, words: str, to: str, why: str) -> None:
    line = f"exec {sys.executable} -c 'from nfqlb.cli import main; main()' {words} {to}"
    ended = subprocess.run(
        ["sh", "-c", line], env={"NFQLB_API": client.path}, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == f"nfqlb: the standard output takes no more: {why}\n"


def test_ctrl_c_ends_with_130() -> None:
    def interrupted(_: str, argv: list[str]) -> None:
        os.close(int(argv[-1]))
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        main(["run"], Env({}, lambda: 0, interrupted))
    assert ended.value.code == 130


# --- completion


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("nfqlb dr", ["drain"]),
        ("nfqlb service edit ", ["203.0.113.10:80/tcp", "[2001:db8::10]:53/udp"]),
        ("nfqlb service delete [", ["[2001:db8::10]:53/udp"]),
        ("nfqlb real edit 203.0.113.10:80 10.0.1.12", ["10.0.1.12:8080"]),
        ("nfqlb drain [2001:db8::10]:53/udp ", ["[2001:db8:1::11]:53"]),
        ("nfqlb drain nonsense ", []),
        ("nfqlb service add ", []),
        ("nfqlb show re", ["reasons"]),
    ],
)
def test_a_shell_completes_commands_and_what_there_is(client: Client, words: str, found: list[str]) -> None:
    environ = {"_NFQLB_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    done = subprocess.run(
        [sys.executable, "-c", "from nfqlb.cli import main; main()"],
        env={**os.environ, "NFQLB_API": client.path, **environ},
        capture_output=True,
        text=True,
        check=True,
    )
    assert [line.partition(",")[2] for line in done.stdout.split()] == found


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_what_a_shell_needs_is_printed(command: Command, shell: str) -> None:
    ended = command("completion", shell)
    assert (ended.code, "_NFQLB_COMPLETE" in ended.out) == (0, True)
