"""The kernel facade: makes the kernel hold a plan, keeps it so, and puts everything back.

Strategy: six parts, each the owner of one kind of thing. Packets are diverted last of all, when sets, forwarding and
firewall are ready, and a VIP is announced after that, so that no packet for it ever meets the local stack; withdrawing
goes the other way round. A part remembers what it did, so a change of members costs messages for these members and
touches no rule; a repair trusts nothing that was remembered. What a crashed predecessor of the same name left is
replaced in place by the same steps. Any thread may call; one call runs at a time.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pyroute2.netlink.exceptions import NetlinkError  # type: ignore[import-untyped]

from nfqlb.errors import ConfigError, KernelError, MissingError, NfqlbError
from nfqlb.kernel import nft, programs, routes
from nfqlb.kernel.addresses import Addresses, interface_exists
from nfqlb.kernel.capabilities import NET_ADMIN, NET_RAW, capable
from nfqlb.kernel.diverter import Diverter, Part
from nfqlb.kernel.firewall import Firewall
from nfqlb.kernel.ipset import Ipsets
from nfqlb.kernel.iptables import Iptables
from nfqlb.kernel.plan import Plan, marks
from nfqlb.kernel.policy import Policy
from nfqlb.kernel.saved import Saved
from nfqlb.kernel.sysctl import Sysctls

PROGRAMS = (
    "iptables",
    "iptables-save",
    "iptables-restore",
    "ip6tables",
    "ip6tables-save",
    "ip6tables-restore",
    "ipset",
)
REFUSED = NfqlbError, OSError, NetlinkError


class Kernel:
    """What one director changes in the kernel; `saved` is the file that keeps the originals."""

    def __init__(self, name: str, saved: Path) -> None:
        self._name = name
        self._saved = Saved(saved)
        self._sets = Ipsets(name)
        self._sysctls = Sysctls(self._saved)
        self._policy = Policy(self._saved)
        self._firewall = Firewall(name, self._saved)
        self._diverters: dict[str, Diverter] = {"nft": nft.Nft(name), "iptables": Iptables(name, self._saved)}
        self._addresses = Addresses(self._saved)
        self._asked: Plan | None = None
        self._plan: Plan | None = None  # what was asked for, as this machine needs it
        self._lock = threading.RLock()

    @property
    def diverter(self) -> str:
        """The diverter in use, "nft" or "iptables"; empty before the first plan."""
        return self._plan.diverter if self._plan else ""

    def require(self, plan: Plan) -> None:
        """MissingError, or ConfigError for vip_dev, naming the first thing without which `plan` cannot be applied."""
        if not capable(NET_ADMIN):
            raise MissingError("nfqlb needs CAP_NET_ADMIN to divert packets: run it as root")
        if plan.vip_dev and not capable(NET_RAW):
            raise MissingError("nfqlb needs CAP_NET_RAW to announce the VIPs of vip_dev: run it as root")
        plan = _diverted(plan)
        if plan.firewall == "accept" or plan.diverter == "iptables":
            for program in PROGRAMS:
                if not programs.there(program):
                    raise MissingError(f"the program {program} is not there: {programs.APT}")
            self._sets.require()
        if plan.vip_dev and not interface_exists(plan.vip_dev):
            raise ConfigError("vip_dev", plan.vip_dev, "is not an interface", "see `ip link` for their names")
        with _told():
            self._diverters[plan.diverter].require(plan)

    def apply(self, plan: Plan) -> None:
        """Go from whatever is there to `plan`, all or nothing."""
        with self._lock, _told():
            before, adopted = self._plan, self._saved.adopted
            needed = self._resolved(plan)
            try:
                self._make(needed)
            except REFUSED:
                with suppress(*REFUSED):
                    if before is not None:
                        self._make(before, afresh=True)
                    elif not adopted:  # a predecessor's rules stay, for the next try or for withdraw()
                        self.withdraw()
                raise
            self._asked, self._plan = plan, needed

    def marks(self, plan: Plan) -> dict[str, int]:
        """By which mark packets go to each real server of the plan's ways, once it is applied."""
        with self._lock, _told():
            return marks(self._policy.numbers(plan), plan.mask)

    def check(self) -> list[str]:
        """What differs from the last plan, a sentence each."""
        with self._lock, _told():
            plan = self._plan
            if plan is None:
                return []
            return [*self._overtaken(), *(sentence for part in self._parts(plan) for sentence in part.check(plan))]

    def repair(self) -> list[str]:
        """Put right what differs from the last plan, and say what that was; KernelError if some of it stays wrong."""
        found: list[str] = []
        failed: list[str] = []
        with self._lock:
            if self._asked is None or self._plan is None:
                return []
            try:
                found += self._overtaken()
                if found:
                    self.apply(self._asked)
            except NfqlbError as error:
                failed.append(str(error))
            plan = self._plan
            for part in self._parts(plan):
                try:
                    with _told():
                        sentences = part.check(plan)
                        found += sentences
                        if sentences:
                            part.apply(plan, afresh=True)
                except NfqlbError as error:
                    failed.append(str(error))
        if failed:
            raise KernelError("; ".join(failed))
        return found

    def warnings(self) -> list[str]:
        """What may keep packets from coming or passing although everything of ours is in place."""
        with self._lock, _told():
            return routes.warnings(self._plan) if self._plan else []

    def withdraw(self) -> None:
        """Put everything back as it was found, the VIPs first; also what a crashed predecessor left."""
        plan = Plan(self._name)
        failed: list[str] = []
        with self._lock:
            rules: tuple[Part, ...] = (*self._diverters.values(), self._firewall, self._policy)
            for part in (self._addresses, *rules, self._sets, self._sysctls):
                try:
                    with _told():
                        part.prune(plan)
                except NfqlbError as error:
                    failed.append(str(error))
            self._asked = self._plan = None
            if failed:
                raise KernelError("; ".join(failed))
            self._saved.clear()

    def _resolved(self, plan: Plan) -> Plan:
        """The plan without a question left: which diverter, and whether the firewall has to be opened at all."""
        plan = _diverted(plan)
        if plan.firewall == "accept" and not self._firewall.needed(plan):
            return dataclasses.replace(plan, firewall="leave")
        return plan

    def _overtaken(self) -> list[str]:
        """Whether the machine came to need something else for the same plan."""
        if self._asked is None or self._plan is None:
            return []
        with _told():
            now = self._resolved(self._asked).firewall
        if now == self._plan.firewall:
            return []
        return [f"the chain FORWARD filters {'now' if now == 'accept' else 'no more'}"]

    def _parts(self, plan: Plan) -> tuple[Part, ...]:
        """In the order in which they are made."""
        diverter = self._diverters[plan.diverter]
        return self._sets, self._sysctls, self._policy, self._firewall, diverter, self._addresses

    def _make(self, plan: Plan, *, afresh: bool = False) -> None:
        if self._plan is None:
            self._saved.write()
        self._addresses.prune(plan)
        *parts, addresses = self._parts(plan)
        for part in parts:
            part.apply(plan, afresh=afresh)
        self._policy.prune(plan)
        if afresh or self._plan is None or _shape(plan) != _shape(self._plan):
            for kind, diverter in self._diverters.items():
                diverter.prune(plan if kind == plan.diverter else Plan(self._name))
            for part in (self._firewall, self._sets, self._sysctls):
                part.prune(plan)
        addresses.apply(plan, afresh=afresh)


def _diverted(plan: Plan) -> Plan:
    if plan.diverter != "auto":
        return plan
    return dataclasses.replace(plan, diverter="nft" if nft.loads() else "iptables")


def _shape(plan: Plan) -> tuple[object, ...]:
    """What decides which parts are there at all."""
    return plan.families, plan.diverter, plan.firewall


@contextmanager
def _told() -> Iterator[None]:
    """Let no bare error of the kernel's out: its own word for it becomes a sentence."""
    try:
        yield
    except OSError as error:
        raise KernelError(f"the kernel refused: {error.strerror or error}") from error
    except NetlinkError as error:  # is no OSError; a dump that was interrupted is one
        raise KernelError(f"the kernel refused: {error.args[-1]}") from error
