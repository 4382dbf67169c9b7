"""A million connections that nobody means: `python -m bench.flood`.

Paced TCP streams that are established, alone and under a flood of SYNs of a million clients that are none, in pairs.
The table has far fewer places than that, and defends itself (drop_entry and secure_tcp while places are few). The
streams ask for a quarter of what they get alone. Nothing is dropped from the figures. Exit code 1 where the streams got
too little, a SYN was not sent, or the table held more than it has places for.

`python -m bench.flood send DEVICE MAC DESTINATION PORT SECONDS` is the sender: says `going`, then how many it sent.
"""

from __future__ import annotations

import ctypes
import ipaddress
import socket
import sys
import time

from bench import figures, share
from bench.blast import ETHERNET_IP, FLOWS, SO_SNDBUFFORCE
from bench.deluge import FIRST, SYN_LENGTH, messages, renew, syn
from bench.overload import SWALLOW, paced, rate
from bench.road import COUNTED, Road, Way
from bench.ways import nfqlb

ROUNDS, SECONDS, LEAD, SETTLED = 5, 10.0, 1.0, 3.0
SYNS = 1_000_000
TURNS = SYNS // FLOWS
PLACES = 1 << 16
SHARE = 0.95


def send(device: str, mac: str, destination: str, port: str, seconds: str) -> None:
    """SYNS, each of another client, evenly over so many seconds, or as fast as they go where that is slower."""
    share.take(share.SENDER)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as link:
        link.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 1 << 20)
        link.bind((device, 0))
        ethernet = bytes.fromhex(mac.replace(":", "")) + link.getsockname()[4] + ETHERNET_IP.to_bytes(2)
        clients = [str(ipaddress.ip_address(FIRST) + i) for i in range(FLOWS)]
        frames = [ethernet + syn(client, destination, int(port)) for client in clients]
        batch = [ctypes.create_string_buffer(frame, SYN_LENGTH) for frame in frames]
        found, call, sent = messages(batch), ctypes.CDLL(None, use_errno=True).sendmmsg, 0
        print("going", flush=True)
        began = time.monotonic()
        for turn in range(TURNS):
            renew(batch, turn + 1)
            while time.monotonic() < began + float(seconds) * turn / TURNS:
                pass
            sent += max(0, call(link.fileno(), found, FLOWS, 0))
        print(sent)


def used(way: Way) -> int:
    return int(way.director.show("daemon")["table"]["used"])


def once(road: Road, way: Way) -> dict[str, float]:
    source = paced(road, way)
    alone = rate(road, SETTLED)
    flood = road.start(road.client, "bench.flood", "send", way.device, way.mac, way.vip, str(COUNTED), str(SECONDS))
    flood.says("going")
    held, parts = 0, []
    end = time.monotonic() + SECONDS - LEAD
    while time.monotonic() < end:
        parts.append(rate(road, LEAD))
        held = max(held, used(way))
    flood.wait(6 * SECONDS)
    source.end()
    reasons = way.director.show("reasons")["reasons"]
    defences = way.director.show("daemon")["defences"]
    return {
        "streams, Gbit/s alone": alone * 8e-9,
        "streams, under / alone": sum(parts) / len(parts) / alone,
        "SYNs sent": float(flood.text.split()[1]),
        "places taken": float(held),
        "ended before their time": float(defences["evicted"]),
        "SYNs refused": float(sum(reasons.get(name, 0) for name in ("table_full", "shed", "drop_packet"))),
    }


def main() -> int:
    share.alone()
    rounds = []
    for _ in range(ROUNDS):
        with Road("fast") as road:
            way = road.ways["fast"]
            for server in road.servers:
                server.run(SWALLOW)
            options = ("--vip", f"{way.vip}:{COUNTED}/tcp", "--connections", str(PLACES))
            way.pids = nfqlb("fast", 1, "nat", *options)(way)
            way.director.cli("set", "options.drop_entry=1", "options.secure_tcp=1")
            for pid in way.pids:
                share.take(share.ENGINE, pid)
            rounds.append(once(road, way))
    about = figures.circumstances()
    path = figures.keep("flood", {"about": about, "rounds": rounds})
    print(figures.heading(about, f"{ROUNDS} rounds, a million SYNs in {SECONDS:.0f} s, median (spread)"))
    bars: dict[str, dict[str, float]] = {
        "streams, under / alone": {"bar": SHARE},
        "SYNs sent": {"bar": float(SYNS)},
        "places taken": {"most": float(PLACES)},
    }
    sheet = figures.Sheet()
    for name in rounds[0]:
        form = ".3f" if "streams" in name else ",.0f"
        sheet.figure(name, [one[name] for one in rounds], form, **bars.get(name, {}))
    return sheet.end(path)


if __name__ == "__main__":
    if sys.argv[1:2] == ["send"]:
        send(*sys.argv[2:])
    else:
        sys.exit(main())
