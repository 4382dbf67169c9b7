"""The holder with a director that does as it is told: restarts, stops, refusals, and what is left behind.

Real processes and signals throughout; the stand-in director writes down how it was started, so tests wait for that.
"""

from __future__ import annotations

import fcntl
import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netns.systemd import Systemd, launched

HOLDER = """
import functools, json, os
import nfqlb.holder
nfqlb.holder.Holder = functools.partial(nfqlb.holder.Holder, **json.loads(os.environ["HOLDER_OPTIONS"]))
nfqlb.holder.main()
"""

# What to do comes as a list of orders, one per start: "ready" says so, "beat" that
# it is well, a number exits, "kill" dies of SIGKILL, "serve"
# ends well on a stop, "deaf" never ends, "script" has its
# own status read by a script, "promise" says that it is prepared, "prepare" waits for its
# predecessor to let go as well, which "serve" does when it is asked to; "parricide" kills the first director, and waits
# until the holder has heard that something happened. --withdraw takes its order from the end of the list.
DIRECTOR = """
import fcntl, json, os, signal, socket, struct, sys, termios
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
log, orders, arguments = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3:]
option = lambda name: arguments[arguments.index(name) + 1]
withdraw = "--withdraw" in arguments
fds = [int(fd) for fd in [option("--config-fd"), option("--table-fd"), *option("--queue-fds").split(",")]]
heard = lambda: struct.unpack("i", fcntl.ioctl(int(option("--ready-fd")), termios.FIONREAD, bytes(4)))[0]
order = orders[-1] if withdraw else orders[int(option("--start"))]
with open(log, "a") as file:
    print(json.dumps({
        "pid": os.getpid(), "holder": int(option("--holder")), "withdraw": withdraw,
        "fds": [[fd, os.fstat(fd).st_ino] for fd in fds], "config": os.pread(fds[0], 1 << 16, 0).decode(),
    }), file=file)
for word in order.split():
    if word in ("ready", "beat"):
        os.write(int(option("--ready-fd")), b"1")
        while word == "ready" and "WATCHDOG_USEC" in os.environ and heard():  # else two bytes may be read as one
            pass
    elif word == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif word == "deaf":
        while True:
            signal.pause()
    elif word == "script":
        with socket.socket(fileno=os.dup(int(option("--scripts-fd")))) as scripts:
            command = ["/bin/cat", "/proc/self/status", "/proc/self/stat"]
            scripts.send(json.dumps({"id": "1", "command": command, "env": {}, "seconds": 10}).encode())
            answer = json.loads(scripts.recv(1 << 17))
        with open(log, "a") as file:
            print(json.dumps(answer), file=file)
    elif word == "serve":
        got = signal.sigwait({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2})
        with open(log, "a") as file:
            print(json.dumps({"got": got}), file=file)
        if got == signal.SIGUSR2:
            os._exit(75)
    elif word == "parricide":
        first, status = json.loads(open(log).readline()), f"/proc/{option('--holder')}/status"
        os.kill(first["pid"], signal.SIGKILL)
        field = lambda path, name: open(path).read().split(name + ":")[1].split()[0]
        while field(f"/proc/{first['pid']}/status", "State") != "Z":
            pass
        while int(field(status, "ShdPnd"), 16) & (1 << signal.SIGCHLD - 1 | 1 << signal.SIGIO - 1):
            pass
    elif word == "promise":
        os.write(int(option("--ready-fd")), b"p")
    elif word == "prepare":
        os.write(int(option("--ready-fd")), b"p")
        went = os.read(int(option("--go-fd")), 16)
        with open(log, "a") as file:
            print(json.dumps({"go": went.decode()}), file=file)
    else:
        sys.exit(int(word))
"""


