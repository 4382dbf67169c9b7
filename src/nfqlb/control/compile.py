"""An intent as the data path and the kernel want it.

Strategy: a service that did not change stays the very object that the workers already use, so its scheduler goes on
undisturbed and a change costs what changed. A changed one is built from its predecessor, which hands its scheduler's
place on. Names and text end here: below are slots, 16-byte addresses and protocol numbers.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from nfqlb.kernel.plan import Endpoint, Plan, Span, Way
from nfqlb.model import PROTOCOLS, Intent, Key, Real, Service, family

if TYPE_CHECKING:
    from nfqlb._core.snapshot import Service as Compiled
    from nfqlb._core.snapshot import Snapshot

MAPPED = bytes(10) + b"\xff\xff"
SlotKey = tuple[Key, str, int]
FTP_DATA = (20, 20), (1024, 65535)  # ports that may be those of data connections


class Compiler:
    """Makes snapshots of successive intents; `slot` gives the stable number of a real server (Table.slot).

    `slots` maps (service, address, port) to the slot, for the last intent that was compiled; `left` does for the real
    servers that were in an earlier one, until they are forgotten: connections may go on there.
    """

    def __init__(
        self,
        slot: Callable[[Service, Real], int],
        make_service: Callable[..., Compiled] | None = None,
        make_snapshot: Callable[..., Snapshot] | None = None,
    ) -> None:
        if make_service is None or make_snapshot is None:
            from nfqlb._core import snapshot as core

            make_service, make_snapshot = make_service or core.Service, make_snapshot or core.Snapshot
        self._slot, self._make_service, self._make_snapshot = slot, make_service, make_snapshot
        self.slots: dict[SlotKey, int] = {}
        self._compiled: dict[Key, tuple[Service, Compiled]] = {}
        self.left: dict[SlotKey, int] = {}
        self._before = self._compiled, self.slots, self.left

    def snapshot(self, intent: Intent, down: Collection[SlotKey] = ()) -> Snapshot:
        """Compile; if the snapshot is not published after all, call `undo`. Real servers that are `down` get no new
        connections, and keep old ones only where their service says so.
        """
        slots: dict[SlotKey, int] = {}
        services = quiesced(intent, down).services if down else intent.services
        compiled = {service.key: (service, self._compile(service, slots)) for service in services}
        removing = {service.key for service in services if service.health and service.health.on_down == "remove"}
        timeouts, answers = intent.timeouts, intent.answers
        snapshot = self._make_snapshot(
            [made for _, made in compiled.values()],
            timeouts.tcp,
            timeouts.tcp_fin,
            timeouts.udp,
            no_server=answers.no_server,
            no_connection=answers.no_connection,
            sloppy=answers.sloppy_tcp,
            gone=[slots[end] for end in down if end[0] in removing and end in slots],
        )
        self._before = self._compiled, self.slots, self.left
        left = {key: slot for key, slot in (self.left | self.slots).items() if key not in slots}
        self._compiled, self.slots, self.left = compiled, slots, left
        return snapshot

    def forget(self, idle: Callable[[int], bool]) -> None:
        """Leave out of `left` the slots that are `idle`."""
        self.left = {key: slot for key, slot in self.left.items() if not idle(slot)}

    def undo(self) -> None:
        """Forget the last snapshot: the next one follows the one before."""
        self._compiled, self.slots, self.left = self._before

    def _compile(self, service: Service, slots: dict[SlotKey, int]) -> Compiled:
        keys = [(service.key, real.address, real.port) for real in service.reals]
        before, made = self._compiled.get(service.key, (None, None))
        if made is not None and before == service:
            slots.update((key, self.slots[key]) for key in keys)
            return made
        slots.update((key, self._slot(service, real)) for key, real in zip(keys, service.reals, strict=True))
        oldest_first = [
            (slots[key], packed(real.address), real.port, real.weight, service.mode_of(real), real.upper, real.lower)
            for key, real in zip(keys, service.reals, strict=True)
        ]
        return self._make_service(
            PROTOCOLS.get(service.protocol, 0),
            packed(service.address),
            service.port,
            service.scheduler,
            oldest_first[::-1],
            made,
            last=service.last,
            mark=service.fwmark,
            flags=service.flags,
            one_packet=service.one_packet,
            mss=service.mss,
            offload=service.offload,
            **_persistence(service),
        )


def quiesced(intent: Intent, down: Collection[SlotKey]) -> Intent:
    """The intent in which these real servers have weight 0."""
    keys = {key for key, *_ in down}

    def service(one: Service) -> Service:
        if one.key not in keys:
            return one
        reals = (replace(real, weight=0) if (one.key, real.address, real.port) in down else real for real in one.reals)
        return replace(one, reals=tuple(reals))

    return replace(intent, services=tuple(map(service, intent.services)))


def steered(intent: Intent, by: str, kept: Collection[str], room: int) -> list[Service]:
    """The services of direct routing whose packets the kernel routes by a mark (docs/forwarding.md says why these).

    None for the VIPs that are `kept`: they are addresses of this machine, or its kernel has no rules; none that changes
    the MSS, none of several ports, and none where services by firewall mark may want the same packets whole. `by` is
    RunConfig.dr_by, `room` how many real servers can have a mark; services with more than are left go without.
    """
    found: list[Service] = []
    servers: set[str] = set()
    marked = {family(service.address) for service in intent.services if service.fwmark}
    for service in intent.services:
        fits = by == "route" or (by == "auto" and service.protocol == "tcp")
        fits = fits and not (service.mss or service.key.wide or family(service.address) in marked)
        direct = service.mode == "dr" and all(service.mode_of(real) == "dr" for real in service.reals)
        if direct and fits and service.address not in kept:
            more = servers | {real.address for real in service.reals}
            if len(more) <= room:
                found.append(service)
                servers = more
    return found


def compile_plan(
    intent: Intent,
    *,
    name: str,
    gso: Sequence[int],
    plain: Sequence[int],
    diverter: str,
    firewall: str,
    vip_dev: str | None,
    leaving: Iterable[SlotKey] = (),
    head: Sequence[int] = (2,),
    heads: Iterable[Service] = (),
    ways: Iterable[Way] = (),
    mask: int = 0,
) -> Plan:
    """What the kernel must hold so that the packets of this intent reach the queues.

    Replies pass with mode nat only. `leaving` are real servers that are in it no more and still have connections:
    their replies need the way back. `heads` are the services that are steered over `ways` by marks in `mask`.
    """
    services: set[Endpoint] = set()
    ranges: set[Span] = set()
    marks: set[tuple[int, int]] = set()
    for key in (service.key for service in intent.services):
        if key.mark:
            marks.add((family(key.address), key.mark))
        elif key.wide:
            ranges.add((PROTOCOLS[key.protocol], key.address, *key.ports))
        else:
            services.add((PROTOCOLS[key.protocol], key.address, key.port))
    ftp = {s.key for s in intent.services if s.persistence and (s.protocol, s.port) == ("tcp", 21)}
    ranges.update((PROTOCOLS["tcp"], key.address, *ports) for key in ftp for ports in FTP_DATA)
    reals: set[Endpoint] = set()
    real_ranges: set[Span] = set()
    anyport: set[str] = set()
    natted = ((s.key, real.address, real.port) for s in intent.services for real in s.reals if s.mode_of(real) == "nat")
    for key, address, port in (*natted, *leaving):
        protocols = PROTOCOLS.values() if key.mark else [PROTOCOLS[key.protocol]]
        if key in ftp:
            anyport.add(address)
        if port:
            reals.update((protocol, address, port) for protocol in protocols)
        elif key.last:
            real_ranges.update((protocol, address, *key.ports) for protocol in protocols)
        else:
            anyport.add(address)
    timeouts = intent.timeouts
    return Plan(
        name=name,
        services=frozenset(services),
        reals=frozenset(reals),
        tunnels=frozenset(
            real.address for service in intent.services for real in service.reals if service.mode_of(real) == "tun"
        ),
        ranges=frozenset(ranges),
        real_ranges=frozenset(real_ranges),
        anyport=frozenset(anyport),
        marks=frozenset(marks),
        idle=max(timeouts.tcp, timeouts.tcp_fin, timeouts.udp),
        gso=tuple(gso),
        plain=tuple(plain),
        diverter=diverter,
        firewall=firewall,
        vip_dev=vip_dev,
        head=tuple(head),
        heads=frozenset((PROTOCOLS[service.protocol], service.address, service.port) for service in heads),
        ways=frozenset(ways),
        mask=mask if any(service.mode == "dr" for service in intent.services) else 0,
    )


def _persistence(service: Service) -> dict[str, Any]:
    if service.persistence is None:
        return {}
    timeout, netmask, quiescent = msgspec.structs.astuple(service.persistence)
    width = 32 if family(service.address) == 4 else 128
    ones = width if netmask is None else netmask
    mask = ((1 << 128) - 1) << (width - ones) & ((1 << 128) - 1)
    return {"persistence": timeout, "mask": mask.to_bytes(16), "moves_quiesced": quiescent == "move"}


def packed(address: str) -> bytes:
    """16 bytes, IPv4 as ::ffff:a.b.c.d."""
    found = ipaddress.ip_address(address).packed
    return found if len(found) == 16 else MAPPED + found


def unpacked(address: bytes) -> str:
    """The canonical text of 16 bytes."""
    if address.startswith(MAPPED):
        return "{}.{}.{}.{}".format(*address[len(MAPPED) :])
    return str(ipaddress.IPv6Address(address))
