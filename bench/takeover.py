"""A director that is replaced, or killed, under 20,000 datagrams a second: `python -m bench.takeover`.

Beside the numbered datagrams, which real servers answer, a client holds 1,000 idle connections and downloads a file. In
the middle of a round the director hands over (SIGUSR2; `--takeover`), or the director, the holder or both are killed
(SIGKILL), whereupon the holder starts a director, or `nfqlb run` is started again. Told are the seconds from the kill,
or from that command, until the first answer, the datagrams that were lost, each being looked for by its number, and the
connections that do not answer after it. All that has a part in it goes before other programs, and bytecode is compiled
first, as an installation has it. Every round has machines of its own; none is dropped. Exit code 1 where a hand-over
lost anything, where a connection ended, or where the median of the seconds after a kill is more than BAR.

Then 10,000,000 connections are found again in a table's file, as a start after a crash does; no bar, but all of them.

`python -m bench.takeover nat 2` takes that mode alone, two rounds of each event; `python -m bench.takeover table` that.
"""

from __future__ import annotations

import compileall
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

from bench import figures, share
from bench.core import NOW, VIP, serve, shared_memory
from netns import load
from netns.changes import PORT, Stream
from netns.topology import Net
from nfqlb._core.connection import Table
from nfqlb._core.probe import Flows
from nfqlb.testing import udp

ROUNDS = {"nat": 5, "dr": 3, "tun": 3}
RATE, SECONDS = 20_000, 5.0
HELD = 1000
LEAD = 1.5  # seconds of traffic before the event
SIZE, PACE = 32 << 20, 8 << 20  # bytes of the download, and those a second
CONNECTIONS, SCANS = 10_000_000, 5
BAR = 0.5  # seconds until packets flow again after a kill
HANDED, KILLED = ("renew", "take over"), ("director", "holder", "both")


class Round(NamedTuple):
    """`silence` is the longest time without an answer and `again` when it ended, in seconds; the rest are numbers of
    datagrams and connections. `whole` says that the download came as it is on the server.
    """

    mode: str
    event: str
    again: float
    silence: float
    sent: int
    lost_there: int
    lost_back: int
    late: int
    broken: int
    whole: bool


def once(mode: str, event: str) -> Round:
    net = Net(servers=2, echo=True, mode=mode)
    for host in net.hosts:
        host.begun = share.hasten
    with net:
        digest = net.storage.fill("whole", SIZE)
        services = [word for port in (f"{PORT}/udp", "7/tcp", "80/tcp") for word in ("--vip", f"{net.vip()}:{port}")]
        servers = [word for server in net.servers for word in ("--real", server.v4)]
        args = ["--mode", mode, *services, *servers]
        net.director.nfqlb(*args)
        held = load.Held(net.client, net.vip(), HELD)
        download = load.slow_download(net.client, net.url("/whole"), PACE)
        stream = Stream(net, RATE, SECONDS)
        time.sleep(LEAD)
        began = happen(net, event, args)
        arrived = stream.end()
        broken = HELD - held.alive()
        whole = download.wait(30) == 0 and download.text.split()[0] == digest
        silences = [(to - since, to - began) for since, to in arrived.silences if to > began]
        silence, again = max(silences, default=(0.0, 0.0))
        late = arrived.late_there + arrived.late_back
        lost = arrived.lost_there, arrived.lost_back
        return Round(mode, event, again, silence, arrived.sent, *lost, late, broken, whole)


def happen(net: Net, event: str, args: list[str]) -> float:
    """Let it happen; the moment at which the start of the next director began."""
    director = net.director
    if event == "holder":
        director.kill_holder()
    elif event == "both":
        director.kill_both()
    began = time.monotonic()
    if event == "director":
        director.kill_director()
    elif event == "renew":
        director.renew()
    elif event == "take over":
        director.take_over(*args)
    else:
        director.nfqlb(*args)
    return began


def scan() -> list[float]:
    """Seconds of each start on a table of CONNECTIONS that somebody left."""
    taken = []
    capacity = CONNECTIONS + CONNECTIONS // 8
    with shared_memory() as fd:
        table, datapath = serve(fd, capacity, NOW)
        Flows(datapath.worker(), udp("10.0.0.1:10000", str(VIP), bytes(18)), CONNECTIONS).in_turn(NOW)
        del table, datapath
        for _ in range(SCANS):
            began = time.monotonic()
            table = Table(fd, capacity, NOW)
            taken.append(time.monotonic() - began)
            if (table.adopted, table.torn) != (CONNECTIONS, 0):
                raise AssertionError(f"{table.adopted} connections are found again, {table.torn} are torn")
            del table
    return taken


def turns(rounds: dict[str, int]) -> Iterator[tuple[str, str]]:
    """Modes and events take turns."""
    for number in range(max(rounds.values(), default=0)):
        for mode in rounds:
            if number < rounds[mode]:
                yield from ((mode, event) for event in (*HANDED, *KILLED))


def main() -> int:
    share.alone()
    compileall.compile_dir(figures.ROOT / "src", quiet=1)
    words, rounds = sys.argv[1:], []
    only = ROUNDS if not words else {} if words == ["table"] else {words[0]: max(2, int(words[1]))}
    for mode, event in turns(only):
        rounds.append(once(mode, event))
        print(rounds[-1], flush=True)
    about = figures.circumstances()
    scans = scan() if len(words) < 2 else []
    path = figures.keep("takeover", {"about": about, "rounds": [one._asdict() for one in rounds], "scans": scans})
    print(figures.heading(about, f"{RATE:,} datagrams a second, {HELD:,} connections, median (spread)"))
    sheet = figures.Sheet()
    if scans:
        sheet.figure(f"{CONNECTIONS:,} connections found, s", scans, ".3f")
    for mode, event in dict.fromkeys((one.mode, one.event) for one in rounds):
        some = [one for one in rounds if (one.mode, one.event) == (mode, event)]
        lost = [one.lost_there + one.lost_back for one in some]
        if event in HANDED:
            sheet.figure(f"{mode}, {event}: lost", lost, ",.0f", most=0, each=True)
        else:
            sheet.figure(f"{mode}, {event} killed: again, s", [one.again for one in some], ".3f", most=BAR)
            sheet.figure(f"{mode}, {event} killed: lost", lost, ",.0f")
    sheet.bar("nothing is overtaken by a hand-over", not any(one.late for one in rounds if one.event in HANDED))
    sheet.bar("no connection ends", not any(one.broken for one in rounds))
    sheet.bar("every download is whole", all(one.whole for one in rounds))
    return sheet.end(path)


if __name__ == "__main__":
    sys.exit(main())