class Bench:
    """A holder in its own process, with quick timing."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log, self.errors = folder, folder / "log", folder / "stderr"
        self.name = f"t{os.getpid()}"
        self.run_dir = folder / "run" / self.name
        self.api = self.run_dir / "api.sock"
        self.table = Path(f"/dev/shm/nfqlb-{self.name}")
        self.program = folder / "director.py"
        self.program.write_text(DIRECTOR)
        self.processes: list[subprocess.Popen[bytes]] = []
        self.pids: set[int] = set()

    def start(
        self,
        *orders: str,
        env: dict[str, str] | None = None,
        config: bytes = b"",
        takeover: bool = False,
        kept: dict[str, int] | None = None,
        python: str = sys.executable,
        **timing: Any,
    ) -> Any:
        config = config or json.dumps({"name": self.name, "api": str(self.api), "workers": 2, "more": 1}).encode()
        memory = os.memfd_create("config")
        os.write(memory, config)
        fd = fcntl.fcntl(memory, fcntl.F_DUPFD, 300)  # out of the way of what systemd kept
        os.close(memory)
        director = [python, "-S", str(self.program), str(self.log), json.dumps(orders)]
        program = [sys.executable, "-S", "-c", HOLDER]
        options = {"director": director, "program": program, "patience": 0.1, "first_pause": 0.02, **timing}
        command = [*program, *(["--takeover"] if takeover else []), "--config-fd", str(fd)]
        environ = {"NFQLB_RUN_DIR": str(self.folder / "run"), "PYTHONPATH": os.pathsep.join(sys.path), **(env or {})}
        environ["HOLDER_OPTIONS"] = json.dumps(options)
        if kept:
            command, names = launched(command, kept)
            environ |= names
        with self.errors.open("ab") as errors:
            process = subprocess.Popen(command, pass_fds=[fd, *(kept or {}).values()], stderr=errors, env=environ)
        os.close(fd)
        self.processes.append(process)
        return process

    def events(self, count: int) -> list[dict[str, Any]]:
        """The first `count` lines of the director's log, as soon as they are there."""
        end = time.monotonic() + 30
        while True:
            lines = self.log.read_text().splitlines() if self.log.exists() else []
            if len(lines) >= count:
                found = [json.loads(line) for line in lines]
                self.pids |= {event["pid"] for event in found if "pid" in event}
                return found
            assert time.monotonic() < end, (lines, self.said())
            time.sleep(0.005)

    def said(self) -> str:
        return self.errors.read_text()

    def until_said(self, words: str, times: int = 1) -> None:
        end = time.monotonic() + 30
        while self.said().count(words) < times:
            assert time.monotonic() < end, self.said()
            time.sleep(0.005)

    def left(self) -> list[Path]:
        return [path for path in (self.run_dir, self.table) if path.exists()]

    def end(self) -> None:
        self.events(0)
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        for pid in self.pids:
            cmdline = Path(f"/proc/{pid}/cmdline")
            if cmdline.exists() and str(self.program).encode() in cmdline.read_bytes():
                os.kill(pid, signal.SIGKILL)
        self.table.unlink(missing_ok=True)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.end()


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stop_is_passed_on_and_leaves_nothing(bench: Bench, stop: signal.Signals) -> None:
    holder = bench.start("ready serve")
    assert bench.events(1)[0]["holder"] == holder.pid
    assert (bench.run_dir / "lock").read_text() == f"{holder.pid}\n"
    assert bench.table.stat().st_mode & 0o777 == 0o600
    holder.send_signal(stop)
    assert holder.wait(10) == 0
    assert bench.events(2)[1] == {"got": stop}
    assert bench.left() == []
    assert bench.said() == ""


def test_a_stop_before_ready_is_passed_on_too(bench: Bench) -> None:
    holder = bench.start("serve")
    bench.events(1)
    holder.terminate()
    assert holder.wait(10) == 0


def test_a_director_that_crashes_is_started_again_with_the_same_things(bench: Bench) -> None:
    holder = bench.start("ready 7", "ready kill", "9", "ready serve")
    starts = bench.events(4)
    assert len({start["pid"] for start in starts}) == 4
    assert all(start["fds"] == starts[0]["fds"] for start in starts)
    assert len(starts[0]["fds"]) == 2 + 4 * 2  # configuration, table, and four queues for each of two workers
    assert all(json.loads(start["config"])["name"] == bench.name for start in starts)
    holder.terminate()
    assert holder.wait(10) == 0
    assert re.findall(r"director \d+ (.*); starting it again in (.*) s", bench.said()) == [
        ("exited with code 7", "0"),
        ("was killed by signal 9 (Killed)", "0.02"),
        ("exited with code 9", "0.04"),
    ]


