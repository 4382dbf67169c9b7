"""Addresses and cables: what each machine gets is collected first, then done in one `ip` batch a machine."""

from __future__ import annotations

import subprocess
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from netns.host import CommandError, Host


class Pair(NamedTuple):
    """The two addresses of one thing."""

    v4: str
    v6: str

    def of(self, family: int) -> str:
        return self.v4 if family == 4 else self.v6


class Network(NamedTuple):
    """A /24 and a /64, numbered alike."""

    v4: str
    v6: str

    def at(self, number: int) -> Pair:
        return Pair(f"{self.v4}.{number}", f"{self.v6}::{number:x}")

    @property
    def prefixes(self) -> Pair:
        return Pair(f"{self.v4}.0/24", f"{self.v6}::/64")


INSIDE = Network("10.2.0", "2001:db8:2")
UPLINK = Network("10.3.0", "2001:db8:3")
ROUTED = Pair("203.0.113.10", "2001:db8:f::10")


def lan(number: int) -> Network:
    """The network of one client."""
    return Network(f"10.1.{number}", f"2001:db8:1:{number:x}")


def endpoint(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


class Wiring:
    def __init__(self, hosts: Sequence[Host]) -> None:
        self.hosts = hosts
        self.cables: list[str] = []
        self.lines: dict[Host, list[str]] = defaultdict(list)
        self.routes: dict[Host, list[str]] = defaultdict(list)

    def cable(self, a: Host, device_a: str, b: Host, device_b: str) -> None:
        self.cables.append(
            f"link add {device_a} netns {a.namespace} type veth peer name {device_b} netns {b.namespace}"
        )
        for host, device in ((a, device_a), (b, device_b)):
            host.devices.append(device)
            self.lines[host].append(f"link set {device} up")

    def plug(self, host: Host, switch: Host) -> None:
        """A cable from the machine's eth0 to a port of the switch."""
        self.cable(host, "eth0", switch, f"p-{host.name}")
        self.lines[switch].append(f"link set p-{host.name} master br0")

    def address(self, host: Host, device: str, pair: Pair) -> None:
        """The main addresses of a device; the machine is known by those it gets last."""
        self.lines[host] += [f"address add {pair.v4}/24 dev {device}", f"address add {pair.v6}/64 dev {device} nodad"]
        host.v4, host.v6 = pair

    def alias(self, host: Host, device: str, pair: Pair) -> None:
        self.lines[host] += [f"address add {pair.v4}/32 dev {device}", f"address add {pair.v6}/128 dev {device} nodad"]

    def route(self, host: Host, prefixes: Pair, gateway: Pair) -> None:
        self.routes[host] += [f"route add {prefixes.v4} via {gateway.v4}", f"route add {prefixes.v6} via {gateway.v6}"]

    def default(self, host: Host, gateway: Pair) -> None:
        self.route(host, Pair("0.0.0.0/0", "::/0"), gateway)

    def apply(self, switch: Host, router: Host) -> None:
        _ip([f"netns add {host.namespace}" for host in self.hosts])
        for host in self.hosts:
            # no duplicate address detection: an address that is tentative for a second makes every test wait
            settings = ["net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0"]
            if host is switch:
                settings.append("net.ipv6.conf.default.disable_ipv6=1")
            if host is router:
                settings += ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"]
            host.sysctl(*settings)
        _ip(self.cables)
        switch.ip("link add br0 type bridge stp_state 0 mcast_snooping 0", "link set br0 up")
        for host in self.hosts:
            host.ip("link set lo up", *self.lines[host], *self.routes[host])


def _ip(lines: list[str]) -> None:
    done = subprocess.run(
        ["ip", "-batch", "-"], input="\n".join(lines) + "\n", capture_output=True, text=True, timeout=20
    )
    if done.returncode:
        raise CommandError(f"ip -batch: {done.stderr.strip()}")
