"""Requests from a client and what came of them: curl one by one, wrk many at once, netns.ask for the rest."""

from __future__ import annotations

import itertools
import json
import re
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from netns.host import CommandError, Host, Process

CURL = ["curl", "--silent", "--show-error", "--fail", "--globoff"]
PORTS = range(10_000, 30_000, 100)
_first_ports = itertools.cycle(PORTS)
ASK = [sys.executable, "-m", "netns.ask"]


def whoami(client: Host, url: str, count: int = 1) -> list[tuple[str, str]]:
    """`count` requests in a row, each on a new connection: the server that answered and the client that it saw."""
    argv = [*CURL, "--max-time", "5", "--header", "Connection: close", *[url] * count]
    lines = client.run(argv, timeout=60).stdout.splitlines()
    return [(server, seen) for server, seen in (line.split() for line in lines)]


def again(client: Host, address: str, count: int, source: int, port: int = 80) -> list[tuple[str, str, float]]:
    """`count` requests from one source port, as fast as they go: the server that answered, the client that it saw, and
    the seconds that it took to connect.
    """
    words = map(str, (port, count, source))
    lines = client.run([*ASK, "again", address, *words], timeout=60).stdout.splitlines()
    return [tuple(json.loads(line)) for line in lines]


def pages(client: Host, url: str, count: int) -> list[tuple[str, str]]:
    """`count` requests in a row, each on a new connection: the server that answered and the page."""
    argv = [*CURL, "--max-time", "5", "--header", "Connection: close", "--write-out", "\n%header{x-server}\n"]
    lines = client.run([*argv, *[url] * count], timeout=60).stdout.splitlines()
    return list(zip(lines[1::2], lines[::2], strict=True))


def split(answers: list[tuple[str, str]]) -> dict[str, int]:
    """How many requests each server answered."""
    return dict(Counter(server for server, _ in answers))


def download(client: Host, url: str, timeout: float = 100.0) -> str:
    """The SHA-256 of what the client got."""
    fetch = " ".join(f"'{word}'" for word in [*CURL, url])
    out = client.run(["bash", "-o", "pipefail", "-c", f"{fetch} | sha256sum"], timeout=timeout).stdout
    return out.split()[0]


def slow_download(client: Host, url: str, rate: int) -> Process:
    """A download at so many bytes a second; it says the SHA-256 of what came."""
    script = f"curl --silent --show-error --fail --limit-rate {rate} '{url}' | sha256sum"
    return client.spawn(["bash", "-o", "pipefail", "-c", script], log=f"download-{len(client.processes)}.log")


class Half:
    """A download that stops in the middle, until it is asked for the rest."""

    def __init__(self, client: Host, url: str) -> None:
        self.process = client.spawn([*ASK, "half", url], log=f"half-{len(client.processes)}.log")
        self.process.says('"half"')

    def rest(self, timeout: float = 60.0) -> str:
        """The SHA-256 of all of it."""
        self.process.tell("")
        if self.process.wait(timeout):
            raise CommandError(f"the rest of a download did not come:\n{self.process.text}")
        return str(json.loads(self.process.text.splitlines()[-1]))


def upload(client: Host, file: Path, url: str, timeout: float = 100.0) -> None:
    client.run([*CURL, "--upload-file", str(file), url], timeout=timeout)


class Figures(NamedTuple):
    """What wrk counted; `errors` is everything that was not a 2xx or 3xx answer in two seconds."""

    requests: int
    per_second: float
    errors: int
    text: str