def test_the_pause_has_an_upper_limit(bench: Bench) -> None:
    bench.start("ready 1", "1", "1", "ready serve", longest_pause=0.03)
    bench.events(4)
    assert re.findall(r"in (\S+) s", bench.said()) == ["0", "0.02", "0.03"]


def test_a_director_that_cannot_be_started_for_a_while_finds_all_as_it_was(bench: Bench) -> None:
    python = bench.folder / "python"
    python.symlink_to(sys.executable)
    holder = bench.start("ready serve", "prepare ready serve", "ready serve", python=str(python))
    [first] = bench.events(1)
    away = python.rename(bench.folder / "away")
    holder.send_signal(signal.SIGUSR2)
    bench.until_said(f"no director can be started (No such file or directory): director {first['pid']} goes on")
    away.rename(python)
    holder.send_signal(signal.SIGUSR2)
    second = bench.events(4)[1]
    python.rename(away)
    os.kill(second["pid"], signal.SIGKILL)
    bench.until_said("no director can be started (No such file or directory); starting it again in 0.04 s")
    away.rename(python)
    third = bench.events(5)[4]
    assert inodes(third) == inodes(second) == inodes(first)
    holder.terminate()
    assert holder.wait(10) == 0
    assert bench.left() == []


def test_after_a_sound_life_there_is_no_pause_again(bench: Bench) -> None:
    bench.start("ready 1", "1", "1", "ready serve", sound_life=0.0)
    bench.events(4)
    assert re.findall(r"in (\S+) s", bench.said()) == ["0", "0", "0"]


@pytest.mark.parametrize("code", [0, 1, 4])
def test_a_director_that_ends_before_ready_ends_the_holder_with_its_code(bench: Bench, code: int) -> None:
    assert bench.start(str(code)).wait(10) == code
    assert len(bench.events(1)) == 1
    assert bench.left() == []
    assert bench.said() == ""


def test_a_start_that_fails_keeps_the_table_of_a_crash(bench: Bench) -> None:
    bench.table.touch(0o600)
    assert bench.start("4").wait(10) == 4
    assert bench.left() == [bench.table]


def test_a_director_that_ends_well_unasked_ends_the_holder(bench: Bench) -> None:
    assert bench.start("ready 0").wait(10) == 0
    assert bench.left() == []


def test_a_director_killed_before_ready_is_cleaned_up_after(bench: Bench) -> None:
    assert bench.start("kill", "0").wait(10) == 128 + signal.SIGKILL
    assert [event["withdraw"] for event in bench.events(2)] == [False, True]
    assert "signal 9 (Killed) before it cleaned up" in bench.said()
    assert bench.left() == []


def test_a_director_that_does_not_heed_a_stop_is_killed_and_cleaned_up_after(bench: Bench) -> None:
    holder = bench.start("ready deaf", "0", grace=0.1)
    bench.events(1)
    holder.terminate()
    assert holder.wait(10) == 128 + signal.SIGKILL
    assert [event["withdraw"] for event in bench.events(2)] == [False, True]
    assert "did not end within 0.1 s: killed" in bench.said()
    assert bench.left() == []


def test_a_stop_between_two_directors_withdraws_at_once(bench: Bench) -> None:
    holder = bench.start("ready 1", "1", "0", first_pause=30.0, longest_pause=30.0)
    bench.until_said("starting it again in 30 s")
    holder.terminate()
    assert holder.wait(10) == 0
    assert [event["withdraw"] for event in bench.events(3)] == [False, False, True]
    assert bench.left() == []


