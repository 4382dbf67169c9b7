"""The ipsets that iptables rules match against: the iptables diverter's, and the firewall's.

Strategy: five to seven sets a family, filled through one `ipset restore`. A set that has to be made anew, has outgrown
its size, or whose ranges change, is filled under another name and swapped in, so that a rule never sees it half full;
other changes are added and deleted in place. Sizes follow the members: the default of 65,536 would overflow. A range is
an element for each of its ports. The set of clients is filled by rules (see ruleset).
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass

from nfqlb.errors import KernelError, MissingError
from nfqlb.kernel.plan import NONE, Endpoint, Plan, Span, disjoint
from nfqlb.kernel.programs import run, there

PROTOCOL = {6: "tcp", 17: "udp", 132: "sctp"}
FAMILY = {4: "inet", 6: "inet6"}
TYPE = {
    "services": "hash:ip,port",
    "reals": "hash:ip,port",
    "vips": "hash:ip",
    "servers": "hash:ip",
    "heads": "hash:ip,port",
}
SPANS = {"services": "ranges", "reals": "real_ranges"}  # whose members go into the same set
CLIENTS, CLIENTS_MAX = "clients", 1 << 20
COMPARED = 5000  # members up to which check() looks at every one; above, it compares their number


def set_name(name: str, title: str, family: int | str) -> str:
    """At most 31 characters; the dot, which no director's name has, keeps the sets of `a` and `a-b` apart."""
    return f"nfqlb-{name}.{title}{family}"


@dataclass(frozen=True)
class Elements:
    """What a set holds: members, and ranges of ports beside them, which may overlap with each other and with those."""

    members: Set[Endpoint] | Set[str]
    spans: Set[Span] = frozenset()

    def texts(self) -> frozenset[str]:
        """Each as `ADDRESS`, `ADDRESS,tcp:PORT` or `ADDRESS,tcp:FIRST-LAST`; no port twice."""
        return _texts(self.members, self.spans)

    @property
    def size(self) -> int:
        """How many elements these are for ipset."""
        return _size(self.texts()) if self.spans else len(self.members)

    def change(self, old: Elements) -> tuple[frozenset[str], frozenset[str]]:
        """The texts that are new, and those that are gone."""
        if self.spans or old.spans:
            new, before = self.texts(), old.texts()
            return new - before, before - new
        return _texts(self.members - old.members, ()), _texts(old.members - self.members, ())


class Ipsets:
    """The sets `nfqlb-NAME.services4` and so on."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._members: dict[str, Elements] = {}
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
            if kind == CLIENTS:
                create = f"create {name} hash:ip,port family {FAMILY[family]} maxelem {CLIENTS_MAX} timeout 0"
                lines += [] if name in existing else [create]
                continue
            old = None if afresh or name not in existing else self._members.get(name)
            count = members.size
            new, gone = members.change(old) if old else (frozenset(), frozenset())
            if old is None or count > room[name] or _size(new | gone) > len(new | gone):
                room[name] = max(1024, 2 * count)
                spare = set_name(self._name, "new", family)
                lines += [f"destroy {spare}"] if spare in existing else []
                size = f"hashsize {max(64, count)} maxelem {room[name]}"
                lines.append(f"create {spare} {kind} family {FAMILY[family]} {size}")
                lines += [f"add {spare} {member}" for member in members.texts()]
                lines += (
                    [f"swap {spare} {name}", f"destroy {spare}"] if name in existing else [f"rename {spare} {name}"]
                )
                existing.discard(spare)
            else:
                lines += [f"add {name} {member} -exist" for member in new]
                lines += [f"del {name} {member} -exist" for member in gone]
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
        kept = [name for name in kept if not name.startswith(set_name(self._name, CLIENTS, ""))]
        if sum(wanted[name].size for name in kept) <= COMPARED:
            now = _members(kept)
            found += [f"the ipset {name} was changed" for name in kept if now[name] != _single(wanted[name].texts())]
        else:
            found += [f"the ipset {name} was changed" for name in kept if _count(name) != wanted[name].size]
        return found

    def _wanted(self, plan: Plan) -> dict[str, tuple[str, int, Elements]]:
        """Name -> type, family and members."""
        if plan.firewall == "leave" and plan.diverter == "nft":
            return {}
        found = {}
        for family in plan.families:
            members = plan.members(family)
            for title, kind in TYPE.items():
                spans = getattr(members, SPANS[title]) if title in SPANS else frozenset()
                elements = Elements(getattr(members, title), spans)
                found[set_name(self._name, title, family)] = kind, family, elements
            if members.anyport:
                found[set_name(self._name, "anyport", family)] = "hash:ip", family, Elements(members.anyport)
            if members.learns and plan.diverter == "iptables":
                found[set_name(self._name, CLIENTS, family)] = CLIENTS, family, Elements(NONE)
        return found

    def _existing(self) -> set[str]:
        names = run("ipset", "list", "-n").split() if there("ipset") else []
        return {name for name in names if name.startswith(f"nfqlb-{self._name}.")}


def _texts(members: Iterable[Endpoint | str], spans: Iterable[Span]) -> frozenset[str]:
    """Each as `ADDRESS`, `ADDRESS,tcp:PORT` or `ADDRESS,tcp:FIRST-LAST`; no port twice."""
    single = frozenset(m if isinstance(m, str) else f"{m[1]},{PROTOCOL[m[0]]}:{m[2]}" for m in members)
    if not spans:
        return single
    ends = [(m[0], m[1], m[2], m[2]) for m in members if not isinstance(m, str)]
    merged = disjoint([*ends, *spans])
    return frozenset(
        f"{address},{PROTOCOL[protocol]}:{first}" + (f"-{last}" if last > first else "")
        for protocol, address, first, last in merged
    )


def _single(texts: Iterable[str]) -> set[str]:
    """The members as ipset lists them: ranges a port at a time."""
    found: set[str] = set()
    for text in texts:
        head, _, ports = text.rpartition(":") if "," in text else (text, "", "")
        first, dash, last = ports.partition("-")
        found.update(f"{head}:{port}" for port in range(int(first), int(last) + 1)) if dash else found.add(text)
    return found


def _size(texts: Iterable[str]) -> int:
    """How many elements these are for ipset."""
    ranges = [text.rpartition(":")[2].split("-") for text in texts if "," in text]
    return sum(1 for text in texts) + sum(int(ports[1]) - int(ports[0]) for ports in ranges if len(ports) > 1)


def _members(names: list[str]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {name: set() for name in names}
    for line in run("ipset", "restore", stdin="".join(f"save {name}\n" for name in names)).splitlines():
        verb, name, rest = line.split(" ", 2)
        if verb == "add":
            found[name].add(rest)
    return found


def _count(name: str) -> int:
    return int(run("ipset", "list", "-t", name).rsplit(":", 1)[1])
