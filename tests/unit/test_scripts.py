"""Scripts: what may run, how it ends, what is left of it, and the socket between the director and what runs them."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import stat
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nfqlb import spawner
from nfqlb.errors import ConfigError
from nfqlb.health.scripts import GONE, Outcome, Scripts, check_command
from nfqlb.spawner import distrust, run


def shell(script: str, seconds: float = 10, **more: str) -> dict[str, Any]:
    return asyncio.run(run(["/bin/sh", "-c", script], more, seconds))


def gone(pid: int) -> bool:
    """Whether the process has ended; a zombie has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def soon(true: Callable[[], bool]) -> bool:
    end = time.monotonic() + 10
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    return true()


# --- how scripts end


@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        ("true", {"code": 0, "output": ""}),
        ("echo OK; echo more >&2; exit 3", {"code": 3, "output": "OK\nmore\n"}),
        ("kill -TERM $$", {"code": -15, "output": ""}),
        ("read line || echo no input", {"code": 0, "output": "no input\n"}),
        ("pwd", {"code": 0, "output": "/\n"}),
        ("head -c 1000000 /dev/zero | tr '\\0' x", {"code": 0, "output": spawner.OUTPUT_MAX * "x"}),
    ],
)
def test_how_a_script_ends(script: str, outcome: dict[str, Any]) -> None:
    assert shell(script) == outcome


def test_its_environment_is_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "1")
    outcome = asyncio.run(run(["/usr/bin/env"], {"NFQLB_PORT": "80"}, 10))
    expected = {**spawner.ENVIRONMENT, "NFQLB_PORT": "80"}
    assert sorted(outcome["output"].splitlines()) == sorted(f"{name}={value}" for name, value in expected.items())


def test_it_holds_no_file_of_ours() -> None:
    with socket.socket() as ours:
        os.set_inheritable(ours.fileno(), True)
        assert shell("exec ls -l /proc/self/fd")["output"].count("socket:") == 0