def test_a_clean_up_that_fails_is_said_and_is_the_exit_code(bench: Bench) -> None:
    holder = bench.start("ready 1", "1", "5", first_pause=30.0, longest_pause=30.0)
    bench.until_said("starting it again in 30 s")
    holder.terminate()
    assert holder.wait(10) == 5
    assert "the clean-up exited with code 5" in bench.said()


def test_a_taken_name_is_refused_with_the_pid(bench: Bench) -> None:
    first = bench.start("ready serve")
    bench.events(1)
    assert bench.start("ready serve").wait(10) == 4
    assert bench.said().count("\n") == 1
    assert f"(pid {first.pid})" in bench.said()
    assert first.poll() is None
    assert (bench.run_dir / "lock").exists()


def test_the_name_is_free_when_holder_and_director_are_both_gone(bench: Bench) -> None:
    first = bench.start("serve")  # one that says ready to a dead holder dies of it
    director = bench.events(1)[0]["pid"]
    first.kill()
    first.wait(10)
    assert bench.start("ready serve").wait(10) == 4
    os.kill(director, signal.SIGKILL)
    bench.start("ready serve", patience=5.0)
    assert len(bench.events(2)) == 2


def test_an_api_socket_that_somebody_answers_is_refused_with_the_pid(bench: Bench) -> None:
    bench.api = bench.folder / "api"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(bench.api))
        listener.listen()
        assert bench.start("ready serve").wait(10) == 4
    assert f"(pid {os.getpid()})" in bench.said()
    assert bench.api.exists()
    assert bench.left() == []


def test_an_api_path_that_is_another_file_is_refused_and_kept(bench: Bench) -> None:
    bench.api = bench.folder / "api"
    bench.api.write_text("mine")
    assert bench.start("ready serve").wait(10) == 4
    assert bench.api.read_text() == "mine"


def test_an_api_socket_that_a_crash_left_is_no_hindrance_and_goes(bench: Bench) -> None:
    bench.api = bench.folder / "api"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(bench.api))
    assert bench.start("ready 0").wait(10) == 0
    assert not bench.api.exists()


def test_a_table_file_of_others_is_refused_and_kept(bench: Bench) -> None:
    bench.table.touch()
    bench.table.chmod(0o666)
    assert bench.start("ready serve").wait(10) == 4
    assert bench.left() == [bench.table]


def test_a_table_that_is_in_use_under_another_run_folder_is_refused(bench: Bench) -> None:
    first = bench.start("ready serve")
    bench.events(1)
    bench.api = bench.folder / "api"
    assert bench.start("ready serve", env={"NFQLB_RUN_DIR": str(bench.folder / "other")}).wait(10) == 4
    assert "in use" in bench.said()
    assert bench.table.exists()
    assert first.poll() is None


# --- handing over -----------------------------------------------------------------------------------------------------


def test_a_renewed_holder_is_the_same_process_with_the_same_things(bench: Bench) -> None:
    holder = bench.start("ready serve", "prepare ready serve")
    [first] = bench.events(1)
    holder.send_signal(signal.SIGUSR2)
    _, second, let_go, go = bench.events(4)
    assert (let_go, go) == ({"got": signal.SIGUSR2}, {"go": "go"})
    assert second["pid"] != first["pid"]
    assert (second["holder"], second["config"]) == (holder.pid, first["config"])
    assert inodes(second) == inodes(first)
    assert bench.said() == "nfqlb: becoming the program that is installed now\n"
    holder.terminate()
    assert holder.wait(10) == 0
    assert bench.events(5)[4] == {"got": signal.SIGTERM}
    assert bench.left() == []


def test_a_director_that_renews_badly_leaves_the_old_one_serving(bench: Bench) -> None:
    holder = bench.start("ready serve", "2")
    [first] = bench.events(1)
    for times in (1, 2):  # one that was none does not count
        holder.send_signal(signal.SIGUSR2)
        bench.until_said(f"the new director is not prepared: director {first['pid']} goes on", times)
    holder.terminate()
    assert holder.wait(10) == 0
    assert bench.events(4)[-1] == {"got": signal.SIGTERM}
    assert bench.left() == []


