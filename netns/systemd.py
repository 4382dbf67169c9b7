"""A stand-in for systemd, as far as a service of Type=notify that has descriptors kept for it can see.

    python -m netns.systemd SOCKET COMMAND ...

starts the command, says each word that it hears, and does what lines on standard input say: `restart` (SIGUSR1, as
RestartKillSignal= of our unit), `crash` (SIGKILL of the service and all its children), `stop` (SIGTERM).
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

# What a program for which descriptors were kept begins with: they are 3 and up, and some variables tell of them.
LAUNCH = """
import fcntl, os, sys
kept = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 200) for fd in os.environ.pop("KEPT").split(",")]
for at, fd in enumerate(kept):
    os.dup2(fd, 3 + at)
os.closerange(3 + len(kept), 256)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(kept))}
os.execv(sys.argv[1], sys.argv[1:])
"""


class Systemd:
    """Hears words at a notify socket, and keeps descriptors under their names."""

    def __init__(self, path: Path, told: Callable[[str], object] = lambda word: None) -> None:
        self.path, self.kept, self.unpolled = str(path), dict[str, int](), set[str]()
        self._told = told
        self._words: queue.Queue[str] = queue.Queue()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def hear(self, seconds: float = 10.0) -> str:
        """The next word that is not about descriptors; queue.Empty where there is none."""
        return self._words.get(timeout=seconds)

    def end(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.sendto(b"", self.path)
        self._thread.join(10)
        self._socket.close()
        for name in list(self.kept):
            self._forget(name)

    def _listen(self) -> None:
        while True:
            text, fds, _, _ = socket.recv_fds(self._socket, 4096, 8)
            if not text:
                return
            said = dict(line.split("=", 1) for line in text.decode().splitlines())
            if "FDSTORE" in said:
                [fd] = fds
                self._forget(said["FDNAME"])
                self.kept[said["FDNAME"]] = fd
                self.unpolled |= {said["FDNAME"]} if said.get("FDPOLL") == "0" else set()
            elif "FDSTOREREMOVE" in said:
                self._forget(said["FDNAME"])
            else:
                self._told(text.decode())
                self._words.put(text.decode())

    def _forget(self, name: str) -> None:
        if name in self.kept:
            os.close(self.kept.pop(name))


def launched(command: Sequence[str], kept: Mapping[str, int]) -> tuple[list[str], dict[str, str]]:
    """The command that starts `command` with what was kept, and the variables that it wants."""
    names = {"KEPT": ",".join(map(str, kept.values())), "LISTEN_FDNAMES": ":".join(kept)}
    return [sys.executable, "-S", "-c", LAUNCH, *command], names


def start(command: Sequence[str], systemd: Systemd) -> subprocess.Popen[bytes]:
    env = {**os.environ, "NOTIFY_SOCKET": systemd.path}
    words, kept = list(command), dict(systemd.kept)
    if kept:
        words, names = launched(command, kept)
        env |= names
    return subprocess.Popen(words, env=env, pass_fds=tuple(kept.values()), start_new_session=True)


def main(path: str, *command: str) -> int:
    systemd = Systemd(Path(path), lambda word: print(word, flush=True))
    service = start(command, systemd)
    for line in sys.stdin:
        word = line.strip()
        if word == "crash":
            os.killpg(service.pid, signal.SIGKILL)
        else:
            service.send_signal(signal.SIGUSR1 if word == "restart" else signal.SIGTERM)
        code = service.wait()
        print(f"exit {code}", flush=True)
        if word == "stop":
            return code
        service = start(command, systemd)
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
