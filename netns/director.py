"""The machine that nfqlb runs on, and the ways to start, ask, stop and kill it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from netns import kernelstate
from netns.host import CommandError, Host, Process, alive, until
from nfqlb.errors import UnreachableError

OFFLOAD = os.environ.get("NFQLB_OFFLOAD", "")  # of every director that is not told otherwise
NFQLB = str(Path(sys.executable).with_name("nfqlb"))


class Director(Host):
    """`name` is the director's --name; its run and state folders are its own, so that instances never meet."""

    def __init__(self, tag: str, name: str, folder: Path) -> None:
        super().__init__(tag, name, folder)
        self.instance = tag
        self.run_folder, self.state_folder = self.folder / "run", self.folder / "state"
        self.run_folder.mkdir()
        self.state_folder.mkdir()
        self.process: Process | None = None

    def env(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        folders = {"NFQLB_RUN_DIR": str(self.run_folder), "NFQLB_STATE_DIR": str(self.state_folder)}
        return super().env({**folders, **(more or {})})

    def nfqlb(self, *args: str, timeout: float = 20.0) -> Process:
        """Start `nfqlb run` with these arguments and return when it says ready."""
        if OFFLOAD and "--offload" not in args:
            args = (*args, "--offload", OFFLOAD)
        self.process = self.spawn([NFQLB, "run", "--name", self.instance, *args])
        self.process.says("ready", timeout)
        return self.process

    def refused(self, *args: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """`nfqlb run` with arguments that it must not accept; how it ended."""
        return self.run([NFQLB, "run", "--name", self.instance, *args], check=False, timeout=15, env=env)

    def cli(self, *args: str, check: bool = True, patience: float = 20.0) -> subprocess.CompletedProcess[str]:
        """Any other command of nfqlb, to the director that runs here: cli("show", "services").

        A director says ready before its API is there: one that does not answer yet is asked again.
        """
        api = {"NFQLB_API": str(self.run_folder / self.instance / "api.sock")}
        end = time.monotonic() + patience
        while (done := self.run([NFQLB, *args], check=False, env=api)).returncode == UnreachableError.exit_code:
            if time.monotonic() > end:
                break
            time.sleep(0.05)
        if check and done.returncode:
            raise CommandError(f"nfqlb {' '.join(args)}: exit code {done.returncode}: {done.stderr.strip()}")
        return done

    def show(self, what: str) -> Any:
        return json.loads(self.cli("show", what, "--json").stdout)

    def faults(self) -> list[str]:
        """The log, where there are errors of Python in it that nobody caught."""
        log = self.folder / "nfqlb.log"
        said = log.read_text(errors="replace") if log.exists() else ""
        return [f"{self.name}: {said[-4000:]}"] if "Traceback (most recent call last)" in said else []

    def real(self, endpoint: str) -> Any:
        """What `show services` says of one real server."""
        found = [real for service in self.show("services")["services"] for real in service["reals"]]
        return next(real for real in found if real["endpoint"] == endpoint)

    def addresses(self, device: str = "eth0") -> str:
        """What `ip` says of them."""
        return self.run(["ip", "-o", "addr", "show", "dev", device]).stdout

    def stop(self, timeout: float = 15.0) -> int:
        """SIGTERM, as an operator stops it; the exit code."""
        assert self.process is not None
        return self.process.end(signal.SIGTERM, timeout)

    def renew(self, timeout: float = 15.0) -> None:
        """SIGUSR2, and wait until a new director says ready."""
        assert self.process is not None
        said = self.readies()
        self.run(["kill", "-USR2", str(self.process.pid)])
        until(lambda: self.readies() > said, timeout, lambda: f"no new director:\n{self.process and self.process.text}")

    def take_over(self, *args: str) -> None:
        """Start another holder, which takes over from the one that runs."""
        old = self.process
        assert old is not None
        self.nfqlb(*args, "--takeover")
        code = old.wait()
        if code:
            raise CommandError(f"the holder that handed over ended with {code}:\n{old.text}")

    def readies(self) -> int:
        """How many directors of this holder have said ready."""
        assert self.process is not None
        return self.process.text.splitlines().count("ready")

    def kill_director(self) -> int:
        """kill -9 of the child that takes the packets; its pid."""
        pid = self.director_pid()
        self._kill(pid)
        return pid

    def kill_holder(self) -> None:
        assert self.process is not None
        child = self.director_pid()
        self.process.end(signal.SIGKILL)
        self._gone(child)

    def kill_both(self) -> None:
        assert self.process is not None
        child = self.director_pid()
        self.run(["kill", "-KILL", str(self.process.pid), str(child)])
        self.process.end(signal.SIGKILL)
        self._gone(child)

    def director_pid(self) -> int:
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        found = [int(pid) for pid in children if b"nfqlb.daemon" in _command(pid)]
        if len(found) != 1:
            raise CommandError(f"the holder {self.process.pid} has {len(found)} directors:\n{self.process.text}")
        return found[0]

    def state(self) -> dict[str, str]:
        """Rules, sets, addresses, sysctls and files of this machine: compare two by kernelstate.difference()."""
        return kernelstate.take(self, self.instance, {"run folder": self.run_folder})

    def _kill(self, pid: int) -> None:
        self.run(["kill", "-KILL", str(pid)])
        self._gone(pid)

    @staticmethod
    def _gone(pid: int, timeout: float = 20.0) -> None:
        end = time.monotonic() + timeout
        while alive(pid):
            if time.monotonic() > end:
                raise CommandError(f"process {pid} still runs {timeout} s after it should have ended")
            time.sleep(0.01)


def _command(pid: str) -> bytes:
    """Nothing where it has ended meanwhile, as what a holder starts for a moment does."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
