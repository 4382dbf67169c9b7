"""The ipsets that iptables rules match against: the iptables diverter's, and the firewall's.

Strategy: four sets per family, filled through one `ipset restore`. A set that has to be made anew, or has outgrown its
size, is filled under another name and swapped in, so that a rule never sees it half full; small changes are added and
deleted in place. Sizes follow the members: the default of 65,536 would overflow.
"""

from __future__ import annotations

from collections.abc import Iterable

from nfqlb.errors import KernelError, MissingError
from nfqlb.kernel.plan import Endpoint, Plan
from nfqlb.kernel.programs import run, there

PROTOCOL = {6: "tcp", 17: "udp", 132: "sctp"}
FAMILY = {4: "inet", 6: "inet6"}
TYPE = {"services": "hash:ip,port", "reals": "hash:ip,port", "vips": "hash:ip", "servers": "hash:ip"}
COMPARED = 5000  # members up to which check() looks at every one; above, it compares their number


def set_name(name: str, title: str, family: int) -> str:
    """At most 31 characters; the dot, which no director's name has, keeps the sets of `a` and `a-b` apart."""
    return f"nfqlb-{name}.{title}{family}"


class Ipsets:
    """The sets `nfqlb-NAME.services4` and so on."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._members: dict[str, frozenset[str]] = {}
        self._room: dict[str, int] = {}

    def require(self) -> None:
        """MissingError where the kernel has no ipsets, or iptables cannot match against them."""
        try:
            run("ipset", "list", "-n")
        except KernelError as error:
            raise MissingError(f"this kernel has no ipsets (ip_set, ip_set_hash_ipport): {error}") from error
        test = "*filter\n-A FORWARD -m set --match-set nfqlb-none src\nCOMMIT\n"
        try:
            run("iptables-restore", "-w", "10", "--noflush", "--test", stdin=test)
        except KernelError as error:
            if "exist" not in str(error):  # the set does not, which is right: so the match was found
                raise MissingError(f"this kernel has no set match (xt_set): {error}") from error

    def apply(self, plan: Plan, *, afresh: bool = False) -> None:
        wanted = self._wanted(plan)
        existing = self._existing() if afresh or wanted.keys() - self._members.keys() else set(wanted)
        lines: list[str] = []
        room = dict(self._room)
        for name, (kind, family, members) in wanted.items():
            old = None if afresh or name not in existing else self._members.get(name)
            if old is None or len(members) > room[name]:
                room[name] = max(1024, 2 * len(members))
                spare = set_name(self._name, "new", family)
                lines += [f"destroy {spare}"] if spare in existing else []
                size = f"hashsize {max(64, len(members))} maxelem {room[name]}"
                lines.append(f"create {spare} {kind} family {FAMILY[family]} {size}")
                lines += [f"add {spare} {member}" for member in members]
                lines += (
                    [f"swap {spare} {name}", f"destroy {spare}"] if name in existing else [f"rename {spare} {name}"]
                )
                existing.discard(spare)
            else:
                lines += [f"add {name} {member} -exist" for member in members - old]
                lines += [f"del {name} {member} -exist" for member in old - members]
        self._members, self._room = {}, {}  # unknown, should the program fail half-way
        if lines:
            run("ipset", "restore", stdin="\n".join(lines) + "\n")
        self._members, self._room = {name: members for name, (_, _, members) in wanted.items()}, room

    def prune(self, plan: Plan) -> None:
        gone = sorted(self._existing() - self._wanted(plan).keys())
        if gone:
            run("ipset", "restore", stdin="".join(f"destroy {name}\n" for name in gone))
        for name in gone:
            self._members.pop(name, None)

    def check(self, plan: Plan) -> list[str]:
        wanted = {name: members for name, (_, _, members) in self._wanted(plan).items()}
        if not wanted:
            return []
        existing = self._existing()
        found = [f"the ipset {name} was destroyed" for name in sorted(wanted.keys() - existing)]
        kept = sorted(wanted.keys() & existing)
        if sum(len(wanted[name]) for name in kept) <= COMPARED:
            now = _members(kept)
            found += [f"the ipset {name} was changed" for name in kept if now[name] != wanted[name]]
        else:
            found += [f"the ipset {name} was changed" for name in kept if _count(name) != len(wanted[name])]
        return found

    def _wanted(self, plan: Plan) -> dict[str, tuple[str, int, frozenset[str]]]:
        """Name -> type, family and members, written as ipset prints them."""
        if plan.firewall == "leave" and plan.diverter == "nft":
            return {}
        return {
            set_name(self._name, title, family): (TYPE[title], family, _texts(getattr(plan.members(family), title)))
            for family in plan.families
            for title in TYPE
        }

    def _existing(self) -> set[str]:
        names = run("ipset", "list", "-n").split() if there("ipset") else []
        return {name for name in names if name.startswith(f"nfqlb-{self._name}.")}


def _texts(members: Iterable[Endpoint | str]) -> frozenset[str]:
    return frozenset(m if isinstance(m, str) else f"{m[1]},{PROTOCOL[m[0]]}:{m[2]}" for m in members)


def _members(names: list[str]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {name: set() for name in names}
    for line in run("ipset", "restore", stdin="".join(f"save {name}\n" for name in names)).splitlines():
        verb, name, rest = line.split(" ", 2)
        if verb == "add":
            found[name].add(rest)
    return found


def _count(name: str) -> int:
    return int(run("ipset", "list", "-t", name).rsplit(":", 1)[1])
