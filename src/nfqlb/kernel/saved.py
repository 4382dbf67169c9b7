"""What was found before it was changed, in a file that outlives a crash; with it the numbers that rules were given.

Strategy: an original is written to disk (temp file, fsync, rename) before the kernel is touched, and never replaced by
a later value; so whoever withdraws, this process or the next, puts back what was there before the first director. The
file belongs to one boot and one network namespace: read anywhere else, it counts as absent.

Several directors of one namespace share forwarding, VIPs and iptables' chains. Who finds in another's file that it
changed something writes the same original down, and whoever leaves puts back only what nobody else has written down:
the last one out does it. The others' files are RUN/*/kernel.json.
"""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

SO_NETNS_COOKIE = 71


class Originals(NamedTuple):
    """What one or several directors wrote down."""

    sysctls: dict[str, str]  # path below /proc/sys -> value as found
    addresses: list[list[str]]  # [interface, address] that was added
    chains: list[list[str]]  # [ip or ip6, nftables table, base chain or nothing] that iptables made
    numbers: dict[str, int]  # real server -> number of the rule and the table that lead to it


class Saved:
    """Originals of sysctls, addresses that we added, chains that iptables created for us, numbers of our rules."""

    def __init__(self, path: Path) -> None:
        self._path = path
        found = _load(path)
        self.adopted = found is not None  # a predecessor left the file
        self.sysctls, self.addresses, self.chains, self.numbers = found or Originals({}, [], [], {})

    def others(self) -> Originals:
        """What the other directors of this namespace wrote down."""
        union = Originals({}, [], [], {})
        for path in self._path.parent.parent.glob(f"*/{self._path.name}"):
            if path != self._path and (found := _load(path)):
                union.sysctls.update(found.sysctls)
                union.addresses.extend(found.addresses)
                union.chains.extend(found.chains)
                union.numbers.update({f"{path.parent.name} {server}": n for server, n in found.numbers.items()})
        return union

    def write(self) -> None:
        """Make the file say what this object says."""
        found = {
            "where": _where(),
            "sysctls": self.sysctls,
            "addresses": self.addresses,
            "chains": self.chains,
            "numbers": self.numbers,
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        new = self._path.with_suffix(".new")
        with new.open("w") as file:
            json.dump(found, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._path)

    def clear(self) -> None:
        """Everything was put back: the file goes."""
        self.sysctls, self.addresses, self.chains, self.numbers, self.adopted = {}, [], [], {}, False
        self._path.unlink(missing_ok=True)


def numbers(path: Path) -> dict[str, int]:
    """Those that a predecessor wrote down there."""
    found = _load(path)
    return found.numbers if found else {}


def _load(path: Path) -> Originals | None:
    with suppress(OSError, ValueError):
        found: dict[str, Any] = json.loads(path.read_text())
        if found["where"] == _where():
            return Originals(found["sysctls"], found["addresses"], found["chains"], found["numbers"])
    return None


def _where() -> str:
    """This boot and this network namespace; the namespace's inode can be used again, its cookie (Linux 5.14) cannot."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            namespace = sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8).hex()
    except OSError:
        namespace = str(Path("/proc/self/ns/net").stat().st_ino)
    return f"{boot} {namespace}"
