"""The nft diverter: an own table per family, made, changed and replaced in one netlink batch each.

Strategy: the table is ours alone, so nothing in it is ever merged. All that is in it is replaced, atomically, when its
rules have to change or somebody changed it, and its hooks stay, so that packets which wait in queues do; when only
members changed, their elements are added and removed. What was installed is remembered as the kernel shows it, and as
long as nftables' generation takes no other steps than ours, nothing is compared.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Iterator

from nfqlb.errors import KernelError, MissingError
from nfqlb.kernel import expressions, ruleset
from nfqlb.kernel import netlink as nl
from nfqlb.kernel.plan import Plan

TITLE = {4: "ip", 6: "ip6"}


class Nft:
    """The tables `ip nfqlb-NAME` and `ip6 nfqlb-NAME`."""

    def __init__(self, name: str) -> None:
        self.table = f"nfqlb-{name}"
        self._installed: Plan | None = None
        self._fingerprints: dict[int, list[bytes]] = {}
        self._generation = -1

    def require(self, plan: Plan) -> None:
        if not loads():
            raise MissingError(
                "this kernel does not take the NFQUEUE target in nftables rules (nf_tables, nft_compat, xt_NFQUEUE): "
                "load these modules or use --diverter iptables"
            )

    def apply(self, plan: Plan, *, afresh: bool = False) -> None:
        self._apply(plan, None if afresh else self._installed)

    def _apply(self, plan: Plan, old: Plan | None, *, anew: bool = False) -> None:
        """`old` is installed, as far as is known; `anew`: not even the hooks that are there will do."""
        messages, replaced = [], []
        for family in plan.families:
            if old and family in old.families and _shape(family, old) == _shape(family, plan):
                messages += ruleset.changes(self.table, family, old.members(family), plan.members(family))
            else:
                learned = _learned(self.table, family) if plan.members(family).learns else None
                there = None if anew else self._standing(family)
                messages += ruleset.replace(
                    self.table, family, plan, reassemble=reassembles(), learned=learned, there=there
                )
                replaced.append(family)
        if not messages:
            self._installed = plan
            return
        try:
            before = nl.generation()
            nl.batch(messages)
        except OSError as error:
            if anew:
                raise KernelError(f"the kernel refused the nftables table {self.table}: {error.strerror}") from error
            self._apply(plan, None, anew=old is None)  # somebody changed a set of ours under us
            return
        for family in replaced:
            self._fingerprints[family] = _fingerprint(self.table, family)
        known = before == self._generation or len(replaced) == len(plan.families)
        ours = nl.generation() == before + 1  # a batch is one step: nobody else took one
        self._installed, self._generation = plan, before + 1 if known and ours else -1

    def _standing(self, family: int) -> ruleset.Standing | None:
        try:
            titles = nl.dump(nl.GETSET, family, nl.text(1, self.table))
        except FileNotFoundError:
            return None
        return ruleset.standing(self.table, nl.dump(nl.GETCHAIN, family), titles)

    def prune(self, plan: Plan) -> None:
        gone = [family for family in (4, 6) if family not in plan.families and self.table in tables(family)]
        try:
            nl.batch([ruleset.remove(self.table, family) for family in gone])
        except OSError as error:
            raise KernelError(f"the nftables table {self.table} cannot be removed: {error.strerror}") from error
        if not plan.families:
            self._installed = None

    def check(self, plan: Plan) -> list[str]:
        generation = nl.generation()
        if generation == self._generation:
            return []
        found = [sentence for family in plan.families for sentence in self._differences(family, plan)]
        self._generation = -1 if found else generation
        return found

    def _differences(self, family: int, plan: Plan) -> list[str]:
        title = f"nftables table {TITLE[family]} {self.table}"
        if self.table not in tables(family):
            return [f"{title} was removed"]
        if _fingerprint(self.table, family) != self._fingerprints.get(family):
            return [f"{title}: chains or rules were changed"]
        found = []
        for name, keys in ruleset.sets(family, plan).items():
            try:
                if _elements(self.table, name, family) != keys:
                    found.append(f"{title}: set {name} was changed")
            except FileNotFoundError:
                found.append(f"{title}: set {name} was removed")
        return found


@functools.cache
def loads() -> bool:
    """Whether the kernel takes the NFQUEUE target in an nft rule."""
    return _takes(expressions.nfqueue(0))


@functools.cache
def reassembles() -> bool:
    """Whether the kernel takes the socket match in an nft rule, and with it reassembles fragments."""
    return _takes(expressions.socket_match())


def _takes(expression: bytes) -> bool:
    """Tried in a table that is gone with its own batch."""
    table = f"nfqlb.{os.getpid()}"
    messages = [
        nl.Message(nl.NEWTABLE, nl.CREATE, 4, nl.text(1, table)),
        nl.Message(nl.NEWCHAIN, nl.CREATE, 4, nl.text(1, table) + nl.text(3, "probe")),
        ruleset.rule(table, "probe", 4, [expression]),
        ruleset.remove(table, 4),
    ]
    try:
        nl.batch(messages)
    except OSError:
        return False
    return True


def tables(family: int) -> set[str]:
    """The names of all nftables tables of a family."""
    try:
        return {dict(nl.attributes(body))[1][:-1].decode() for body in nl.dump(nl.GETTABLE, family)}
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT):
            return set()  # a kernel without nftables
        raise


def _shape(family: int, plan: Plan) -> tuple[object, ...]:
    """What the rules follow from."""
    return *plan.layout, plan.idle, plan.members(family).kinds


def _elements(table: str, name: str, family: int) -> set[bytes]:
    """The keys that a set holds now; of an interval the first and the last one."""
    return {_data(element[1]) + _data(element.get(10, b"")) for element in _dumped(table, name, family)}


def _learned(table: str, family: int) -> dict[bytes, int]:
    """The clients that the table remembers, and the milliseconds that each has left."""
    try:
        found = _dumped(table, ruleset.CLIENTS, family)
        return {_data(element[1]): int.from_bytes(element[5], "big") for element in found if 5 in element}
    except FileNotFoundError:
        return {}


def _dumped(table: str, name: str, family: int) -> Iterator[dict[int, bytes]]:
    """The attributes of each element of a set; FileNotFoundError where it is not there."""
    for body in nl.dump(nl.GETSETELEM, family, nl.text(1, table) + nl.text(2, name)):
        for _, element in nl.attributes(dict(nl.attributes(body)).get(3, b"")):
            yield dict(nl.attributes(element))


def _data(nested: bytes) -> bytes:
    return dict(nl.attributes(nested)).get(1, b"")


def _fingerprint(table: str, family: int) -> list[bytes]:
    """All chains and rules as the kernel shows them, with their handles: equal only while nobody touched them."""
    name = nl.text(1, table)
    chains = [body for body in nl.dump(nl.GETCHAIN, family) if body.startswith(name)]
    return chains + nl.dump(nl.GETRULE, family, name)
