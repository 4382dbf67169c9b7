"""The program that forwards established flows in the kernel: loaded, and attached where packets come in.

Strategy: every Ethernet interface with an address gets it, on its ingress, and keeps it while it has one; none while
there are IPsec policies, which packets that it forwards would go past. The program and its maps live as long as a
filter refers to them: after a director was killed they go on, and the next one puts its own in their place, in one step
for each interface.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from pyroute2 import IPRoute  # type: ignore[import-untyped]
from pyroute2.netlink.exceptions import NetlinkError  # type: ignore[import-untyped]

from nfqlb.errors import KernelError, MissingError
from nfqlb.kernel import bpf, ipsec, neighbours, pairs

SECTION = "tc"
RING_BYTES = 1 << 18
ETHERNET = 1  # ARPHRD_ETHER
LOOPBACK, UP = 0x8, 0x1  # interface flags


class Sizes(NamedTuple):
    """Bytes of what lies in the maps (_core.offload.Offload has them)."""

    key: int
    flow: int
    place: int
    control: int


class Maps(NamedTuple):
    """File descriptors."""

    flows: int
    places: int
    control: int
    events: int


class Program:
    """A program with its maps in the kernel, of the director of that name. MissingError where it cannot be had."""

    def __init__(self, name: str, file: Path, sizes: Sizes, flows: int) -> None:
        self.name, self._attached, self._began = filter_name(name), set[int](), False
        self.refused: dict[int, str] = {}  # interfaces that do not take it: why
        self.waits = False  # there are IPsec policies
        self.ethernet: frozenset[int] = frozenset()  # interfaces that packets of NAT may leave by
        self.paired: frozenset[int] = frozenset()  # those whose packets may begin at the other end
        self._fds: list[int] = []
        try:
            program = bpf.read(file.read_bytes(), SECTION)
        except FileNotFoundError:
            raise MissingError("it was built without the offload (no clang)") from None
        except ValueError as error:
            raise MissingError(f"{file}: {error}") from None
        try:
            self.maps = Maps(
                self._keep(bpf.create("flows", bpf.HASH, sizes.key, sizes.flow, 2 * flows, bpf.NO_PREALLOC)),
                self._keep(bpf.create("places", bpf.ARRAY, 4, sizes.place, flows + 1, bpf.MMAPABLE)),
                self._keep(bpf.create("control", bpf.ARRAY, 4, sizes.control, 1, bpf.MMAPABLE)),
                self._keep(bpf.create("events", bpf.RINGBUF, 0, 0, RING_BYTES)),
            )
            self._program = self._keep(bpf.load(bpf.linked(program, self.maps._asdict()), "nfqlb_forward"))
        except OSError as error:
            self.close()
            raise MissingError(f"the kernel takes no BPF program: {error.strerror}") from None

    def _keep(self, fd: int) -> int:
        self._fds.append(fd)
        return fd

    def follow(self) -> list[str]:
        """Attach to interfaces that came, and where somebody took it away; the names of the latter. Those that do not
        take it are `refused`; KernelError where none does at the first time. Then a predecessor's program goes where
        ours is not wanted.
        """
        done, refused = [], {}
        with _netlink("the offload cannot follow interfaces") as ip:
            self.waits = ipsec.policies()
            links, hooked = ip.get_links(), bpf.hooked(ip)
            wanted = {} if self.waits else interfaces(ip, links)
            self.paired = pairs.paired(ip, links, hooked) if wanted else frozenset()
            self.ethernet = frozenset(int(link["index"]) for link in links if link["ifi_type"] == ETHERNET)
            neighbours.confirm(self.paired)  # their packets do not show the kernel that a neighbour is in use
            for index, device in wanted.items():
                try:
                    if index in self._attached and index in hooked and bpf.ours(ip, index, self.name):
                        continue
                    bpf.attach(ip, index, self._program, self.name, hooked=index in hooked)
                except (KernelError, NetlinkError) as error:
                    refused[index] = f"{device}: {error}"
                    continue
                if index in self._attached:
                    done.append(device)
            if refused:
                present = interfaces(ip, ip.get_links())
                refused = {index: why for index, why in refused.items() if index in present}  # the others went again
            attached = wanted.keys() - refused.keys()
            if refused and not attached and not self._began:
                raise KernelError(next(iter(refused.values())))
            for index in (self._attached & hooked if self._began else bpf.attached(ip, self.name).keys()) - attached:
                with suppress(NetlinkError):
                    bpf.detach(ip, index, self.name)
        self._attached, self.refused, self._began = set(attached), refused, True
        return done

    def close(self) -> None:
        """Let go of program and maps; where it is attached, they stay."""
        while self._fds:
            os.close(self._fds.pop())


def filter_name(name: str) -> str:
    return f"nfqlb-offload-{name}"


def detach(name: str) -> None:
    """Take the program of a director away wherever it is."""
    with _netlink("cannot take the offload away") as ip:
        for index in bpf.attached(ip, filter_name(name)):
            with suppress(NetlinkError):  # the interface went
                bpf.detach(ip, index, filter_name(name))


@contextmanager
def _netlink(problem: str) -> Iterator[IPRoute]:
    """A socket; what it cannot do is a KernelError."""
    try:
        with IPRoute() as ip:
            yield ip
    except (NetlinkError, OSError) as error:
        why = os.strerror(error.code) if isinstance(error, NetlinkError) else error.strerror or error
        raise KernelError(f"{problem}: {why}") from error


def interfaces(ip: IPRoute, links: Iterable[Mapping[str, Any]]) -> Mapping[int, str]:
    """Those of the links that packets of flows can come in by: index -> name."""
    addressed = {int(message["index"]) for message in ip.get_addr()}
    return {
        int(link["index"]): str(link.get("ifname"))
        for link in links
        if link["ifi_type"] == ETHERNET and link["flags"] & (UP | LOOPBACK) == UP and int(link["index"]) in addressed
    }
