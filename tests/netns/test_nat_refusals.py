"""What `nfqlb run` must refuse: one sentence that names the value, an exit code that is not 0, nothing left behind."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from netns import kernelstate
from netns.director import NFQLB, Director
from netns.host import Process
from netns.topology import Net

GOOD = {"--mode": "nat", "--vip": "10.2.0.100:80", "--real": "10.2.0.11:80", "--scheduler": "wlc"}
WRONG = {  # option, value, what the sentence must name
    "unknown-scheduler": ("--scheduler", "nosuch", "nosuch"),
    "unknown-mode": ("--mode", "warp", "warp"),
    "bad-vip-address": ("--vip", "10.2.0.999:80", "10.2.0.999"),
    "bad-vip-port": ("--vip", "10.2.0.100:99999", "99999"),
    "vip-without-port": ("--vip", "10.2.0.100", "10.2.0.100"),
    "unknown-protocol": ("--vip", "10.2.0.100:80/icmp", "icmp"),
    "bad-real-address": ("--real", "10.2.0:80", "10.2.0"),
    "bad-real-port": ("--real", "10.2.0.11:0", "port"),
    "negative-weight": ("--real", "10.2.0.11:80,weight=-3", "-3"),
    "weight-not-a-number": ("--real", "10.2.0.11:80,weight=much", "much"),
    "real-of-other-family": ("--real", "[2001:db8:2::b]:80", "2001:db8:2::b"),
    "real-is-the-vip": ("--real", "10.2.0.100:80", "10.2.0.100:80"),
    "multicast-real": ("--real", "224.0.0.1:80", "224.0.0.1"),
    "bad-name": ("--name", "a/b", "a/b"),
    "long-name": ("--name", "a-name-of-20-letters", "a-name-of-20-letters"),
    "queue-not-a-number": ("--queue", "first", "first"),
    "queue-out-of-range": ("--queue", "70000", "70000"),
    "no-such-vip-dev": ("--vip-dev", "nodev0", "nodev0"),
    "unknown-option": ("--colour", "green", "--colour"),
}


@pytest.fixture(scope="module")
def director() -> Iterator[Director]:
    with Net(servers=1, web=False) as net:
        yield net.director


@pytest.fixture
def running(director: Director) -> Iterator[Process]:
    """A director that serves, on queue 77."""
    yield director.nfqlb(*arguments("--queue", "77"))
    assert director.stop() == 0


def arguments(*more: str) -> list[str]:
    changed = {**GOOD, **dict(zip(more[::2], more[1::2], strict=True))}
    return [word for pair in changed.items() for word in pair]


def check_refusal(done: subprocess.CompletedProcess[str], *words: str) -> None:
    said = (done.stdout + done.stderr).strip()
    assert done.returncode > 0, said
    assert "Traceback" not in said
    assert len(said.splitlines()) == 1, said
    assert all(word in said for word in words), said


@pytest.mark.parametrize(("option", "value", "word"), WRONG.values(), ids=WRONG)
def test_wrong_argument(director: Director, option: str, value: str, word: str) -> None:
    found = director.state()
    check_refusal(director.refused(*arguments(option, value)), word)
    assert kernelstate.difference(found, director.state()) == ""


@pytest.mark.parametrize(
    ("wrapper", "word"),
    [
        (["unshare", "--user"], "root"),  # without a mapping: nobody
        (["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"], "CAP_NET_ADMIN"),
    ],
    ids=["not-root", "no-capability"],
)
def test_without_the_rights(director: Director, wrapper: list[str], word: str) -> None:
    found = director.state()
    argv = [*wrapper, NFQLB, "run", "--name", director.instance, *arguments()]
    check_refusal(director.run(argv, check=False, timeout=15), word)
    assert kernelstate.difference(found, director.state()) == ""


@pytest.mark.parametrize(
    ("program", "diverter"), [("iptables", "iptables"), ("ipset", "iptables"), ("iptables", "nft")]
)
def test_missing_program_is_named_with_the_apt_line(director: Director, program: str, diverter: str) -> None:
    found = director.state()
    hide = f'mount --bind /dev/null $(readlink -f $(command -v {program})) && exec "$@"'
    argv = [NFQLB, "run", "--name", director.instance, *arguments("--diverter", diverter)]
    check_refusal(director.run(["sh", "-c", hide, "sh", *argv], check=False, timeout=15), program, "apt")
    assert kernelstate.difference(found, director.state()) == ""


def test_name_that_is_taken(director: Director, running: Process) -> None:
    found = director.state()
    check_refusal(director.refused(*arguments()), director.instance, str(running.pid))
    assert kernelstate.difference(found, director.state()) == ""
    assert director.show("services")


def test_queue_that_is_taken(director: Director, running: Process) -> None:
    found = director.state()
    other = arguments("--queue", "77", "--name", f"{director.instance[:13]}-o", "--vip", "10.2.0.100:81")
    check_refusal(director.refused(*other), "77", str(running.pid))
    assert kernelstate.difference(found, director.state()) == ""
