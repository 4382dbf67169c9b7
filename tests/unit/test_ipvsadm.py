"""`nfqlb ipvsadm` against what ipvsadm 1.31 printed on a kernel with IPVS (tests/oracle/ipvsadm.txt).

Strategy: every command of the recording that is ipvsadm's runs in its order against one director; its lines and exit
codes must be those of the recording. Behind the mark of the traffic, digits that traffic and time make are masked, and
so is the order of connections, which is that of a hash table.
"""

from __future__ import annotations

import io
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from nfqlb.api.client import Client
from nfqlb.cli.env import Env
from nfqlb.cli.ipvsadm import main
from nfqlb.config import ipvsadm as language
from nfqlb.config.ipvsadm import Fault, parse, scaled
from nfqlb.model import Intent, Service
from tests.unit.fakes import Command, Drained, FakeDirector, serving

RECORDING = Path(__file__).parents[1] / "oracle/ipvsadm.txt"
PIPED = "ipvsadm -S -n | sed -n 1,3p"
ROUND = [
    "-A -t 10.99.0.1:80 -s wrr -p 77 -M 255.255.0.0",
    "-a -t 10.99.0.1:80 -r 10.2.1.1:8080 -m -w 3 -x 100 -y 50",
    "-a -t 10.99.0.1:80 -r 10.2.1.2:80 -g -w 0",
    "-A -u 10.99.0.1:53 -s rr -o",
    "-A -t [fd99::1]:0 -s sh -p 360 -M 64 -b sh-port",
    "-a -t [fd99::1]:0 -r [fd02::1]:0 -i -w 1 --tun-type ipip",
    "-A -f 7 -s mh -b mh-fallback,mh-port",
    "-A -f 8 -s hrw -b hrw-port",
    "-A -f 8 -6 -s wlc",
    "-a -f 8 -6 -r [fd02::1]:0 -g -w 1",
]


class Empty(FakeDirector):
    def __init__(self) -> None:
        super().__init__()
        self.state = msgspec.structs.replace(self.state, intent=Intent())
        self.counted: dict[int, tuple[int, int, int, int, int, int, int]] = {}

    def drained(self) -> Drained:
        return Drained({}, self.counted, 0, 0)

    def slots(self) -> dict:  # type: ignore[type-arg]
        ends = [(service.key, real.address, real.port) for service in self.intent().services for real in service.reals]
        return {end: slot for slot, end in enumerate(ends)}


@pytest.fixture
def director() -> Empty:
    return Empty()


@pytest.fixture
def api(director: Empty, tmp_path: Path) -> Iterator[Client]:
    with serving(director, tmp_path / "api.sock") as client:
        yield client


class Ipvsadm:
    def __init__(self, api: Client, capsys: pytest.CaptureFixture[str]) -> None:
        self.env, self.capsys = Env({"NFQLB_API": api.path}), capsys

    def __call__(self, *args: str) -> tuple[int, str, str]:
        code = main(args, self.env)
        return code, *self.capsys.readouterr()


@pytest.fixture
def ipvsadm(api: Client, capsys: pytest.CaptureFixture[str]) -> Ipvsadm:
    return Ipvsadm(api, capsys)


def recorded() -> list[tuple[str, list[str], bool]]:
    """Each command, its lines, and whether traffic came before it."""
    found: list[tuple[str, list[str], bool]] = []
    traffic = False
    for line in RECORDING.read_text().splitlines():
        if line.startswith("## traffic"):
            traffic = True
        if line.startswith("$ "):
            found.append((line[2:], [], traffic))
        elif found and not line.startswith(("#", "10.99.0.", "chosen ")):
            found[-1][1].append(line)
    return found


def masked(line: str) -> str:
    """Without counters: what stands behind the address of a row."""
    row = re.match(r"(  -> \S+ +(?:(?:Masq|Route|Tunnel) +\d+)?|(?:TCP|UDP|FWM)  \S+(?= +\d))", line)
    return row.group(1).rstrip() if row else line


