"""`nfqlb show` on a terminal: it fits, has bold titles unless NO_COLOR says no, and is plain when it is piped."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import sys
import termios

import pytest
from msgspec.structs import replace

from nfqlb.api.client import Client
from nfqlb.control.compile import packed
from nfqlb.model import Intent, Persistence, Real, Service
from tests.unit.fakes import FakeDirector

VIP, REAL = "2001:db8:1111:2222:3333:4444:5555:6660", "2001:db8:1111:2222:3333:4444:5555:6661"
NAME = "a-name-that-has-forty-characters-in-all-"
WIDE = Service(VIP, 65535, reals=(Real(REAL, 65535, 2**31 - 1),), name=NAME, persistence=Persistence(600, 64))
WHAT = ("services", "connections", "stats", "reasons", "daemon")
ESCAPE = "\x1b"
NFQLB = (sys.executable, "-c", "from nfqlb.cli import main; main()")
WORDS = {"services": (f"[{VIP}]:65535", f"[{REAL}]:65535", NAME), "connections": (f"[{VIP}]:65535", f"[{REAL}]:65535")}


@pytest.fixture(autouse=True)
def wide(director: FakeDirector) -> None:
    director.state = replace(director.state, intent=Intent((WIDE,)))
    director.rows = [(6, packed(REAL), 65535, packed(VIP), 65535, packed(REAL), 65535, 1, 6000, False)]


def shown(client: Client, what: str, columns: int, lines: int, **environ: str) -> str:
    """What `nfqlb show` writes to a terminal of this size."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    command = [*NFQLB, "show", what]
    with subprocess.Popen(command, stdout=theirs, env={**env, "NFQLB_API": client.path, **environ}) as process:
        os.close(theirs)
        found = b""
        try:
            while data := os.read(ours, 65536):
                found += data
        except OSError:  # the other side is closed
            pass
        os.close(ours)
        assert process.wait() == 0
    return found.decode().replace("\r\n", "\n")


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (200, 50)])
@pytest.mark.parametrize("what", WHAT)
def test_it_fits_and_cuts_no_address_and_no_name(client: Client, what: str, columns: int, lines: int) -> None:
    text = shown(client, what, columns, lines, NO_COLOR="1")
    assert ESCAPE not in text
    assert max(map(len, text.splitlines())) <= columns
    assert len(text.splitlines()) <= lines
    for word in WORDS.get(what, ()):
        assert word in text


def test_titles_are_bold_on_a_terminal_and_plain_in_a_pipe(client: Client) -> None:
    assert shown(client, "services", 80, 24).startswith(f"{ESCAPE}[1mProt")
    piped = subprocess.run(
        [*NFQLB, "show"],
        env={**os.environ, "NFQLB_API": client.path},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert ESCAPE not in piped
    assert len(piped.splitlines()) == 4  # a thing is a line, however long