def test_a_director_that_dies_while_its_successor_prepares_itself_is_not_waited_for(bench: Bench) -> None:
    holder = bench.start("ready serve", "parricide prepare ready serve")
    bench.events(1)
    holder.send_signal(signal.SIGUSR2)
    assert bench.events(3)[2] == {"go": "go"}
    holder.terminate()
    assert holder.wait(10) == 0
    assert bench.left() == []


def test_a_director_that_does_not_let_go_is_killed_and_its_successor_goes(bench: Bench) -> None:
    holder = bench.start("ready deaf", "prepare ready serve", grace=0.2)
    bench.events(1)
    holder.send_signal(signal.SIGUSR2)
    assert bench.events(3)[2] == {"go": "go"}
    assert "did not end within 0.2 s: killed" in bench.said()
    holder.terminate()
    assert holder.wait(10) == 0
    assert bench.left() == []


def test_a_successor_that_dies_while_its_predecessor_lets_go_is_started_again(bench: Bench) -> None:
    holder = bench.start("ready deaf", "promise kill", "ready serve", grace=0.2)
    bench.events(1)
    holder.send_signal(signal.SIGUSR2)
    first, _, third = bench.events(3)
    assert (third["holder"], inodes(third)) == (holder.pid, inodes(first))
    assert "was killed by signal 9 (Killed); starting it again in 0 s" in bench.said()
    holder.terminate()
    assert holder.wait(10) == 0
    assert bench.left() == []


@pytest.mark.parametrize(
    ("program", "why"),
    [("/bin/false", "does not even load"), ("/no/python", "cannot be run (No such file or directory)")],
)
def test_a_program_that_does_not_load_changes_nothing(bench: Bench, program: str, why: str) -> None:
    holder = bench.start("ready serve", program=[program])
    bench.events(1)
    holder.send_signal(signal.SIGUSR2)
    bench.until_said(f"the new program {why}: everything stays")
    holder.terminate()
    assert holder.wait(10) == 0
    assert bench.events(2)[1] == {"got": signal.SIGTERM}


def test_another_holder_takes_over_everything(bench: Bench) -> None:
    old = bench.start("ready serve")
    [first] = bench.events(1)
    new = bench.start("", "prepare ready serve", takeover=True)
    assert old.wait(10) == 0
    _, second, let_go, go = bench.events(4)
    assert (let_go, go) == ({"got": signal.SIGUSR2}, {"go": "go"})
    assert (second["holder"], inodes(second)[1:]) == (new.pid, inodes(first)[1:])  # the configuration is its own
    assert bench.said() == "nfqlb: everything is handed over\n"
    third = bench.start("", "", "prepare ready serve", takeover=True)
    assert new.wait(10) == 0
    assert (bench.run_dir / "lock").read_text() == f"{third.pid}\n"
    third.terminate()
    assert third.wait(10) == 0
    assert bench.left() == []


@pytest.mark.parametrize(("order", "code"), [("2", 2), ("kill", 128 + signal.SIGKILL)])
def test_an_heir_that_does_not_get_prepared_leaves_the_old_one_serving(bench: Bench, order: str, code: int) -> None:
    old = bench.start("ready serve")
    bench.events(1)
    assert bench.start("", order, takeover=True).wait(10) == code
    bench.until_said("has given up: everything stays")
    assert bench.start("", "prepare ready serve", takeover=True).poll() is None
    assert old.wait(10) == 0  # the next one succeeds


def test_an_heir_that_dies_too_late_has_the_old_holder_start_again(bench: Bench) -> None:
    old = bench.start("ready serve", "ready serve")
    bench.events(1)
    assert bench.start("", "prepare kill", takeover=True).wait(10) == 128 + signal.SIGKILL
    events = bench.events(5)
    assert (events[4]["holder"], inodes(events[4])) == (old.pid, inodes(events[0]))
    assert "the one that took over has failed" in bench.said()
    old.terminate()
    assert old.wait(10) == 0
    assert bench.left() == []