def test_every_recorded_command_prints_what_was_recorded(ipvsadm: Ipvsadm) -> None:
    compared, left = 0, []
    for text, lines, traffic in recorded():
        if not text.startswith("ipvsadm") or (traffic and "-Lnc" in text):
            left.append(text)
            continue
        got: list[str] = []
        code = 0
        for part in text.replace(" | sed -n 1,3p", "").split("; "):
            if part.startswith("echo"):
                got.append(f"rc={code}")
                continue
            code, out, err = ipvsadm(*shlex.split(part)[1:])
            got += out.splitlines()
            tail = err.splitlines()
            got += tail if "echo" not in text else []
            errors = tail if "echo" in text else []
            if errors:
                lines = lines.copy()
                assert errors == [lines.pop()], text
        if PIPED in text:
            got = got[:3]
        got = [re.sub(r" -x 100 -y 50$", "", line) for line in got]  # the original forgets thresholds
        if traffic:
            got, lines = [masked(line) for line in got], [masked(line) for line in lines]
        assert got == lines, text
        compared += 1
    assert (compared, len(left)) == (59, 15)
    assert [text for text in left if text.startswith("ipvsadm")] == ["ipvsadm -Lnc", "ipvsadm -Lnc --persistent-conn"]


def test_connections_are_printed_as_recorded() -> None:
    """The two listings that the director cannot have without packets: each row is made of its own fields again."""
    rows = next(lines for text, lines, traffic in recorded() if traffic and text == "ipvsadm -Lnc")
    made = []
    for row in rows[2:]:
        protocol, expire, state, client, virtual, destination = row.split()
        minutes, seconds = expire.split(":")
        made.append(
            {
                "protocol": protocol.lower(),
                "expires": int(minutes) * 60 + int(seconds),
                "state": state,
                "client": client,
                "virtual": virtual,
                "destination": destination,
            }
        )
    assert len(made) == 29
    assert language.connections(made, set(), language.Names(True)) == rows


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('-A -t 10.99.0.2:80 -s "rr', "line 2 of what is to be restored: No closing quotation"),
        ("-A -t 10.99.0.2:80 -s \udcff", "argument '?': is not UTF-8 text"),
        ("-A -t 10.99.0.2:\udcff", "illegal virtual server address[:port] specified"),
        ("-R", "a saved table cannot restore another one"),
    ],
)
def test_a_table_with_a_line_that_cannot_be_read_restores_nothing(
    ipvsadm: Ipvsadm, monkeypatch: pytest.MonkeyPatch, line: str, fault: str
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"-A -t 10.99.0.1:80\n{line}\n-A -t 10.99.0.3:80\n"))
    assert ipvsadm("-R") == (2, "", f"{fault}\n")
    assert "10.99.0" not in ipvsadm("-Ln")[1]


@pytest.mark.parametrize("port", ["٣", "8_0", "65536", "9" * 5000])
def test_a_number_is_written_in_ascii_digits(port: str) -> None:
    with pytest.raises(Fault, match="illegal virtual server address"):
        parse(["-A", "-t", f"10.99.0.1:{port}"])
    with pytest.raises(Fault, match="illegal weight"):
        parse(["-a", "-t", "10.99.0.1:80", "-r", "10.2.1.1", "-w", port])


