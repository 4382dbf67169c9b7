"""Packets out of their tunnel on a real server: by the kernel's own tunnel device where it can be made, else by BPF.

Strategy: the device is one of ours, without ends (`external`): it takes IPIP packets from whatever director, as tunl0
does, but is not shared with anybody, and the ipip module's tunl0 and other tunnels with ends stay as they are. Asking
for the device loads the module. BPF takes the families whose device cannot be made (nfqlb.kernel.decapsulate).

The inner source is a client, whom another interface leads to. So the device checks sources loosely (rp_filter 2), which
holds whatever conf/all says, since the kernel goes by the greater of both (Documentation/networking/ip-sysctl.rst); it
has a VIP because an interface without an address passes no check (net/ipv4/fib_frontend.c, __fib_validate_source).
Over IPv6 the outer source may be the VIP itself, the director's address as well as ours, which has to be allowed
(net/ipv6/ip6_tunnel.c, ip6_tnl_rcv_ctl).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol

from pyroute2 import IPRoute  # type: ignore[import-untyped]
from pyroute2.netlink.exceptions import NetlinkError  # type: ignore[import-untyped]

from nfqlb.errors import KernelError, MissingError
from nfqlb.kernel import addresses, decapsulate, sysctl
from nfqlb.model import family

BY = ("auto", "kernel", "bpf")
NAMES = {4: "nfqlb-tun4", 6: "nfqlb-tun6"}
KINDS = {4: "ipip", 6: "ip6tnl"}
MODULES = {4: "ipip", 6: "ip6_tunnel"}
STRICT, LOOSE = 1, 2
ALLOW_LOCAL_REMOTE = 0x40  # IP6_TNL_F_ALLOW_LOCAL_REMOTE
FLAGS = {4: {}, 6: {"ip6tnl_flags": ALLOW_LOCAL_REMOTE}}


class Bpf(Protocol):
    """What is asked of nfqlb.kernel.decapsulate."""

    def attach(self, vips: Sequence[str], devices: Sequence[str]) -> None: ...
    def detach(self) -> None: ...
    def attached(self) -> list[str]: ...


def take_out(ip: IPRoute, vips: Sequence[str], devices: Sequence[str], by: str, bpf: Bpf = decapsulate) -> None:
    """Have packets for these VIPs taken out of their tunnel; `by` is one of BY. MissingError where it cannot be so."""
    made = set()
    firsts = {family(vip): vip for vip in reversed(vips)} if by != "bpf" else {}
    for number, vip in firsts.items():
        try:
            _make(ip, number, vip)
            made.add(number)
        except MissingError:
            if by == "kernel":
                raise
    rest = [vip for vip in vips if family(vip) not in made]
    if rest:
        bpf.attach(rest, devices)
    else:
        bpf.detach()
    _remove(ip, {4, 6} - made)


def leave(ip: IPRoute, bpf: Bpf = decapsulate) -> None:
    """Take all of it away."""
    bpf.detach()
    _remove(ip, set(NAMES))


def missing(ip: IPRoute, vips: Sequence[str], fix: str, bpf: Bpf = decapsulate) -> list[str]:
    """Why packets for these VIPs do not come out of their tunnel, a sentence each."""
    by_kernel = {number for number, name in NAMES.items() if _is_up(ip, name)}
    found = []
    if {family(vip) for vip in vips} - by_kernel and not bpf.attached():
        found.append(f"nothing takes packets out of their tunnel: {fix}")
    if 4 in by_kernel:
        names = [f"net/ipv4/conf/{which}/rp_filter" for which in ("all", NAMES[4])]
        if max(int(sysctl.read(name) or 0) for name in names) == STRICT:
            found.append(f"sysctl {sysctl.title(names[1])} drops what comes out of the tunnel: set it to {LOOSE}")
    return found


def _make(ip: IPRoute, number: int, vip: str) -> None:
    name, kind = NAMES[number], KINDS[number]
    try:
        if not ip.link_lookup(ifname=name):
            ip.link("add", ifname=name, kind=kind, **{f"{kind}_collect_metadata": True}, **FLAGS[number])
    except NetlinkError as error:
        why = os.strerror(error.code)
        raise MissingError(
            f"the kernel makes no tunnel device of kind {kind} ({why}): load the module {MODULES[number]}, "
            "or use --by bpf"
        ) from error
    index = ip.link_lookup(ifname=name)[0]
    if number == 4:
        sysctl.write(f"net/ipv4/conf/{name}/rp_filter", str(LOOSE))
        addresses.add(ip, index, name, vip)
    try:
        ip.link("set", index=index, state="up")
    except NetlinkError as error:
        raise KernelError(f"the device {name} cannot be set up: {os.strerror(error.code)}") from error


def _is_up(ip: IPRoute, name: str) -> bool:
    return bool(ip.link_lookup(ifname=name)) and ip.get_links(ifname=name)[0]["state"] == "up"


def _remove(ip: IPRoute, numbers: set[int]) -> None:
    for number in sorted(numbers):
        for index in ip.link_lookup(ifname=NAMES[number]):
            try:
                ip.link("del", index=index)
            except NetlinkError as error:
                raise KernelError(f"the device {NAMES[number]} cannot be removed: {os.strerror(error.code)}") from error
