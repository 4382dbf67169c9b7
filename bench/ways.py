"""The peers: how each of them brings the client's packets to the real servers.

Each function sets up one director of the road and returns the processes that do the work there; the kernel's own ways
return none. Where a queue is used, both directions go through it, taken at the hooks where nfqlb takes them, by two
iptables rules: less than nfqlb's own table does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bench.road import COUNTED, ECHO, HTTP, SINK, Way, cable
from netns.director import NFQLB
from netns.host import Host

OFFLOAD = ("--offload", "auto")
PATIENCE = 120.0  # seconds until a director is ready: emulated machines are slow
GSO, PLAIN = 7, 8  # queues: TCP, and all else
NAT = """
table ip bench {{
    chain prerouting {{
        type nat hook prerouting priority dstnat;
        ip daddr {vip} dnat to numgen inc mod {count} map {{ {reals} }}
    }}
}}
"""
HAPROXY = """
global
    nbthread {threads}
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
"""
NGINX = """
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
daemon off;
worker_processes 2;
error_log {folder}/stream.log;
pid {folder}/stream.pid;
events {{ worker_connections 4096; }}
stream {{ {proxies} }}
"""
PROXIED = """
listen port-{port}
    bind {vip}:{port}
    balance roundrobin
    {servers}
"""


def ends(way: Way) -> list[int]:
    """No director: a cable from the client to each real server."""
    way.targets = []
    for number, server in enumerate(way.servers, 1):
        net = f"10.3.{number}"
        cable(way.sender, f"end-s{number}", f"{net}.1", server, "end-c", f"{net}.2")
        way.targets.append(f"{net}.2")
    return []


def plain(way: Way) -> list[int]:
    """The client addresses the real servers, the director's kernel forwards."""
    way.targets = way.reals
    return []


def nft(way: Way) -> list[int]:
    """DNAT in turn for each new connection, by the kernel's connection tracking."""
    reals = ", ".join(f"{number} : {real}" for number, real in enumerate(way.reals))
    way.director.run(["nft", "-f", "-"], stdin=NAT.format(vip=way.vip, count=len(way.reals), reals=reals))
    return []


def iptables(way: Way) -> list[int]:
    """As `nft`, by iptables: DNAT, and the statistic match for whose turn it is."""
    for left, real in zip(range(len(way.reals), 0, -1), way.reals, strict=True):
        turn = ["-m", "statistic", "--mode", "nth", "--every", str(left), "--packet", "0"]
        way.director.run(
            ["iptables", "-t", "nat", "-A", "PREROUTING", "-d", way.vip, *turn, "-j", "DNAT", "--to-destination", real]
        )
    return []


def nginx(way: Way) -> list[int]:
    """nginx's stream module: as HAProxy, with two processes."""
    folder = way.director.folder
    proxies = ""
    for port in (HTTP, SINK):
        servers = " ".join(f"server {real}:{port};" for real in way.reals)
        proxies += f"upstream port{port} {{ {servers} }} server {{ listen {way.vip}:{port}; proxy_pass port{port}; }}\n"
    path = folder / "stream.conf"
    path.write_text(NGINX.format(folder=folder, proxies=proxies))
    process = way.director.spawn(["nginx", "-c", str(path)])
    way.director.listens(HTTP)
    return [process.pid, *children(process.pid)]


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def haproxy(threads: int) -> Callable[[Way], list[int]]:
    """HAProxy in TCP mode: two connections, one to the client and one to a real server."""

    def start(way: Way) -> list[int]:
        path = way.director.folder / "haproxy.cfg"
        text = HAPROXY.format(threads=threads)
        for port in (HTTP, SINK):
            servers = "\n    ".join(f"server s{number} {real}:{port}" for number, real in enumerate(way.reals))
            text += PROXIED.format(port=port, vip=way.vip, servers=servers)
        path.write_text(text)
        process = way.director.spawn(["haproxy", "-db", "-f", str(path)])
        way.director.listens(HTTP)
        return [process.pid]

    return start


def callback(way: Way) -> list[int]:
    """netfilterqueue with a callback in plain Python (bench/callback.py)."""
    divert(way, PLAIN, PLAIN)
    return [engine(way, "bench.callback", str(PLAIN), way.vip, *way.reals)]


def percall(way: Way) -> list[int]:
    """netfilterqueue with a compiled callback that is nfqlb's data path (bench/loops.pyx)."""
    divert(way, PLAIN, PLAIN)
    return [engine(way, "bench.engine", "percall", str(PLAIN), way.vip, *way.reals)]


def loop(kind: str) -> Callable[[Way], list[int]]:
    """Plain forwarding, every packet taken on the way by a batch loop that does nothing (bench/loops.pyx)."""

    def start(way: Way) -> list[int]:
        way.targets = way.reals
        divert(way, GSO, PLAIN)
        return [engine(way, "bench.engine", kind, str(GSO), str(PLAIN))]

    return start