class Wrk:
    """Many connections at once, for a while: `keepalive` ones, or a new one for every request."""

    def __init__(self, client: Host, url: str, *, connections: int, seconds: int, keepalive: bool = True) -> None:
        self.seconds = seconds
        header = "Connection: keep-alive" if keepalive else "Connection: close"
        argv = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "2s", "-H", header, url]
        self.process = client.spawn(argv, log=f"wrk-{len(client.processes)}.log")

    def stop(self) -> Figures:
        """End it now."""
        assert self.process.running, f"wrk ended before:\n{self.process.text}"
        self.process.end(signal.SIGINT)
        return self.figures()

    def figures(self) -> Figures:
        """Wait for the end of the run."""
        code, text = self.process.wait(self.seconds + 20), self.process.text
        requests, rate = re.search(r"(\d+) requests in", text), re.search(r"Requests/sec: *([\d.]+)", text)
        if code or not requests or not rate:
            raise CommandError(f"wrk ended with {code}: {text}")
        errors = [
            int(number) for line in re.findall(r"Socket errors:(.*)", text) for number in re.findall(r"\d+", line)
        ]
        errors += [int(number) for number in re.findall(r"Non-2xx or 3xx responses: (\d+)", text)]
        return Figures(int(requests[1]), float(rate[1]), sum(errors), text)


class Held:
    """Connections to the echo servers that stay open while things happen to the director."""

    def __init__(self, client: Host, address: str, count: int, port: int = 7) -> None:
        self.process = client.spawn(
            [*ASK, "hold", address, str(port), str(count)], log=f"hold-{len(client.processes)}.log"
        )
        self.opened: list[list[str]] = self._line(0)
        self.asked = 0

    def alive(self) -> int:
        """Send a line on all of them; how many repeat it."""
        self.process.tell(f"line {self.asked}")
        self.asked += 1
        return int(self._line(self.asked))

    def _line(self, number: int, timeout: float = 30.0) -> Any:
        end = time.monotonic() + timeout
        while len(lines := self.process.text.splitlines(keepends=True)) <= number or not lines[number].endswith("\n"):
            if not self.process.running or time.monotonic() > end:
                raise CommandError(f"no answer from netns.ask hold:\n{self.process.text}")
            time.sleep(0.01)
        return json.loads(lines[number])


class Probe:
    """A request on a new connection every `interval` seconds, with its time, so that an outage can be measured.

    PATIENCE is for tests: a machine may pause, but a SYN that was lost comes again after a second.
    """

    PATIENCE = 0.9

    def __init__(self, client: Host, url: str, interval: float = 0.05, patience: float = 0.25) -> None:
        self.process = client.spawn([*ASK, "probe", url, str(interval), str(patience)], log="probe.log")

    def wait(self, count: int = 5, timeout: float = 10.0) -> None:
        """Return when that many requests are over."""
        end = time.monotonic() + timeout
        while len(self.results()) < count:
            if not self.process.running or time.monotonic() > end:
                raise CommandError(f"no answer from netns.ask probe:\n{self.process.text}")
            time.sleep(0.01)

    def results(self) -> list[tuple[float, bool]]:
        lines = self.process.text.splitlines(keepends=True)
        return [(when, ok) for when, ok in (json.loads(line) for line in lines if line.endswith("\n"))]

    def end(self) -> list[tuple[float, bool]]:
        self.process.end()
        return self.results()


def udp(
    client: Host, address: str, count: int, size: int, port: int = 7, apart: bool = False, source: int = 0
) -> list[tuple[str, str] | None]:
    """Datagrams to the echo servers: server and client seen, or None if unanswered.

    Each comes from a port that none came from before, so that each is a connection of its own; with `apart` these
    are not in a row, but 100 apart. With a `source` all come from that port.
    """
    assert count <= PORTS.step
    firsts = [next(_first_ports) for _ in range(count if apart else 1)]
    sources = [source] * count if source else firsts if apart else range(firsts[0], firsts[0] + count)
    words = str(port), str(size), ",".join(map(str, sources))
    out = client.run([*ASK, "udp", address, *words], timeout=60).stdout
    answers = [json.loads(line) for line in out.splitlines()]
    return [(answer[0], answer[1]) if answer else None for answer in answers]


def gso(client: Host, address: str, count: int, size: int, port: int = 7) -> tuple[int, int]:
    """Datagrams by UDP_SEGMENT: how many came back unharmed, and how many came back."""
    unharmed, came = json.loads(client.run([*ASK, "gso", address, str(port), str(count), str(size)], timeout=60).stdout)
    return unharmed, came
