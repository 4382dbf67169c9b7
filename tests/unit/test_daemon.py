"""The director as a process: what it says and opens, how it ends, and what it does for one that was killed."""

from __future__ import annotations

import json
import logging
import os
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from nfqlb import daemon, state
from nfqlb.director import CRASHED, LEFT
from nfqlb.logs import Voice
from nfqlb.model import Intent
from nfqlb.state import State, Store


def test_lines_say_what_is_a_warning() -> None:
    def line(level: int) -> str:
        return daemon.Lines(Voice()).format(logging.LogRecord("nfqlb", level, "", 1, "text %d", (1,), None))

    assert line(logging.WARNING) == "nfqlb: warning: text 1"
    assert line(logging.INFO) == line(logging.ERROR) == "nfqlb: text 1"


def test_lines_for_machines_have_stable_keys() -> None:
    try:
        raise ZeroDivisionError("oh")
    except ZeroDivisionError:
        record = logging.LogRecord("nfqlb", logging.ERROR, "", 1, "text %s", ("ü",), sys.exc_info())
    record.created = 1_700_000_000.25
    told = json.loads(daemon.Lines(Voice("json", "web")).format(record))
    assert told.pop("trace").endswith("ZeroDivisionError: oh")
    assert told == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "error",
        "message": "text ü",
        "name": "web",
        "pid": os.getpid(),
    }


@pytest.mark.slow
@pytest.mark.parametrize(("end", "code"), [("return 75", LEFT), ("return 0", 0), ("1 / 0", CRASHED)])
def test_an_end_waits_for_no_thread(end: str, code: int) -> None:
    program = f"""
import asyncio, threading
from nfqlb.daemon import live

async def run():
    asyncio.get_running_loop().run_in_executor(None, threading.Event().wait)
    {end}

live(run())
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=30, stderr=subprocess.DEVNULL).returncode == code


def test_a_director_opens_as_many_files_as_it_may() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        daemon.open_many()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_clean_up_for_a_killed_director_withdraws_and_ends_the_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NFQLB_STATE_DIR", str(tmp_path))
    withdrawn: list[str] = []
    monkeypatch.setattr(daemon, "load_kernel", lambda name: SimpleNamespace(withdraw=lambda: withdrawn.append(name)))
    assert daemon.withdraw("none") == 0
    file = tmp_path / "main" / "state.toml"
    Store(file).save(State(4, False, "", Intent()))
    assert daemon.withdraw("main") == 0
    assert state.load(file) == State(4, True, "", Intent())
    assert withdrawn == ["none", "main"]
