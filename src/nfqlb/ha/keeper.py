"""Keeps keepalived for a director, and outlives it for as long as one may take to come back.

Strategy: a process of its own, one loop, the standard library alone. The director speaks to it over a socket: a word a
line. "ready" and "held" go into the file that keepalived tracks; "start" sees that it runs, "reload" that it goes by
its configuration as it is now, too; "stop" ends both; "leave" says that a successor is on its way. Back come the states
that keepalived writes into its FIFO: "MASTER", "BACKUP", "FAULT", "STOP".

A director that ends without "stop" closes the socket by its death, however it dies, and the holder's death is its
own. Then the time of patience runs, a longer one after "leave". Whoever connects meanwhile is its successor, and
nothing has happened; else the VIPs go to another machine: keepalived is ended in order, which says so to the others at
once.

keepalived dies with its keeper (PR_SET_PDEATHSIG): nobody has a VIP who is not watched.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from nfqlb.logs import Voice

PROGRAM = "keepalived"
SOCKET, LOCK = "keeper.sock", "lock"
CONFIGURATION, READY, FIFO = "keepalived.conf", "ready", "states"
OWN = (SOCKET, CONFIGURATION, READY, FIFO, "keepalived.pid", "vrrp.pid", LOCK)
STATE = re.compile(r'INSTANCE "(?P<name>[^"]+)" (?P<state>MASTER|BACKUP|FAULT|STOP)\b')
FIRST_SECONDS = 10.0  # that a director has to speak at all
HANDOVER_SECONDS = 5.0  # that a director has to follow one that left, at least
PAUSE_SECONDS = 1.0  # between the end of keepalived and its next start
END_SECONDS = 5.0  # that keepalived has to end in order
PR_SET_PDEATHSIG = 1


class Keeper:
    """`pid_file` is that of a keepalived that runs anyway; nothing: one is started here."""

    def __init__(self, folder: Path, instance: str, patience: float, pid_file: str, voice: Voice) -> None:
        self.folder, self.instance, self.patience, self.pid_file, self.voice = (
            folder,
            instance,
            patience,
            pid_file,
            voice,
        )
        self.selector = selectors.DefaultSelector()
        self.director: socket.socket | None = None
        self.words = self.states = b""
        self.child: subprocess.Popen[bytes] | None = None
        self.state = ""  # none so far
        self.deadline: float | None = time.monotonic() + FIRST_SECONDS
        self.again: float | None = None  # when keepalived is started again
        self.left = False  # a successor is on its way
        self.done = False

    def run(self) -> None:
        self.take_folder()
        self.track("1")
        fifo = self.open_fifo()
        with socket.socket(socket.AF_UNIX) as listener:
            (self.folder / SOCKET).unlink(missing_ok=True)
            listener.bind(str(self.folder / SOCKET))
            listener.listen()
            self.selector.register(listener, selectors.EVENT_READ, self.accept)
            self.selector.register(fifo, selectors.EVENT_READ, self.read_states)
            try:
                while not self.done:
                    self.turn()
            finally:
                (self.folder / SOCKET).unlink(missing_ok=True)
                self.end()
                if self.director:
                    self.director.close()
                if not self.pid_file:  # else that keepalived has to find what it reads
                    for name in OWN:
                        (self.folder / name).unlink(missing_ok=True)
                    with contextlib.suppress(OSError):
                        self.folder.rmdir()

    def take_folder(self) -> None:
        """Have it for ourselves, for as long as this process lives. A predecessor may be about to end keepalived: it
        takes the folder away with it.
        """
        path = self.folder / LOCK
        while True:
            with contextlib.suppress(FileNotFoundError):
                self.folder.mkdir(parents=True, exist_ok=True)
                lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                fcntl.flock(lock, fcntl.LOCK_EX)
                if path.exists() and os.path.samestat(os.fstat(lock), path.stat()):
                    return
                os.close(lock)

    def open_fifo(self) -> int:
        path = self.folder / FIFO
        if not path.is_fifo():
            path.unlink(missing_ok=True)
            os.mkfifo(path, 0o600)
        return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def turn(self) -> None:
        """Wait for what happens next, and see to it."""
        now = time.monotonic()
        due = [one for one in (self.deadline, self.again) if one is not None]
        for key, _ in self.selector.select(max(0.0, min(due) - now) if due else None):
            if self.selector.get_map().get(key.fd) is key:  # not of a director whose successor came in the same turn
                key.data(key.fileobj)
        now = time.monotonic()
        if self.deadline is not None and now >= self.deadline:
            self.voice.say(f"no director for {self.wait:g} s: another one takes over", "error")
            self.done = True
        elif self.again is not None and now >= self.again:
            self.again = None
            self.reload()

    # --- the director -------------------------------------------------------------------------------------------------

    def accept(self, listener: Any) -> None:
        if self.director:
            self.leave()
        self.director, _ = listener.accept()
        self.words, self.deadline, self.left = b"", None, False
        self.selector.register(self.director, selectors.EVENT_READ, self.hear)
        self.tell()

    def hear(self, director: Any) -> None:
        try:
            heard = director.recv(4096)
        except ConnectionError:
            heard = b""
        if not heard:
            self.leave()
            self.deadline = time.monotonic() + self.wait
            return
        *words, self.words = (self.words + heard).split(b"\n")
        for word in words:
            if word == b"reload" or (word == b"start" and not self.child):
                self.reload()
            elif word == b"start":
                continue
            elif word == b"stop":
                self.done = True
            elif word == b"leave":
                self.left = True
            else:
                self.track("0" if word == b"ready" else "1")

    @property
    def wait(self) -> float:
        """Seconds that a director may be away."""
        return max(self.patience, HANDOVER_SECONDS) if self.left else self.patience

    def leave(self) -> None:
        if self.director:
            self.selector.unregister(self.director)
            self.director.close()
            self.director = None

    def tell(self) -> None:
        if self.director and self.state:
            with contextlib.suppress(OSError):  # its end is seen where it is read
                self.director.sendall(f"{self.state}\n".encode())

    # --- keepalived ---------------------------------------------------------------------------------------------------

    def track(self, value: str) -> None:
        """Say whether this director may be master: keepalived sees the file change."""
        (self.folder / READY).write_text(f"{value}\n")

    def reload(self) -> None:
        """Have keepalived go by the configuration as it is now."""
        if self.pid_file:
            try:
                os.kill(int(Path(self.pid_file).read_text()), signal.SIGHUP)
            except (OSError, ValueError) as error:
                why = error.strerror if isinstance(error, OSError) else "holds no number"
                self.voice.say(f"keepalived is not told of its new configuration: {self.pid_file}: {why}", "warning")
        elif self.child:
            self.child.send_signal(signal.SIGHUP)
        else:
            self.start()

    def start(self) -> None:
        files = ("-f", CONFIGURATION), ("-p", "keepalived.pid"), ("-r", "vrrp.pid")
        options = [word for option, name in files for word in (option, str(self.folder / name))]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        try:
            self.child = subprocess.Popen([PROGRAM, "-n", "-P", *options], preexec_fn=_die_with_keeper, **quiet)  # type: ignore[call-overload]
        except OSError as error:
            self.voice.say(f"{PROGRAM} cannot be started: {error.strerror}", "error")
            self.again = time.monotonic() + PAUSE_SECONDS
            return
        assert self.child
        pidfd = os.pidfd_open(self.child.pid)
        self.selector.register(pidfd, selectors.EVENT_READ, self.bury)

    def bury(self, pidfd: Any) -> None:
        """keepalived has ended by itself."""
        self.selector.unregister(pidfd)
        os.close(pidfd)
        if self.child:
            code = self.child.wait()
            self.child = None
            self.voice.say(f"keepalived ended ({code}){self.complaint()}; it is started again", "error")
            self.again = time.monotonic() + PAUSE_SECONDS
            self.enter("STOP")

    def complaint(self) -> str:
        """What keepalived has against its configuration."""
        test = [PROGRAM, "-t", "-f", str(self.folder / CONFIGURATION)]
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            said = subprocess.run(test, capture_output=True, text=True, timeout=END_SECONDS).stderr.splitlines()
            return "".join(f": {line.strip()}" for line in said[:1])
        return ""

    def read_states(self, fifo: Any) -> None:
        with contextlib.suppress(BlockingIOError):
            self.states += os.read(fifo, 65536)
        *lines, self.states = self.states.split(b"\n")
        for line in lines:
            found = STATE.match(line.decode(errors="replace"))
            if found and found["name"] == self.instance:
                self.enter(found["state"])

    def enter(self, state: str) -> None:
        if state != self.state:
            self.state = state
            self.tell()

    def end(self) -> None:
        """Give the VIPs up, and say so to the others."""
        self.track("1")
        child, self.child = self.child, None
        if child:
            child.terminate()
            try:
                child.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _die_with_keeper() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def main(folder: str, instance: str, patience: str, pid_file: str, form: str, name: str) -> NoReturn:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    Keeper(Path(folder), instance, float(patience), pid_file, Voice(form, name)).run()
    sys.exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
