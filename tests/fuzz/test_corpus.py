"""Every input that fuzzing starts from, and every one that ever found something, holds all audits."""

from __future__ import annotations

import mmap
import os
from collections import Counter
from pathlib import Path

import pytest

from nfqlb._core.telemetry import REASON_NAMES
from tests.fuzz.seeds import CORPUS, SEEDS, SEQUENCES
from tests.fuzz.targets import ENTRIES, ENTRY, OPEN, TARGETS
from tests.fuzz.world import KINDS, START, world

CRASHERS = CORPUS.parent / "crashers"
INPUTS = sorted(path for folder in (CORPUS, CRASHERS) for path in folder.glob("*/*") if path.name != "README.md")


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: "/".join(path.parts[-3:]))
def test_an_input_holds_the_audits(path: Path) -> None:
    assert TARGETS[path.parent.name](path.read_bytes()) >= 0


@pytest.mark.parametrize("target", SEEDS)
def test_the_corpus_has_every_kind(target: str) -> None:
    """`python -m tests.fuzz.seeds` writes it."""
    kept = {path.stem: path.read_bytes() for path in (CORPUS / target).glob("*.bin")}
    assert SEEDS[target].items() <= kept.items()


def test_the_sequences_meet_every_reason() -> None:
    met: Counter[str] = Counter()
    for script in SEQUENCES.values():
        player = world()
        player.play(script)
        met.update(player.datapath.drain().reasons)
    unasked = {"server_down", "shed", "drop_packet", "limited", "no_call_id", "standby", "not_master"}
    assert {name for name, count in met.items() if count} == set(REASON_NAMES) - unasked


# what an entry must not become under a living table (offset, bytes), and how the audit puts it
WRONGS = {
    "state word": (60, b"\2", "a state word that does not exist"),
    "freed": (60, bytes(4), "`used` is not the number"),
    "server's slot": (56, b"\x09\x03\0\0", "ActiveConn, InActConn or PersistConn"),
    "protocol": (54, b"\1", "a protocol or state"),
    "no timer": (68, bytes(4), "without a timer"),
    "timer elsewhere": (68, b"\1\0\0\0", "a timer is linked wrong"),
    "hash": (88, b"\7\7", "under a wrong hash"),
}


@pytest.mark.parametrize("wrong", WRONGS)
def test_the_audit_sees_what_is_wrong_in_a_table(wrong: str) -> None:
    at, data, sentence = WRONGS[wrong]
    fd = os.memfd_create("table")
    player = world(fd)
    player.play(OPEN)
    player.audit()
    with mmap.mmap(fd, os.fstat(fd).st_size) as memory:
        memory[ENTRIES + ENTRY + at : ENTRIES + ENTRY + at + len(data)] = data
    os.close(fd)
    with pytest.raises(AssertionError, match=sentence):
        player.audit()


def test_the_audit_sees_a_packet_that_was_counted_twice() -> None:
    player = world()
    player.datapath.worker().process(KINDS["tcp_syn"].packet, START)
    with pytest.raises(AssertionError, match="counted more or less than once"):
        player.audit()
