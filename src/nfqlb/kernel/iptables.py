"""The iptables diverter: own chains in mangle and raw, members in ipsets; for kernels where the nft one does not load.

Strategy: the same hooks and the same matches as the nft diverter (see ruleset), as far as iptables can say them. It
is the weaker one: an ACCEPT that somebody puts before our jump, or an `iptables-restore` of mangle, takes packets
away until the next repair. Marks are looked at behind all rules of others in mangle. ICMP errors about a real server
cannot be told from others by a set, so all of them are shown to the queue, with a bypass, since most are somebody
else's. Several workers share by the client's port, or, where the kernel has no u32 match, by address alone
(--queue-balance).
"""

from __future__ import annotations

from nfqlb.errors import KernelError, MissingError
from nfqlb.kernel import programs
from nfqlb.kernel.diverter import ICMP_ERRORS
from nfqlb.kernel.ipset import CLIENTS, set_name
from nfqlb.kernel.plan import Members, Plan
from nfqlb.kernel.saved import Saved
from nfqlb.kernel.xtables import Rules, Xtables
from nfqlb.model import PROTOCOLS

PROGRAM = {4: "iptables", 6: "ip6tables"}
SOURCE_PORT, DESTINATION_PORT = ">>16&0xFF", "&0xFF"  # the low byte, of the first word of a TCP or UDP header
ICMP = {4: "-p icmp --icmp-type", 6: "-p icmpv6 --icmpv6-type"}


class Iptables:
    """The chains `nfqlb-NAME.*` in mangle and raw."""

    def __init__(self, name: str, saved: Saved) -> None:
        self._name = name
        self._programs = {family: Xtables(program, family, name, saved) for family, program in PROGRAM.items()}
        self._applied: dict[int, tuple[object, ...]] = {}

    def require(self, plan: Plan) -> None:
        for family in plan.families or (4,):
            test = f"*mangle\n:nfqlb-test - [0:0]\n-A nfqlb-test -j {_queue((0,))}\nCOMMIT\n"
            try:
                programs.run(f"{PROGRAM[family]}-restore", "-w", "10", "--noflush", "--test", stdin=test)
            except KernelError as error:
                raise MissingError(
                    f"this kernel has no NFQUEUE target (xt_NFQUEUE) for {PROGRAM[family]}: {error}"
                ) from error

    def apply(self, plan: Plan, *, afresh: bool = False) -> None:
        for family in plan.families:
            members = plan.members(family)
            shape = *plan.layout, plan.idle, members.kinds, members.marks
            if afresh or self._applied.get(family) != shape:
                self._applied.pop(family, None)
                self._programs[family].put({"mangle": self._mangle(family, plan), "raw": self._raw(family, members)})
                self._applied[family] = shape

    def prune(self, plan: Plan) -> None:
        for family, program in self._programs.items():
            if family not in plan.families and programs.there(program.program):
                program.remove("mangle", "raw")
                self._applied.pop(family, None)

    def check(self, plan: Plan) -> list[str]:
        return [sentence for family in plan.families for sentence in self._programs[family].differences()]

    def _mangle(self, family: int, plan: Plan) -> Rules:
        own, members = f"nfqlb-{self._name}", plan.members(family)
        plain, past = _queue(plan.plain, plan.bypass), "" if plan.bypass else " --queue-bypass"
        to_vip = f"{self._in('vips', family, 'dst')} {self._in('servers', family, 'src', absent=True)}"
        not_from_server = self._in("reals", family, "src,src", absent=True)
        if members.anyport:
            not_from_server += f" {self._in('anyport', family, 'src', absent=True)}"
        to = f"{own}.wide" if members.learns else f"{own}.in"
        first, later = _fragments(family)
        requests = [f"{self._in('services', family, 'dst,dst')} {not_from_server} -g {to}"]
        requests += [f"{ICMP[family]} {kind} {to_vip} -j {plain}" for kind in ICMP_ERRORS[family]]
        requests += [*first, f"{later} {to_vip} -j {plain}"]
        replies = [f"{match} -g {own}.back" for match in self._replies(family, members)]
        replies += [f"{ICMP[family]} {kind} -j {plain}{past}" for kind in ICMP_ERRORS[family]]
        replies += [*first, f"{later} {self._in('servers', family, 'src')} -j {plain}"]
        marked = [
            f"-p {name} -m mark --mark {mark} {not_from_server} -g {to}"
            for mark in sorted(members.marks)
            for name in PROTOCOLS
        ]
        if marked:  # their VIPs are not known: errors for them cannot be told from others
            marked += [f"{ICMP[family]} {kind} -j {plain}{past}" for kind in ICMP_ERRORS[family]]
        return Rules(
            {
                f"{own}.req": requests,
                f"{own}.mark": marked,
                f"{own}.reply": replies,
                f"{own}.wide": [self._learn(family, plan.idle), f"-g {own}.in"] if members.learns else [],
                f"{own}.in": [
                    *self._spread(family, "-p tcp --syn ", plan.syn, SOURCE_PORT, plan.bypass),
                    *([f"{self._in('heads', family, 'dst,dst')} -g {own}.head"] if plan.mask else []),
                    *self._shared(family, plan, SOURCE_PORT),
                ],
                f"{own}.head": self._spread(family, "", plan.head, SOURCE_PORT, plan.bypass),
                f"{own}.back": self._shared(family, plan, DESTINATION_PORT),
                f"{own}.defrag": ["-m socket"] if _has(family, "-m socket") else [],
            },
            {
                "PREROUTING": [f"{own}.req"],
                "INPUT": [f"{own}.reply"],
                "FORWARD": [f"{own}.reply"],
                "OUTPUT": [f"{own}.req", f"{own}.reply"],
            },
            {hook: [f"{own}.mark"] for hook in ("PREROUTING", "OUTPUT")} if marked else {},
        )

    def _replies(self, family: int, members: Members) -> list[str]:
        """What a real server's packets to its clients match."""
        matches = [self._in("reals", family, "src,src")]
        if members.anyport:
            matches.append(f"{self._in('anyport', family, 'src')} {self._in(CLIENTS, family, 'dst,dst')}")
        return matches

    def _learn(self, family: int, seconds: int) -> str:
        return f"-j SET --add-set {set_name(self._name, CLIENTS, family)} src,src --exist --timeout {seconds}"

    def _raw(self, family: int, members: Members) -> Rules:
        own = f"nfqlb-{self._name}"
        matches = [self._in("services", family, "dst,dst"), *self._replies(family, members)]
        for kind in ICMP_ERRORS[family]:
            matches += [
                f"{ICMP[family]} {kind} {self._in(*where)}"
                for where in (("vips", family, "dst"), ("servers", family, "src"))
            ]
        output = f"{self._in('reals', family, 'dst,dst')} -j CT --notrack"
        return Rules(
            {f"{own}.raw": [f"{match} -j CT --notrack" for match in matches], f"{own}.out": [output]},
            {"PREROUTING": [f"{own}.raw"], "OUTPUT": [f"{own}.out", f"{own}.raw"]},
        )

    def _shared(self, family: int, plan: Plan, port: str) -> list[str]:
        """What gives each packet to a queue: TCP to class gso, the rest to plain; a client's port to one worker."""
        tcp = self._spread(family, "-p tcp ", plan.gso, port, plan.bypass)
        return [*tcp, *self._spread(family, "", plan.plain, port, plan.bypass)]

    def _spread(self, family: int, match: str, numbers: tuple[int, ...], port: str, bypass: bool) -> list[str]:
        shares = [_share(family, port, at, len(numbers)) for at in range(len(numbers))]
        if len(numbers) > 1 and _has(family, shares[0]):
            pairs = zip(shares, numbers, strict=True)
            return [f"{match}{share} -j {_queue((number,), bypass)}" for share, number in pairs]
        return [f"{match}-j {_queue(numbers, bypass)}"]

    def _in(self, title: str, family: int, direction: str, *, absent: bool = False) -> str:
        return f"-m set {'! ' if absent else ''}--match-set {set_name(self._name, title, family)} {direction}"


