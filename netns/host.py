"""One machine of a topology: a network namespace, and the verbs to use it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeVar

from pyroute2.netns import setns  # type: ignore[import-untyped]

Opened = TypeVar("Opened")
PROJECT = Path(__file__).resolve().parents[1]


class CommandError(RuntimeError):
    """A command in a namespace failed: which, where, and what it said."""


def state(pid: int) -> str:
    """R where it has something to do, S where it waits, and so on (proc(5)); X where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def alive(pid: int) -> bool:
    """Whether the process still runs; a zombie does not."""
    return state(pid) not in "ZX"


def until(reached: Callable[[], bool], timeout: float, otherwise: Callable[[], str]) -> None:
    """Wait until it is so; CommandError with what `otherwise` says when it is not in time."""
    end = time.monotonic() + timeout
    while not reached():
        if time.monotonic() > end:
            raise CommandError(f"{otherwise()} (waited {timeout} s)")
        time.sleep(0.02)


class Process:
    """A program that runs in a namespace; what it says stands in its log."""

    def __init__(self, argv: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        self.argv, self.log = list(argv), log
        with log.open("ab") as out:
            self._start = out.tell()
            self._popen = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=out, stderr=out, env=env, cwd=PROJECT, start_new_session=True
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    @property
    def stdin(self) -> IO[bytes]:
        assert self._popen.stdin is not None
        return self._popen.stdin

    @property
    def text(self) -> str:
        """All that this run of the program has printed, both streams."""
        return self.log.read_bytes()[self._start :].decode(errors="replace")

    def says(self, line: str, timeout: float = 30.0) -> None:
        """Wait until the program prints a line that begins so; fail when it ends or takes longer."""
        end = time.monotonic() + timeout
        while True:
            running = self.running  # looked at first: all that was said before the end is there after it
            if any(text.startswith(line) for text in self.text.splitlines()):
                return
            if not running or time.monotonic() > end:
                how = f"took more than {timeout} s" if running else f"ended with {self.wait()}"
                raise CommandError(f"{' '.join(self.argv)}\n{how} and never said {line!r}:\n{self.text}")
            time.sleep(0.01)

    def wait(self, timeout: float = 10.0) -> int:
        return self._popen.wait(timeout)

    def end(self, number: int = signal.SIGTERM, timeout: float = 10.0) -> int:
        """Send the signal (to this process only) and wait; the exit code."""
        if self.running:
            self._popen.send_signal(number)
        code = self.wait(timeout)
        self.stdin.close()
        return code

    def tell(self, line: str) -> None:
        """Write a line to the program's standard input."""
        self.stdin.write(line.encode() + b"\n")
        self.stdin.flush()


class Host:
    """A namespace with its addresses; `folder` is a scratch directory of its own."""

    def __init__(self, tag: str, name: str, folder: Path) -> None:
        self.name, self.namespace, self.folder = name, f"{tag}-{name}", folder / name
        self.v4 = self.v6 = ""
        self.devices: list[str] = []
        self.processes: list[Process] = []
        self.begun: Callable[[int], None] = lambda pid: None  # is told of each process that begins here
        self.folder.mkdir()

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float = 30.0,
        check: bool = True,
        stdin: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end; with `check`, anything but exit code 0 raises CommandError with what was said."""
        done = subprocess.run(
            self.argv(argv),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=self.env(env),
            cwd=PROJECT,
        )
        if check and done.returncode:
            said = (done.stderr + done.stdout).strip()[-2000:]
            raise CommandError(f"{self.name}: {' '.join(argv)}: exit code {done.returncode}: {said}")
        return done

    def inside(self, do: Callable[[], Opened]) -> Opened:
        """Call it in a thread that is in this namespace; a socket that it opens stays here, wherever it is used."""

        def enter() -> Opened:
            setns(self.namespace, 0)
            return do()

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(enter).result()

    def spawn(self, argv: Sequence[str], *, log: str = "", env: Mapping[str, str] | None = None) -> Process:
        """Start and return at once; ends at the latest with the topology."""
        process = Process(self.argv(argv), self.folder / (log or f"{Path(argv[0]).name}.log"), self.env(env))
        self.processes.append(process)
        self.begun(process.pid)
        return process

    def close(self) -> None:
        """End what was started here, at once."""
        for process in self.processes:
            process.end(signal.SIGKILL)

    def faults(self) -> list[str]:
        """What no program of ours may have said here."""
        return []

    def start_echo(self, port: int = 7) -> None:
        """Answer on a TCP and UDP port: `NAME CLIENT `, then what was sent."""
        self.spawn([sys.executable, "-m", "netns.echo", self.name, str(port)], log=f"echo-{port}.log").says("ready")

    def listens(self, port: int, timeout: float = 10.0) -> None:
        """Wait until a program here listens on the TCP port."""
        until(lambda: port in self.listening(), timeout, lambda: f"{self.name}: nobody listens on port {port}")

    def listening(self) -> Counter[int]:
        """The TCP ports that programs here listen on, and on how many sockets each."""
        lines = self.run(["ss", "-Hltn"]).stdout.splitlines()
        return Counter(int(line.split()[3].rpartition(":")[2]) for line in lines)

    def narrow(self, prefix: str, device: str, mtu: int) -> None:
        """Give the route to a network that is on this device a smaller MTU."""
        metric = " metric 256" if ":" in prefix else ""  # of the route that is there
        self.ip(f"route replace {prefix} dev {device}{metric} mtu {mtu}")

    def argv(self, argv: Sequence[str]) -> list[str]:
        return ["ip", "netns", "exec", self.namespace, *argv]

    def env(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        return {**os.environ, **(more or {})}

    def ip(self, *lines: str) -> None:
        """`ip` commands in this namespace, in one batch: host.ip("route add default via 10.0.0.1")."""
        batch = "\n".join(lines) + "\n"
        argv = ["ip", "-n", self.namespace, "-batch", "-"]
        done = subprocess.run(argv, input=batch, capture_output=True, text=True, timeout=10)
        if done.returncode:
            raise CommandError(f"{self.name}: ip {done.stderr.strip()}\n{batch}")

    def sysctl(self, *settings: str) -> None:
        """host.sysctl("net.ipv4.ip_forward=1")."""
        self.run(["sysctl", "-qw", *settings])

    def address(self, family: int = 4) -> str:
        return self.v4 if family == 4 else self.v6

    def offload(self, on: bool) -> None:
        """Checksum offload of every device (and with it the segmentation that needs it)."""
        for device in self.devices:
            self.run(["ethtool", "-K", device, "tx", "on" if on else "off", "rx", "on" if on else "off"])

    @contextmanager
    def capture(self, expression: str = "", device: str = "any") -> Iterator[Path]:
        """A pcap file of what passes while the block runs."""
        path = self.folder / "capture.pcap"
        argv = [
            "tcpdump",
            "-Z",
            "root",
            "--immediate-mode",
            "-U",
            "-n",
            "-s",
            "0",
            "-i",
            device,
            "-w",
            str(path),
            *expression.split(),
        ]
        process = self.spawn(argv)
        try:
            process.says("tcpdump: listening on")
            yield path
            time.sleep(0.1)
            # tcpdump drops what it has not read yet when it is told to end
            until(lambda: state(process.pid) in "SZX", 10, lambda: "tcpdump goes on and on")
        finally:
            process.end(signal.SIGINT)