def test_what_is_saved_restores_to_the_same(ipvsadm: Ipvsadm, monkeypatch: pytest.MonkeyPatch) -> None:
    for line in ROUND:
        assert ipvsadm(*line.split()) == (0, "", "")
    saved = ipvsadm("-S", "-n")[1]
    assert saved.splitlines() == ROUND
    ipvsadm("-C")
    assert ipvsadm("-S", "-n")[1] == ""
    monkeypatch.setattr("sys.stdin", io.StringIO("# saved\n" + saved.replace("-A -f 7", "ipvsadm -A -f 7")))
    assert ipvsadm("-R") == (0, "", "")
    assert ipvsadm("-S", "-n")[1] == saved


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("-Q", 255, "Try `ipvsadm -h' or 'ipvsadm --help' for more information."),
        ("-n", 255, "Try `ipvsadm -h' or 'ipvsadm --help' for more information."),
        ("-A -s rr", 2, "You need to supply the 'service-address' option for the 'add-service' command"),
        ("-D -t 10.0.0.1:80 -s rr", 2, "Illegal 'scheduler' option with the 'delete-service' command"),
        ("-C -n", 2, "Illegal 'numeric' option with the 'flush' command"),
        ("-L -c --timeout", 2, "The option 'timeout' conflicts with the 'connection' option in the 'list' command"),
        ("-L -c --stats", 2, "options conflicts in the list command"),
        ("-A -t 10.0.0.1:0", 2, "Zero port specified for non-persistent service"),
        ("-A -t 10.0.0.1:80 -o", 2, "One-Packet Scheduling is only for UDP virtual services"),
        ("-A -t 10.0.0.1:80 -t 10.0.0.2:80", 2, "multiple 'service-address' options specified"),
        ("-A -t 10.0.0.1:99999", 2, "illegal virtual server address[:port] specified"),
        ("-A -t 10.0.0.1:80 -p 0", 2, "invalid timeout value `0' specified"),
        ("-A -t 10.0.0.1:80 -p -M 255.0.255.0", 2, "illegal virtual server persistent mask specified"),
        ("-A -t 10.0.0.1:80 -s sh -b nosuch", 2, "invalid scheduler flag `nosuch'"),
        ("-A -t 10.0.0.1:80 -s sh -b mh-port", 2, "incompatible scheduler flag `mh-port'"),
        ("-A -t 10.0.0.1:80 -s mh -b hrw-port", 2, "incompatible scheduler flag `hrw-port'"),
        ("-A -u 10.0.0.1:80 -p --pe nosuch", 255, "Scheduler or persistence engine not found"),
        ("-A -f 0", 2, "invalid fwmark value `0' specified"),
        ("-A -6 -f 1", 2, "-6 used before -f"),
        ("-a -t 10.0.0.1:80 -r [fd00::1]:80 -m", 2, "Different address family is allowed only for tunneling servers"),
        ("-a -t 10.0.0.1:80 -r 10.0.0.2 -i --tun-type gue", 255, "tunnel type gue is not supported by nfqlb"),
        ("--set 1 2", 2, "--set option requires 3 timeout values"),
        ("-C more", 2, "unexpected argument more"),
        ("-A -t 10.0.0.1:80 -D", 2, "invalid option `-D'"),
        ("--stop-daemon backup", 255, "No daemon is running"),
        ("--start-daemon nobody", 2, "illegal start-daemon parameter specified"),
    ],
)
def test_what_is_wrong_is_said_as_ipvsadm_does(ipvsadm: Ipvsadm, text: str, code: int, says: str) -> None:
    assert ipvsadm(*text.split()) == (code, "", says + "\n")


def test_it_helps_in_its_own_way(capsys: pytest.CaptureFixture[str]) -> None:
    ended = Command(capsys)("ipvsadm", "--help")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith(f"{language.VERSION}\nUsage:\n  ipvsadm -A|E ")


def test_the_name_makes_it_the_command(api: Client, tmp_path: Path) -> None:
    name = tmp_path / "ipvsadm"
    name.symlink_to(Path(sys.executable).with_name("nfqlb"))
    ended = subprocess.run([name, "-L", "--timeout"], env={"NFQLB_API": api.path}, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "Timeout (tcp tcpfin udp): 900 120 300\n"), ended.stderr


def test_without_a_director_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-Ln"], Env({"NFQLB_API": str(tmp_path / "none")})) == 2
    assert capsys.readouterr().err.startswith("Can't initialize ipvs: no director answers on ")


def test_a_timeout_of_nought_is_kept(ipvsadm: Ipvsadm) -> None:
    ipvsadm("--set", "0", "7", "0")
    assert ipvsadm("-L", "--timeout")[1] == "Timeout (tcp tcpfin udp): 900 7 300\n"