@pytest.mark.parametrize(
    ("script", "seconds", "outcome"),
    [
        ("sleep 60 & echo $! > {0}; sleep 60", 0.5, {"problem": "ran longer than 0.5 s"}),
        ("trap '' TERM; sleep 60 & echo $! > {0}; wait", 0.5, {"problem": "ran longer than 0.5 s"}),
        ("sleep 60 & echo $! > {0}", 10, {"code": 0, "output": ""}),
    ],
    ids=["time is up", "signals are caught", "left behind"],
)
def test_nothing_is_left_of_its_process_group(script: str, seconds: float, outcome: object, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    assert shell(script.format(file), seconds) == outcome
    assert soon(lambda: gone(int(file.read_text())))


def test_who_is_called_off_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "pid"

    async def live() -> None:
        task = asyncio.create_task(run(["/bin/sh", "-c", f"echo $$ > {file}; sleep 60"], {}, 60))
        while not (file.exists() and file.read_text()):
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(live())
    assert soon(lambda: gone(int(file.read_text())))


# --- what may run

FILES = {
    "/": (0, 0o40755),
    "/opt": (0, 0o40755),
    "/opt/good": (0, 0o100755),
    "/opt/theirs": (1000, 0o100755),
    "/opt/group": (0, 0o100775),
    "/opt/all": (0, 0o100757),
    "/opt/link": (0, 0o120777, "good"),
    "/opt/far": (0, 0o120777, "/open/good"),
    "/opt/up": (0, 0o120777, "../opt/./link"),
    "/opt/loop": (0, 0o120777, "loop"),
    "/opt/folder": (0, 0o120777, "/open"),
    "/opt/given": (1000, 0o120777, "good"),
    "/open": (0, 0o41777),
    "/open/good": (0, 0o100755),
    "/home": (1000, 0o40755),
    "/home/good": (0, 0o100755),
}


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/opt/good", ""),
        ("/opt/link", ""),
        ("/opt/up", ""),
        ("/opt/../opt/good", ""),
        ("opt/good", "is not an absolute path"),
        ("/opt/theirs", "belongs to another user than root: /opt/theirs"),
        ("/opt/given", "belongs to another user than root: /opt/given"),
        ("/home/good", "belongs to another user than root: /home"),
        ("/opt/group", "can be written by others than root: /opt/group"),
        ("/opt/all", "can be written by others than root: /opt/all"),
        ("/open/good", "can be written by others than root: /open"),
        ("/opt/far", "can be written by others than root: /open"),
        ("/opt/folder/good", "can be written by others than root: /open"),
        ("/opt/none", "cannot be run: /opt/none: No such file or directory"),
        ("/opt/loop", "cannot be run: /opt/loop: too many links"),
        ("/opt", "is not a file"),
    ],
)
def test_only_what_root_alone_can_write_may_run(path: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def lstat(name: str) -> SimpleNamespace:
        if name not in FILES:
            raise FileNotFoundError(2, "No such file or directory", name)
        return SimpleNamespace(st_uid=FILES[name][0], st_mode=FILES[name][1])

    monkeypatch.setattr(os, "lstat", lstat)
    monkeypatch.setattr(os, "readlink", lambda name: FILES[name][2])  # type: ignore[misc]
    assert distrust(path) == why


def test_what_may_not_run_is_refused_when_it_is_asked_for_and_when_it_would_run(tmp_path: Path) -> None:
    program = tmp_path / "check"
    program.write_text("#!/bin/sh\n")
    program.chmod(stat.S_IRWXU | stat.S_IWOTH)
    problem = asyncio.run(run([str(program)], {}, 10))["problem"]
    assert problem.startswith(f"{program} ")
    with pytest.raises(ConfigError, match=r"script '.* 80': .*; have it belong to root"):
        check_command("script", f"{program} 80")
    with pytest.raises(ConfigError, match="is no command: No closing quotation"):
        check_command("script", "'x")
    assert check_command("script", "/bin/sh -c 'exit 0'") == ["/bin/sh", "-c", "exit 0"]


def test_what_is_no_program_is_a_problem() -> None:
    assert asyncio.run(run(["/etc/passwd"], {}, 10)) == {
        "problem": "/etc/passwd cannot be run: Permission denied",
        "lost": True,
    }


def test_a_word_that_cannot_be_passed_on_is_a_problem() -> None:
    problem = {"problem": "/bin/true cannot be run: embedded null byte", "lost": True}
    assert asyncio.run(run(["/bin/true"], {"M": "a\0b"}, 10)) == problem
    assert asyncio.run(run(["/bin/true", "a\0b"], {}, 10)) == problem


# --- the socket


def together(live: Callable[[Scripts, socket.socket], Awaitable[None]]) -> None:
    """A director's end, and a spawner in the same loop."""

    async def both() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            serving = asyncio.create_task(spawner.serve(theirs))
            scripts = Scripts(ours)
            await live(scripts, ours)
            await scripts.close()
            ours.close()
            await serving

    asyncio.run(asyncio.wait_for(both(), 30))


def test_many_at_once_each_get_their_own_answer_and_a_number_run(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(spawner, "AT_ONCE", 3)
    diary = tmp_path / "diary"

    async def live(scripts: Scripts, _: socket.socket) -> None:
        wait = f"while [ $(grep -c + {diary}) -lt 3 ]; do sleep 0.01; done"  # the first ones for each other
        script = f"echo + >> {diary}; {wait}; echo - >> {diary}; exit $1"
        codes = range(12)
        outcomes = await asyncio.gather(*(scripts.run(["/bin/sh", "-c", script, "x", str(one)], 10) for one in codes))
        assert [outcome.code for outcome in outcomes] == [*codes]

    together(live)
    running = [0]
    for sign in diary.read_text().split():
        running.append(running[-1] + (1 if sign == "+" else -1))
    assert max(running) == 3


def test_the_socket_outlives_a_director_and_answers_to_it_are_nobodys() -> None:
    async def live(scripts: Scripts, ours: socket.socket) -> None:
        ours.send(b'{"id": "1-1", "command": ["/bin/true"], "env": {}, "seconds": 9}')
        assert await scripts.run(["/bin/sh", "-c", "echo; echo ' two'"], 10) == Outcome(0, "\n two\n")

    together(live)


def test_whatever_goes_wrong_there_is_an_answer() -> None:
    async def live(scripts: Scripts, _: socket.socket) -> None:
        free = os.dup(0)
        os.close(free)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
        try:
            outcome = await scripts.run(["/bin/true"], 10)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert (outcome.lost, "Too many open files" in outcome.problem) == (True, True)
        assert await scripts.run(["/bin/true"], 10) == Outcome(0)

    together(live)


def test_an_outcome_in_one_line() -> None:
    assert Outcome(0, "\n  DISK OK \nmore").line == "DISK OK"
    assert Outcome(0, "").line == ""
    assert Outcome(0, "a\0b\x1b[2Jc").line == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}[2Jc"


def test_without_a_spawner_there_are_no_scripts() -> None:
    async def live() -> None:
        assert await Scripts().run(["/bin/true"], 1) == Outcome(problem="no script can be run here", lost=True)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            scripts = Scripts(ours)
            waiting = asyncio.create_task(scripts.run(["/bin/true"], 1))
            await asyncio.sleep(0.05)
            theirs.close()
            assert await waiting == Outcome(problem=GONE, lost=True)
            assert (await scripts.run(["/bin/true"], 1)).problem == "no script can be run here"

    asyncio.run(asyncio.wait_for(live(), 30))