def nfqlb(
    kind: str, workers: int = 1, mode: str = "nat", *options: str, local: bool = False
) -> Callable[[Way], list[int]]:
    """nfqlb itself, its services and real servers set up as an operator would.

    Answers of dr and tun pass the director's kernel here, on the only way there is; so the VIP is not its address.
    Where it is (`local`), they have a way of their own.
    """

    def start(way: Way) -> list[int]:
        if local:
            past(way)
        elif mode != "nat":
            way.director.ip(f"address delete {way.vip}/32 dev uplink")
        if mode != "nat":
            for server in way.servers:
                server.run([NFQLB, "real-server", "setup", "--mode", mode, "--vip", way.vip], env=own(server))
        services = [f"{COUNTED}/udp", f"{ECHO}/udp", f"{HTTP}/tcp", f"{SINK}/tcp"]
        words = [word for service in services for word in ("--vip", f"{way.vip}:{service}")]
        words += [word for real in way.reals for word in ("--real", real)]
        given = ["--engine", kind, "--workers", str(workers), "--mode", mode, "--scheduler", "rr", *options]
        holder = way.director.nfqlb(*given, *words, timeout=PATIENCE)
        return [holder.pid, way.director.director_pid()]

    return start


def past(way: Way) -> None:
    """A cable from each server to the client, and the answers on it."""
    for number, server in enumerate(way.servers, 1):
        net = f"10.3.{way.number * 10 + number}"
        cable(server, f"past-{way.director.name}", f"{net}.1", way.sender, f"past-{way.number}-s{number}", f"{net}.2")
        server.ip(f"route replace {way.client}/32 via {net}.2")


def own(server: Host) -> dict[str, str]:
    return {"NFQLB_RUN_DIR": str(server.folder)}


def divert(way: Way, tcp: int, udp: int) -> None:
    """What clients send, and what real servers answer, into queues; nothing passes before an engine listens."""
    places = [["PREROUTING", "-i", "uplink", "-d", target] for target in set(way.targets)]
    places += [["FORWARD", "-o", "uplink", "-s", real] for real in way.reals]
    for place in places:
        for protocol, queue in (("tcp", tcp), ("udp", udp)):
            rule = [*place, "-p", protocol, "-j", "NFQUEUE", "--queue-num", str(queue)]
            way.director.run(["iptables", "-t", "mangle", "-A", *rule])


def engine(way: Way, module: str, *words: str) -> int:
    process = way.director.spawn([sys.executable, "-m", module, *words])
    process.says("ready")
    return process.pid


class Peer(NamedTuple):
    """`unfit`: the protocol that it cannot bring through."""

    title: str
    start: Callable[[Way], list[int]]
    unfit: str = ""


PEERS = {
    "ends": Peer("no director, a cable", ends, "udp"),
    "plain": Peer("plain forwarding", plain),
    "nft": Peer("nftables DNAT", nft),
    "iptables": Peer("iptables DNAT", iptables),
    "nginx": Peer("nginx stream, 2 workers", nginx, "udp"),
    "haproxy1": Peer("HAProxy, 1 thread", haproxy(1), "udp"),
    "haproxy2": Peer("HAProxy, 2 threads", haproxy(2), "udp"),
    "callback": Peer("netfilterqueue, Python callback", callback),
    "percall": Peer("netfilterqueue, Cython callback", percall),
    "accept": Peer("batch loop that accepts", loop("accept")),
    # TCP would need the checksums that the kernel leaves to the card, and so no longer come as they came
    "return": Peer("batch loop that hands back", loop("return"), "tcp"),
    "reference": Peer("nfqlb, reference engine", nfqlb("reference")),
    "fast": Peer("nfqlb, fast engine", nfqlb("fast")),
    "fast2": Peer("nfqlb, fast engine, 2 workers", nfqlb("fast", 2)),
    "dr": Peer("nfqlb, direct routing by frames", nfqlb("fast", 1, "dr", "--dr-by", "frame")),
    "dr-mark": Peer("nfqlb, direct routing by marks", nfqlb("fast", 1, "dr", "--dr-by", "route")),
    "dr-local": Peer("nfqlb, direct routing, the VIP local", nfqlb("fast", 1, "dr", local=True)),
    "tun": Peer("nfqlb, tunnelling", nfqlb("fast", 1, "tun")),
    "nat-bpf": Peer("nfqlb, NAT, offload", nfqlb("fast", 1, "nat", *OFFLOAD)),
    "dr-bpf": Peer("nfqlb, direct routing, offload", nfqlb("fast", 1, "dr", *OFFLOAD)),
    "local-bpf": Peer("nfqlb, direct routing, the VIP local, offload", nfqlb("fast", 1, "dr", *OFFLOAD, local=True)),
    "tun-bpf": Peer("nfqlb, tunnelling, offload", nfqlb("fast", 1, "tun", *OFFLOAD)),
}


def ways_of(measure: str) -> list[str]:
    """The peers that a measure fits."""
    protocol = "udp" if measure in ("udp", "latency") else "tcp"
    return [name for name, peer in PEERS.items() if peer.unfit != protocol]