def test_an_edit_begins_from_the_defaults(ipvsadm: Ipvsadm) -> None:
    for line in (ROUND[0], ROUND[2], "-e -t 10.99.0.1:80 -r 10.2.1.2 -m", "-E -t 10.99.0.1:80"):
        assert ipvsadm(*line.split()) == (0, "", "")
    assert ipvsadm("-S", "-n")[1].splitlines() == [
        "-A -t 10.99.0.1:80 -s wlc",
        "-a -t 10.99.0.1:80 -r 10.2.1.2:80 -m -w 1",
    ]


def test_options_may_be_glued_and_long() -> None:
    short, long = (
        parse(text.split())
        for text in (
            "-at10.0.0.1:80 -r10.0.0.2:8080 -mw5 -x 9",
            "--add-server --tcp-service=10.0.0.1:80 --real-server 10.0.0.2:8080 --masquerading"
            " --weight 5 --u-threshold=9",
        )
    )
    assert vars(short) == vars(long)
    assert (short.weight, short.mode, short.upper, short.key) == (5, "nat", 9, "10.0.0.1:80/tcp")


def test_the_persistence_is_300_seconds_unless_given() -> None:
    assert parse(["-A", "-t", "10.0.0.1:80", "-p", "-s", "rr"]).persistence == 300


def test_a_long_weight_is_refused() -> None:
    with pytest.raises(Fault, match="illegal weight specified"):
        parse(["-a", "-t", "10.0.0.1:80", "-r", "10.0.0.2", "-w", "65536"])


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (99_999_999, " 99999999"),
        (100_000_000, "  100000K"),
        (999_999_999, "  999999K"),
        (10**9, "    1000M"),
        (10**11, "     100G"),
        (10**14, "     100T"),
    ],
)
def test_long_numbers_are_scaled(number: int, text: str) -> None:
    assert scaled(number) == text
    assert scaled(number, exact=True) == f" {number:8}"


def test_counters_and_rates_begin_anew(director: Empty, ipvsadm: Ipvsadm) -> None:
    for line in ROUND[:3]:
        ipvsadm(*line.split())
    director.counted = {0: (7, 60, 50, 6000, 50000, 2, 5), 1: (3, 20, 10, 2000, 10000, 1, 2)}
    director.meter.tick(director.drained().slots)
    before = [line.split()[-5:] for line in ipvsadm("-Ln", "--stats")[1].splitlines()[3:]]
    assert before[1] == ["7", "60", "50", "6000", "50000"]
    assert ipvsadm("-Ln", "--rate")[1].splitlines()[4].split()[-5:] == ["1", "7", "6", "750", "6250"]
    assert ipvsadm("-Z", "-t", "10.99.0.1:80") == (0, "", "")
    for option in ("--stats", "--rate"):
        after = [line.split()[-5:] for line in ipvsadm("-Ln", option)[1].splitlines()[3:]]
        assert after == [["0"] * 5] * 3


def test_flags_of_the_fallback_of_a_scheduler_in_python_are_not_saved(director: Empty, ipvsadm: Ipvsadm) -> None:
    service = Service("10.0.0.1", 80, scheduler="x.py", fallback="sh", flags=("sh-port",))
    director.state = msgspec.structs.replace(director.state, intent=Intent((service,)))
    assert ipvsadm("-S", "-n")[1] == "-A -t 10.0.0.1:80 -s x.py\n"
    assert "TCP  10.0.0.1:80 x.py (sh-port)\n" in ipvsadm("-L", "-n")[1]


def test_a_persistence_engine_is_listed_and_saved(ipvsadm: Ipvsadm) -> None:
    assert ipvsadm(*["-A", "-u", "10.0.0.1:5060", "-s", "rr", "-p", "300", "--pe", "sip"])[0] == 0
    assert ipvsadm("-S", "-n")[1] == "-A -u 10.0.0.1:5060 -s rr -p 300 --pe sip\n"
    assert "UDP  10.0.0.1:5060 rr persistent 300 pe sip\n" in ipvsadm("-L", "-n")[1]
