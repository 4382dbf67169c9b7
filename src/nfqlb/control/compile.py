"""An intent as the data path wants it; what the kernel has to hold for it is in planner.

Strategy: a service that did not change stays the very object that the workers already use, so its scheduler goes on
undisturbed and a change costs what changed. A changed one is built from its predecessor, which hands its scheduler's
place on. Names and text end here: below are slots, 16-byte addresses and protocol numbers.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec

from nfqlb.control.registry import differing
from nfqlb.model import HASHES, PROTOCOLS, Intent, Key, Real, Service, family, is_script

if TYPE_CHECKING:
    from nfqlb._core.advisor import Advisor
    from nfqlb._core.snapshot import Service as Compiled
    from nfqlb._core.snapshot import Snapshot

MAPPED = bytes(10) + b"\xff\xff"
KEPT_SECONDS = 120.0  # that a slot stays a real server's which left, as in the kernel (IP_VS_DEST_TRASH_PERIOD)
PACKED = 4096  # addresses that are remembered: each is asked for several times in a row
End = tuple[str, int]  # address and port of a real server
SlotKey = tuple[Key, str, int]
Weights = Mapping[Key, Mapping[End, int | None]]  # other than those asked for; None: no part of the service now


class Slots(Mapping[SlotKey, int]):
    """The slots of real servers, by (service, address, port); `services` are the same by service."""

    def __init__(self, services: Mapping[Key, Mapping[End, int]] | None = None) -> None:
        self.services = services or {}

    def __getitem__(self, end: SlotKey) -> int:
        return self.services[end[0]][end[1:]]

    def __iter__(self) -> Iterator[SlotKey]:
        return ((key, *end) for key, ends in self.services.items() for end in ends)

    def __len__(self) -> int:
        return sum(map(len, self.services.values()))


class Compiler:
    """Makes snapshots of successive intents; `slot` gives the stable number of a real server (Table.slot), `advise` the
    scheduler in Python that a service has in a role ("scheduler" or "shadow").

    `slots` are those of the last intent that was compiled; `left` those of real servers that were in an earlier one,
    until they are forgotten: connections may go on there.
    """

    def __init__(
        self,
        slot: Callable[[Service, Real], int],
        make_service: Callable[..., Compiled] | None = None,
        make_snapshot: Callable[..., Snapshot] | None = None,
        advise: Callable[[Service, str], Advisor] | None = None,
    ) -> None:
        if make_service is None or make_snapshot is None:
            from nfqlb._core import snapshot as core

            make_service, make_snapshot = make_service or core.Service, make_snapshot or core.Snapshot
        self._make_service: Callable[..., Compiled] = make_service
        self._slot, self._make_snapshot, self._advise = slot, make_snapshot, advise
        self._intent = Intent()
        self._weights: Weights = {}
        self._compiled: Mapping[Key, Compiled] = {}
        self.slots, self.left = Slots(), Slots()
        self._before = self._now
        self._unused: dict[int, float] = {}  # slots, and since when

    @property
    def compiled(self) -> Mapping[Key, Compiled]:
        """The services of the last intent."""
        return self._compiled

    @property
    def _now(self) -> tuple[Intent, Weights, Mapping[Key, Compiled], Slots, Slots]:
        return self._intent, self._weights, self._compiled, self.slots, self.left

    def snapshot(
        self,
        intent: Intent,
        weights: Weights = {},  # noqa: B006
        fates: Mapping[SlotKey, str] = {},
    ) -> Snapshot:
        """Compile; if the snapshot is not published after all, call `undo`. Real servers in `weights` have these
        instead of their own; connections of those in `fates` go on as snapshot.Snapshot has it.
        """
        intent = intent.furnished
        compiled, slots, left = dict(self._compiled), dict(self.slots.services), dict(self.left.services)
        options = msgspec.structs.asdict(intent.options)
        hash_key = bytes.fromhex(options.pop("hash_key"))
        del options["backup_only"]  # follows the director's role, too
        rekeyed = _rekeyed(self._intent, intent)
        for key in dict.fromkeys([*differing(self._intent, intent), *_reweighted(self._weights, weights), *rekeyed]):
            service, gone = intent.by_key.get(key), slots.pop(key, {})
            if service is None:
                del compiled[key]
            else:
                slots[key] = {(real.address, real.port): self._slot(service, real) for real in service.reals}
                known = weights.get(key, {})
                compiled[key] = self._compile(service, slots[key], known, compiled.get(key), hash_key)
            ends = {**left.pop(key, {}), **gone}
            rest = {end: slot for end, slot in ends.items() if end not in slots.get(key, ())}
            if rest:
                left[key] = rest
        timeouts, answers = intent.timeouts, intent.answers
        snapshot = self._make_snapshot(
            list(compiled.values()),
            *msgspec.structs.astuple(timeouts),
            no_server=answers.no_server,
            no_connection=answers.no_connection,
            sloppy=answers.sloppy_tcp,
            sloppy_sctp=answers.sloppy_sctp,
            gone={slots[key][address, port]: fate for (key, address, port), fate in fates.items()},
            **options,
        )
        self._before = self._now
        self._intent, self._weights, self._compiled = intent, weights, compiled
        self.slots, self.left = Slots(slots), Slots(left)
        return snapshot

    def forget(self, idle: Callable[[int], bool]) -> None:
        """Leave out of `left` the slots that are `idle`."""
        found: dict[Key, Mapping[End, int]] = {}
        for key, ends in self.left.services.items():
            busy = {end: slot for end, slot in ends.items() if not idle(slot)}
            if busy:
                found[key] = busy if len(busy) < len(ends) else ends
        self.left = Slots(found)

    def unused(self, known: Iterable[int], now: float) -> list[int]:
        """Of the `known` slots those that no real server has had for KEPT_SECONDS, as far as one can see who asks now
        and then; `now` in seconds.
        """
        unused = {*known}.difference(self.slots.values(), self.left.values())
        self._unused = {slot: self._unused.get(slot, now) for slot in unused}
        return [slot for slot, since in self._unused.items() if now - since >= KEPT_SECONDS]

    def undo(self) -> None:
        """Forget the last snapshot: the next one follows the one before."""
        self._intent, self._weights, self._compiled, self.slots, self.left = self._before

    def _compile(
        self,
        service: Service,
        slots: Mapping[End, int],
        weights: Mapping[End, int | None],
        before: Compiled | None,
        hash_key: bytes,
    ) -> Compiled:
        oldest_first = [
            (slot, packed(real.address), real.port, weight, service.mode_of(real), real.upper, real.lower)
            for real, (end, slot) in zip(service.reals, slots.items(), strict=True)
            if (weight := weights.get(end, real.weight)) is not None
        ]
        identity = PROTOCOLS.get(service.protocol, 0), packed(service.address), service.port
        hashes: dict[str, Any] = {"maglev_size": service.maglev_size, "hash_key": hash_key}
        shadow: dict[str, Any] = {}
        if service.shadow:
            built_in, advisor = self._scheduler(service, "shadow")
            previous = before.shadow if before else None
            made = self._make_service(*identity, built_in, oldest_first[::-1], previous, **hashes, **advisor)
            shadow = {"shadow": made}
        scheduler, advisor = self._scheduler(service, "scheduler")
        return self._make_service(
            *identity,
            scheduler,
            oldest_first[::-1],
            before,
            last=service.last,
            mark=service.fwmark,
            flags=service.flags,
            one_packet=service.one_packet,
            mss=service.mss,
            offload=service.offload,
            timeouts=msgspec.structs.astuple(service.timeouts) if service.timeouts else (),
            connections_max=service.connections_max,
            **hashes,
            **_persistence(service),
            **advisor,
            **shadow,
        )

    def _scheduler(self, service: Service, role: str) -> tuple[str, dict[str, Any]]:
        """The built-in one, and who is asked before it."""
        name = getattr(service, role)
        if not is_script(name):
            return name, {}
        assert self._advise
        return service.fallback, {"advisor": self._advise(service, role)}


def _reweighted(before: Weights, after: Weights) -> Iterable[Key]:
    return [key for key in {**before, **after} if before.get(key) != after.get(key)]


def _rekeyed(before: Intent, after: Intent) -> Iterable[Key]:
    """The services that hash, where the key is another."""
    if before.options.hash_key == after.options.hash_key:
        return []
    return [one.key for one in after.services if {one.scheduler, one.fallback, one.shadow} & {*HASHES}]


def _persistence(service: Service) -> dict[str, Any]:
    if service.persistence is None:
        return {}
    timeout, netmask, quiescent, engine = msgspec.structs.astuple(service.persistence)
    width = 32 if family(service.address) == 4 else 128
    ones = width if netmask is None else netmask
    mask = ((1 << 128) - 1) << (width - ones) & ((1 << 128) - 1)
    return {
        "persistence": timeout,
        "mask": mask.to_bytes(16),
        "moves_quiesced": quiescent == "move",
        "by_call": engine == "sip",
    }


@lru_cache(PACKED)
def packed(address: str) -> bytes:
    """16 bytes, IPv4 as ::ffff:a.b.c.d; the address is in canonical form."""
    if ":" in address:
        return ipaddress.IPv6Address(address).packed
    return MAPPED + bytes(map(int, address.split(".")))


def unpacked(address: bytes) -> str:
    """The canonical text of 16 bytes."""
    if address.startswith(MAPPED):
        return "{}.{}.{}.{}".format(*address[len(MAPPED) :])
    return str(ipaddress.IPv6Address(address))