def _has(family: int, match: str) -> bool:
    """Whether the kernel has a match, a `socket` one for instance: in a chain that no packet enters it has fragments
    reassembled.
    """
    test = f"*mangle\n:nfqlb-test - [0:0]\n-A nfqlb-test {match}\nCOMMIT\n"
    try:
        programs.run(f"{PROGRAM[family]}-restore", "-w", "10", "--noflush", "--test", stdin=test)
    except KernelError:
        return False
    return True


def _share(family: int, port: str, at: int, count: int) -> str:
    """The match for the `at`-th of `count` shares of all ports, by their low byte; blind to IPv6 extension headers."""
    first, last = at * 256 // count, (at + 1) * 256 // count - 1
    start = "0>>22&0x3C@0" if family == 4 else "40"
    return f"-m u32 --u32 {start}{port}={first}:{last}"


def _queue(numbers: tuple[int, ...], bypass: bool = False) -> str:
    past = " --queue-bypass" if bypass else ""
    if len(numbers) == 1:
        return f"NFQUEUE --queue-num {numbers[0]}{past}"
    if numbers != tuple(range(numbers[0], numbers[0] + len(numbers))):
        raise KernelError(
            f"iptables balances over consecutive queue numbers only, not over {numbers}: use --diverter nft"
        )
    return f"NFQUEUE --queue-balance {numbers[0]}:{numbers[-1]}{past}"


def _fragments(family: int) -> tuple[list[str], str]:
    """Rules that let first fragments go (their ports were looked at), and the match for the others."""
    if family == 4:
        return [], "-f"
    return ["-m frag --fragfirst -j RETURN"], "-m frag --fragid 0:4294967295"
