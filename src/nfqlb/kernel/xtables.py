"""Own chains in the tables of one iptables program, put in, compared and taken out.

Strategy: one table is read by `iptables-save` and written by one `iptables-restore --noflush`, which commits a table
at once: jumps out and in again, own chains emptied and filled. After writing, the own lines are read back and kept;
check() compares with those, so no two versions' spelling of a rule has to agree with ours. Base chains that iptables
makes in nftables for our jumps are written down and removed with us, if nobody else uses them by then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from nfqlb.kernel import netlink as nl
from nfqlb.kernel import programs
from nfqlb.kernel.saved import Saved

WAIT = ("-w", "10")  # seconds for the lock that another iptables holds
LEGACY_TABLES = {4: Path("/proc/net/ip_tables_names"), 6: Path("/proc/net/ip6_tables_names")}


class Rules(NamedTuple):
    """What should be in one table: own chains and their rules, the jumps at the top of built-in chains, and those at
    the bottom, behind all rules of others.
    """

    chains: dict[str, list[str]]
    jumps: dict[str, list[str]]
    last: Mapping[str, list[str]] = MappingProxyType({})


class Xtables:
    """The chains `nfqlb-NAME` and `nfqlb-NAME.*` in the tables of one program."""

    def __init__(self, program: str, family: int, name: str, saved: Saved) -> None:
        self.program, self._family, self._saved = program, family, saved
        self._own = f"nfqlb-{name}"
        self._written: dict[str, list[str]] = {}
        self._last: dict[str, set[str]] = {}  # by table, chains that are jumped to behind all rules of others
        self._generation = -1
        self._filtering: dict[tuple[str, str], tuple[int, bool]] = {}

    def put(self, wanted: dict[str, Rules]) -> None:
        """Make these tables hold exactly these own chains and jumps."""
        self._note_new_chains(wanted)
        for table, rules in wanted.items():
            present = self._own_lines(self.save(table))
            lines = [f"*{table}", *(f":{chain} - [0:0]" for chain in rules.chains)]
            lines += [f"-D{line[2:]}" for line in present if line.startswith("-A") and not self._in_own_chain(line)]
            for hook, targets in rules.jumps.items():
                lines += [f"-I {hook} 1 -j {chain}" for chain in reversed(targets)]
            for hook, targets in rules.last.items():
                lines += [f"-A {hook} -j {chain}" for chain in targets]
            lines += [f"-A {chain} {rule}" for chain, body in rules.chains.items() for rule in body]
            lines += self._drop([line[1:].split()[0] for line in present if line[0] == ":"], set(rules.chains))
            self._restore(lines)
            self._written[table] = self._own_lines(self.save(table))
            self._last[table] = {chain for targets in rules.last.values() for chain in targets}
        self._generation = -1

    def differences(self) -> list[str]:
        """What is not as `put` left it; nothing is read while nftables stands still."""
        generation = self._now()
        if generation == self._generation != -1:
            return []
        found = [] if self._written else [f"{self.program}: the chains of {self._own} are not there"]
        for table, written in self._written.items():
            text = self.save(table)
            if self._own_lines(text) != written:
                found.append(f"{self.program}: the rules of {self._own} in table {table} were changed")
            elif place := next(self._overtaken(text, self._last[table]), None):
                found.append(f"{self.program}: another rule came {place} of table {table}")
        self._generation = -1 if found else generation
        return found

    def filters(self, table: str, hook: str) -> bool:
        """Whether a packet may be dropped there: the policy is not ACCEPT, or there is a rule that is no director's."""
        generation = self._now()
        known, answer = self._filtering.get((table, hook), (-1, False))
        if generation == known != -1:
            return answer
        answer = self.exists(table) and any(
            (line.startswith(f":{hook} ") and line.split()[1] != "ACCEPT")
            or (line.startswith(f"-A {hook} ") and not _names(line)[1].startswith("nfqlb-"))
            for line in self.save(table).splitlines()
        )
        self._filtering[table, hook] = generation, answer
        return answer

    def remove(self, *tables: str) -> None:
        """Take out every own chain and every jump to one, and what was made for them."""
        for table in tables:
            if self.exists(table) and (present := self._own_lines(self.save(table))):
                lines = [f"-D{line[2:]}" for line in present if line.startswith("-A") and not self._in_own_chain(line)]
                lines += self._drop([line[1:].split()[0] for line in present if line[0] == ":"], set())
                self._restore([f"*{table}", *lines])
            self._written.pop(table, None)
        self._remove_new_chains(tables)
        self._generation = -1

    def exists(self, table: str) -> bool:
        """Whether the table is there: to look into one that is not would make it."""
        if programs.is_nft(self.program):
            return bool(self._base_chains(table)) or self._has_table(table)
        path = LEGACY_TABLES[self._family]
        return path.exists() and table in path.read_text().split()

    def save(self, table: str) -> str:
        return programs.run(f"{self.program}-save", "-t", table)

    def _now(self) -> int:
        """What stands still while no rule changes; -1 where only reading tells."""
        return nl.generation() if programs.is_nft(self.program) else -1

    def _restore(self, lines: list[str]) -> None:
        programs.run(f"{self.program}-restore", *WAIT, "--noflush", stdin="\n".join([*lines, "COMMIT", ""]))

    def _own_lines(self, text: str) -> list[str]:
        """The lines of a saved table that are ours: chains, their rules, jumps to them."""
        lines = [line.split(" [")[0] if line.startswith(":") else line for line in text.splitlines()]
        return [line for line in lines if line[:1] in (":", "-") and any(self._is_own(word) for word in _names(line))]

    def _is_own(self, chain: str) -> bool:
        return chain == self._own or chain.startswith(f"{self._own}.")

    def _in_own_chain(self, line: str) -> bool:
        return self._is_own(line.split()[1])

    def _overtaken(self, text: str, last: set[str]) -> Iterator[str]:
        """Where a rule that is no director's stands before a jump of ours, or behind one that is to come `last`."""
        foreign: set[str] = set()
        done: dict[str, str] = {}
        for line in text.splitlines():
            if line.startswith("-A") and not line.startswith("-A nfqlb-"):
                hook, target = _names(line)
                if target in last:
                    done[hook] = target
                elif self._is_own(target) and hook in foreign:
                    yield f"before {target} in chain {hook}"
                if not target.startswith("nfqlb-"):
                    foreign.add(hook)
                    if hook in done:
                        yield f"behind {done[hook]} in chain {hook}"

    @staticmethod
    def _drop(chains: list[str], kept: set[str]) -> list[str]:
        gone = [chain for chain in chains if chain not in kept]
        return [f"-F {chain}" for chain in gone] + [f"-X {chain}" for chain in gone]

    # What iptables-nft makes in nftables: a table and base chains that did not exist before the first jump.

    @property
    def _title(self) -> str:
        return "ip" if self._family == 4 else "ip6"

    def _has_table(self, table: str) -> bool:
        return any(dict(nl.attributes(body))[1] == _zero(table) for body in nl.dump(nl.GETTABLE, self._family))

    def _base_chains(self, table: str) -> dict[str, nl.Chain]:
        return {chain.name: chain for chain in nl.base_chains(self._family) if chain.table == table}

    def _note_new_chains(self, wanted: dict[str, Rules]) -> None:
        if not programs.is_nft(self.program):
            return
        new = []
        shared = self._saved.others().chains
        for table, rules in wanted.items():
            present = self._base_chains(table)
            new += [[self._title, table, hook] for hook in rules.jumps if hook not in present]
            if not present and not self._has_table(table):
                new.append([self._title, table, ""])
            new += [entry for entry in shared if entry[:2] == [self._title, table] and entry not in new]
        new = [entry for entry in new if entry not in self._saved.chains]
        if new:
            self._saved.chains += new
            self._saved.write()

    def _remove_new_chains(self, tables: tuple[str, ...]) -> None:
        """Remove what was made for us where it is empty and accepts; the kernel refuses what others use by now."""
        made = [entry for entry in self._saved.chains if entry[0] == self._title and entry[1] in tables]
        for _, table, chain in sorted(made, key=lambda entry: not entry[2]):
            name = nl.text(1, table)
            message = nl.Message(nl.DELTABLE, nl.EMPTY_ONLY, self._family, name)
            if chain:
                found = self._base_chains(table).get(chain)
                if not found or found.drops:
                    continue
                message = nl.Message(nl.DELCHAIN, nl.EMPTY_ONLY, self._family, name + nl.text(3, chain))
            try:
                nl.batch([message])
            except OSError:
                continue  # in use by others now, or gone
        if made:
            self._saved.chains = [entry for entry in self._saved.chains if entry not in made]
            self._saved.write()


def _names(line: str) -> tuple[str, str]:
    """The chain that a saved line belongs to, and where it jumps to."""
    words = line.split()
    if line.startswith(":"):
        return words[0][1:], ""
    target = next((words[i + 1] for i, word in enumerate(words[:-1]) if word in ("-j", "-g")), "")
    return words[1], target


def _zero(name: str) -> bytes:
    return name.encode() + b"\0"
