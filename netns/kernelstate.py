"""All that a director may change on its machine, as text that two moments can be compared by."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import unified_diff
from pathlib import Path

from netns.host import Host

SYSCTLS = r"^net\.(ipv[46]\.(conf|ip_forward|neigh)|core|netfilter|nf_|bridge)"
VOLATILE = r"nf_conntrack_count|\.stable_secret|\.mtu_expires|random"
FIGURES = re.compile(r"\[\d+:\d+\]|packets \d+ bytes \d+|(valid_lft|preferred_lft) \w+| initval 0x[0-9a-f]+")
COMMANDS = {
    "iptables": ["iptables-save"],
    "ip6tables": ["ip6tables-save"],
    "nft": ["nft", "list", "ruleset"],
    "ipset": ["ipset", "save"],
    "addresses": ["ip", "address"],
    "rules": ["sh", "-c", "ip -4 rule; ip -6 rule"],
    "routes": ["sh", "-c", "ip -4 route show table all; ip -6 route show table all | grep -v ^ff00"],
    "sysctls": ["sysctl", "-a"],
    "qdiscs": ["tc", "qdisc"],
}


def take(host: Host, name: str, folders: Mapping[str, Path]) -> dict[str, str]:
    """The state of the machine: rules, sets, addresses, routes, sysctls, and the files of the director `name`."""
    state = {}
    for what, argv in COMMANDS.items():
        lines = host.run(argv, check=what != "qdiscs").stdout.splitlines()
        if what == "sysctls":
            lines = [line for line in lines if re.search(SYSCTLS, line) and not re.search(VOLATILE, line)]
        if what == "ipset":
            lines.sort()
        lines = [FIGURES.sub("", line) for line in lines if not line.startswith("#")]
        state[what] = "\n".join(lines)
    state["shared memory"] = "\n".join(sorted(path.name for path in Path("/dev/shm").glob(f"nfqlb-{name}*")))
    for what, folder in folders.items():
        state[what] = "\n".join(sorted(str(path.relative_to(folder)) for path in folder.rglob("*")))
    queues = Path("/proc/net/netfilter/nfnetlink_queue")
    state["queues"] = "\n".join(
        line.split()[0] for line in host.run(["cat", str(queues)], check=False).stdout.splitlines()
    )
    return state


def difference(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """What changed, as a diff per part; empty when nothing did."""
    parts: list[str] = []
    for what in before:
        if before[what] != after[what]:
            parts += unified_diff(
                before[what].splitlines(), after[what].splitlines(), f"{what} before", f"{what} after", lineterm="", n=0
            )
    return "\n".join(parts)