def test_a_takeover_cannot_change_queues_or_table(bench: Bench) -> None:
    old = bench.start("ready serve")
    bench.events(1)
    config = json.dumps({"name": bench.name, "api": str(bench.api), "workers": 3}).encode()
    assert bench.start("ready serve", config=config, takeover=True).wait(10) == 2
    assert "workers '3': is 2 in the director that runs; a takeover keeps that" in bench.said()
    assert old.poll() is None


def test_a_takeover_from_nobody_is_a_start(bench: Bench) -> None:
    holder = bench.start("ready serve", takeover=True)
    bench.events(1)
    holder.terminate()
    assert holder.wait(10) == 0
    assert bench.left() == []


def test_a_stop_while_a_successor_prepares_itself_stops(bench: Bench) -> None:
    holder = bench.start("ready serve", "deaf")
    bench.events(1)
    holder.send_signal(signal.SIGUSR2)
    bench.events(2)
    holder.terminate()
    assert holder.wait(10) == 0
    assert bench.events(3)[2] == {"got": signal.SIGTERM}
    assert bench.left() == []


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    systemd = Systemd(tmp_path / "notify")
    yield systemd
    systemd.end()


STORED = ["lock", "table", *(f"queue-{number}" for number in range(8))]


@pytest.mark.parametrize("how", [signal.SIGUSR1, signal.SIGKILL], ids=["a restart", "a crash of the holder"])
def test_what_systemd_kept_is_found_by_the_next_start(bench: Bench, systemd: Systemd, how: signal.Signals) -> None:
    env = {"NOTIFY_SOCKET": systemd.path}
    holder = bench.start("ready serve", env=env)
    [first] = bench.events(1)
    assert systemd.hear() == "READY=1"
    assert list(systemd.kept) == STORED
    assert systemd.unpolled == set(STORED)
    holder.send_signal(how)
    holder.wait(10)
    if how == signal.SIGUSR1:
        assert holder.returncode == 0
        assert bench.events(2)[1] == {"got": signal.SIGUSR2}
    else:
        os.kill(first["pid"], signal.SIGKILL)
    again = bench.start("ready serve", env=env, kept=systemd.kept)
    second = bench.events(3 if how == signal.SIGUSR1 else 2)[-1]
    assert inodes(second)[1:] == inodes(first)[1:]
    assert systemd.hear() == "READY=1"
    assert "LISTEN" not in Path(f"/proc/{second['pid']}/environ").read_text()
    again.terminate()
    assert systemd.hear() == "STOPPING=1"
    assert again.wait(10) == 0
    assert bench.left() == []


def test_what_systemd_kept_for_nothing_goes(bench: Bench, systemd: Systemd) -> None:
    reader, writer = os.pipe()
    fds = {"queue-0": reader, "queue-8": writer, "lock": os.dup(reader), "other": os.dup(reader)}
    for name, fd in fds.items():
        systemd.kept[name] = os.dup(fd)
    bench.start("ready serve", env={"NOTIFY_SOCKET": systemd.path}, kept=fds)
    bench.events(1)
    for fd in fds.values():
        os.close(fd)
    assert systemd.hear() == "READY=1"
    assert list(systemd.kept) == STORED


def inodes(start: dict[str, Any]) -> list[int]:
    """Of the configuration, the table and the queues."""
    return [inode for _, inode in start["fds"]]


# --- systemd ----------------------------------------------------------------------------------------------------------


def test_ready_is_told_to_systemd_once(bench: Bench, systemd: Systemd) -> None:
    bench.start("ready kill", "ready serve", env={"NOTIFY_SOCKET": systemd.path})
    bench.events(2)
    assert systemd.hear() == "READY=1"
    with pytest.raises(queue.Empty):
        systemd.hear(0.0)


