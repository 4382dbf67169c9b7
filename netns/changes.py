"""Changes of a service under a stream of numbered datagrams: how many took effect, how fast, and what was lost."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from netns.host import Host, Process, until
from netns.topology import Net
from nfqlb.api.client import Client

PORT = 9000
FLOWS = 64
PACE = 0.9  # of the time that the changes may take
LEAD = 0.5  # seconds of traffic before the first change, and after the last
SWITCHED = 20.0  # seconds until a change of the offload must have taken effect, on a machine that does much else


class Outcome(NamedTuple):
    """`seconds` is what the changes took; `lost_there` and `lost_back` are datagrams, and those that came late were
    overtaken by others of their flow.
    """

    sent: int
    changes: int
    seconds: float
    lost_there: int
    lost_back: int
    late_there: int
    late_back: int


def run(
    net: Net,
    *args: str,
    changes: int,
    rate: int,
    within: float,
    hasten: Callable[[int], None] = lambda pid: None,
    step: Callable[[Client, str, str, int], None] | None = None,
) -> Outcome:
    """Start nfqlb on `net` with these arguments, three servers or more; make so many changes, evenly, if it keeps up.

    By threes: a server is added, gets another weight, and is deleted again. Each is read back, else AssertionError.
    Or each is a `step`, which is given the service, a real server that is not in it, and the number of the change.
    `hasten` is given the pid of everything that has a part in it.
    """
    service = f"{net.service(PORT)}/udp"
    *reals, added = (f"{server.v4}:{PORT}" for server in net.servers)
    holder = net.director.nfqlb("--vip", service, *(word for real in reals for word in ("--real", real)), *args)
    client = Client(str(net.director.run_folder / net.director.instance / "api.sock"))
    for pid in (holder.pid, net.director.director_pid()):
        hasten(pid)
    stream = Stream(net, rate, within + 2 * LEAD, hasten)
    time.sleep(LEAD)
    began = time.monotonic()
    for number in range(changes):
        time.sleep(max(0.0, began + number * PACE * within / changes - time.monotonic()))
        (step or change)(client, service, added, number)
    taken = time.monotonic() - began
    found = stream.end()
    net.director.stop()
    return Outcome(found.sent, changes, taken, found.lost_there, found.lost_back, found.late_there, found.late_back)


class Arrived(NamedTuple):
    """What became of a stream; `there` has a bit for each number that arrived at a server, `silences` are the times
    without an answer, each from one moment (CLOCK_MONOTONIC) to another.
    """

    sent: int
    lost_there: int
    lost_back: int
    late_there: int
    late_back: int
    there: int
    silences: list[tuple[float, float]]


class Stream:
    """Numbered datagrams from the client to the service on PORT, which every server answers; for so many seconds."""

    def __init__(self, net: Net, rate: int, seconds: float, hasten: Callable[[int], None] = lambda pid: None) -> None:
        self._servers = [start(server, "serve", PORT) for server in net.servers]
        for server in self._servers:
            hasten(server.pid)
        self.seconds = seconds
        self._sender = start(net.client, "send", net.vip(), PORT, rate, seconds, FLOWS)
        hasten(self._sender.pid)

    def end(self) -> Arrived:
        """Wait for the end of it."""
        said = json.loads(answer(self._sender, self.seconds + 10))
        there = late = 0
        for server in self._servers:
            server.tell("")
            heard = json.loads(answer(server, 10))
            there |= int(heard["seen"], 16)
            late += heard["late"]
        sent, back = said["sent"], int(said["seen"], 16)
        lost = sent - there.bit_count(), sent - back.bit_count()
        return Arrived(sent, *lost, late, said["late"], there, [(since, to) for since, to in said["silences"]])


def change(client: Client, service: str, real: str, number: int) -> None:
    """The number-th change, read back."""
    address, _, port = real.rpartition(":")
    if number % 3 == 0:
        client.add_real(service, {"address": address, "port": int(port), "weight": 1})
    elif number % 3 == 1:
        client.edit_real(service, real, {"weight": 2 + number})
    else:
        client.delete_real(service, real)
    weight = dict(weights(client, service)).get(real)
    assert weight == [1, 2 + number, None][number % 3], f"change {number} of {real} took no effect: {weight}"


def switch_offload(client: Client, service: str, real: str, number: int) -> None:
    """The number-th change, off or on, once the one before took effect: a flow goes down with its next packets."""

    def flows() -> int:
        return int(client.daemon()["offload"]["flows"])

    on = number % 2 == 0
    until(lambda: (flows() > FLOWS / 2) == on, SWITCHED, lambda: f"{flows()} flows offloaded before change {number}")
    client.edit_service(service, {"offload": not on})


def weights(client: Client, service: str) -> Iterator[tuple[str, int]]:
    for found in client.services()["services"]:
        if found["key"] == service:
            yield from ((real["endpoint"], real["weight"]) for real in found["reals"])


def start(host: Host, *args: object) -> Process:
    """One end of the stream, in its namespace."""
    process = host.spawn([sys.executable, "-m", "netns.stream", *map(str, args)], log="stream.log")
    process.says("ready")
    return process


def answer(process: Process, timeout: float) -> str:
    process.wait(timeout)
    return process.text.splitlines()[-1]
