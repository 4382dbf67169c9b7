"""The FORWARD chain lets pass what nfqlb forwards, whatever its policy.

Strategy: those who come from IPVS never needed a FORWARD rule, and under Docker's policy DROP every NAT flow would
die. So an own chain, jumped to from the top of filter FORWARD, accepts packets that our NOTRACK rules marked as
untracked and that go to or come from a service; with the rest the operator's rules go on as before. Where FORWARD lets
everything pass there is no such chain: it would cost an eighth of the packets that one CPU can forward (bench/).
The match on the connection state itself turns connection tracking on (nf_ct_netns_get), which costs every packet of the
machine, so it is used only where tracking is in use anyway; elsewhere addresses and ports alone decide.
"""

from __future__ import annotations

from pathlib import Path

from nfqlb.kernel import programs
from nfqlb.kernel.diverter import ICMP_ERRORS
from nfqlb.kernel.ipset import set_name
from nfqlb.kernel.iptables import ICMP, PROGRAM
from nfqlb.kernel.plan import Members, Plan
from nfqlb.kernel.saved import Saved
from nfqlb.kernel.xtables import LEGACY_TABLES, Rules, Xtables

TRACKED = Path("/proc/sys/net/netfilter/nf_conntrack_count")


class Firewall:
    """The chain `nfqlb-NAME` in the filter table of every iptables variant that has one."""

    def __init__(self, name: str, saved: Saved) -> None:
        self._name = name
        self._all = {
            family: [
                Xtables(variant, family, name, saved) for variant in (program, f"{program}-legacy", f"{program}-nft")
            ]
            for family, program in PROGRAM.items()
        }
        self._stateful = False
        self._applied: dict[int, tuple[object, ...]] = {}

    def needed(self, plan: Plan) -> bool:
        """Whether a FORWARD chain of iptables could drop what is forwarded."""
        return any(program.filters("filter", "FORWARD") for family in plan.families for program in self._used(family))

    def apply(self, plan: Plan, *, afresh: bool = False) -> None:
        shape: dict[int, tuple[object, ...]] = {
            family: (members.kinds, members.marks, plan.mask) for family, members in _members(plan)
        }
        if plan.firewall == "leave" or (self._applied == shape and not afresh):
            return
        self._applied = {}
        for family, members in _members(plan):
            used = self._used(family)
            self._stateful = self._stateful or _tracking(used)
            for program in used:
                program.put({"filter": self._rules(family, members, plan.mask)})
        self._applied = shape

    def prune(self, plan: Plan) -> None:
        for family, candidates in self._all.items():
            if family not in plan.families or plan.firewall == "leave":
                for program in candidates:
                    if programs.there(program.program):
                        program.remove("filter")
        kept = plan.families if plan.firewall != "leave" else ()
        self._applied = {family: shape for family, shape in self._applied.items() if family in kept}

    def check(self, plan: Plan) -> list[str]:
        if plan.firewall == "leave":
            return []
        found = []
        for family in plan.families:
            for program in self._used(family):
                found += program.differences()
        if plan.families and not self._stateful and _tracking([]):
            found.append("connection tracking came into use: FORWARD has to accept only what is untracked")
        return found

    def _used(self, family: int) -> list[Xtables]:
        """The default program, and the other variant where it has a filter table that packets pass, too."""
        default, legacy, nft = self._all[family]
        if programs.is_nft(default.program):
            other = legacy
            in_use = LEGACY_TABLES[family].exists() and "filter" in LEGACY_TABLES[family].read_text().split()
        else:
            other = nft
            in_use = programs.there(nft.program) and nft.exists("filter")
        return [default, other] if in_use and programs.there(other.program) else [default]

    def _rules(self, family: int, members: Members, mask: int) -> Rules:
        own = f"nfqlb-{self._name}"
        state = "-m conntrack --ctstate UNTRACKED " if self._stateful else ""
        ends = [("reals", "dst,dst"), ("reals", "src,src"), ("services", "src,src")]
        ends += [("anyport", "dst")] if members.anyport else []
        about = [("servers", "dst"), ("vips", "src")]
        matches = [self._in(title, family, direction) for title, direction in ends]
        # the user's mark came after connection tracking, and their replies have a source that nobody knows
        marked = [f"-m mark --mark {mark} {self._in('servers', family, 'dst')}" for mark in sorted(members.marks)]
        replies = [state] if members.marks and self._stateful else []
        if mask:  # what goes to a real server by its mark
            matches.append(f"-m mark ! --mark 0/{mask:#x} {self._in('vips', family, 'dst')}")
        for kind in ICMP_ERRORS[family]:
            matches += [f"{ICMP[family]} {kind} {self._in(title, family, direction)}" for title, direction in about]
        if not self._stateful:  # with connection tracking no fragment comes by
            later = "-f" if family == 4 else "-m frag --fragid 0:4294967295"
            matches += [f"{later} {self._in(title, family, direction)}" for title, direction in about]
        accepted = [*(f"{state}{match}" for match in matches), *marked, *replies]
        return Rules({own: [f"{match} -j ACCEPT" for match in accepted]}, {"FORWARD": [own]})

    def _in(self, title: str, family: int, direction: str) -> str:
        return f"-m set --match-set {set_name(self._name, title, family)} {direction}"


def _members(plan: Plan) -> list[tuple[int, Members]]:
    return [(family, plan.members(family)) for family in plan.families]


def _tracking(used: list[Xtables]) -> bool:
    """Whether connections are tracked in this network namespace, or a rule of the filter table is about to."""
    try:
        if int(TRACKED.read_text()):
            return True
    except OSError:
        return False  # a kernel without connection tracking
    return any("--ctstate" in text or "--state" in text for text in (program.save("filter") for program in used))