def test_signs_of_life_and_the_stop_are_passed_on_to_systemd(bench: Bench, systemd: Systemd) -> None:
    env = {"NOTIFY_SOCKET": systemd.path, "WATCHDOG_USEC": "10000000"}
    holder = bench.start("ready beat kill", "ready serve", env=env)
    bench.events(2)
    heard = [systemd.hear() for _ in range(4)]  # ready, a beat, the crash is in hand, the next one's ready is a beat
    assert heard == ["READY=1", *["WATCHDOG=1"] * 3]
    holder.terminate()
    assert systemd.hear() == "STOPPING=1"
    assert holder.wait(10) == 0


def test_the_director_gets_two_capabilities_at_most_and_its_programs_no_more(bench: Bench) -> None:
    bench.start("ready serve")
    [event] = bench.events(1)
    allowed = 1 << 12 | 1 << 13  # CAP_NET_ADMIN, CAP_NET_RAW
    for pid in (event["pid"], event["holder"]):
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        for field in ("CapEff", "CapPrm", "CapInh", *(["CapBnd"] if os.geteuid() == 0 else [])):
            assert int(status[field], 16) & ~allowed == 0, field
        assert status["NoNewPrivs"] == "1"


@pytest.mark.skipif(os.geteuid() != 0, reason="to run scripts as another user takes root")
def test_scripts_run_as_another_user_with_nothing_over_a_restart_and_a_stop_of_the_group(bench: Bench) -> None:
    holder = bench.start("ready script kill", "ready script serve")
    events = bench.events(4)
    spawner = spawner_of(holder.pid)
    os.kill(spawner, signal.SIGTERM)  # a stop of everybody: what the director still wants to run can run
    for answer in (events[1], events[3]):
        lines = answer["output"].splitlines()
        status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        assert status["Uid"].split() == status["Gid"].split() == ["65534"] * 4
        assert status["Groups"].split() == ["65534"]
        for field in ("CapEff", "CapPrm", "CapInh", "CapAmb", "SigBlk"):
            assert int(status[field], 16) == 0, field
        assert int(status["CapBnd"], 16) & ~(1 << 6 | 1 << 7) == 0  # what the spawner was left to become the user
        assert int(status["SigIgn"], 16) & (1 << signal.SIGTERM - 1) == 0
        assert status["NoNewPrivs"] == "1"
    assert spawner_of(holder.pid) == spawner
    holder.terminate()
    assert holder.wait(10) == 0
    end = time.monotonic() + 30
    while Path(f"/proc/{spawner}").exists():
        assert time.monotonic() < end
        time.sleep(0.01)


def spawner_of(holder: int) -> int:
    children = Path(f"/proc/{holder}/task/{holder}/children").read_text().split()
    return next(int(pid) for pid in children if b"nfqlb.spawner" in Path(f"/proc/{pid}/cmdline").read_bytes())


@pytest.mark.skipif(os.geteuid() != 0, reason="to run scripts as another user takes root")
@pytest.mark.parametrize("user", ["", "nobody-here"])
def test_no_user_no_scripts_and_one_that_is_not_there_is_refused(bench: Bench, user: str) -> None:
    config = json.dumps({"name": bench.name, "api": str(bench.api), "script_user": user}).encode()
    holder = bench.start("ready serve", config=config)
    if user:
        assert holder.wait(10) == 2
        assert "script_user 'nobody-here': is no user here; name one that is" in bench.said()
        assert bench.left() == []
    else:
        bench.events(1)
        assert len(Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()) == 1


def test_a_holder_can_speak_json(bench: Bench) -> None:
    config = json.dumps({"name": bench.name, "api": str(bench.api), "log_format": "json"}).encode()
    bench.start("ready 7", "ready serve", config=config)
    bench.events(2)
    [line] = [json.loads(line) for line in bench.said().splitlines()]
    assert sorted(line) == ["level", "message", "name", "pid", "time"]
    assert (line["level"], line["name"]) == ("error", bench.name)
    assert line["message"].endswith("exited with code 7; starting it again in 0 s")


@pytest.mark.parametrize("config", [b"{", b"\xff"])
def test_a_broken_configuration_is_refused(bench: Bench, config: bytes) -> None:
    assert bench.start("ready serve", config=config).wait(10) == 2
    assert "nfqlb run" in bench.said()
    assert bench.left() == []
