"""Every input that fuzzing starts from, and every one that ever found something, holds all audits."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from nfqlb._core.telemetry import REASON_NAMES
from tests.fuzz.seeds import CORPUS, SEEDS, SEQUENCES
from tests.fuzz.targets import TARGETS
from tests.fuzz.world import world

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
    assert {name for name, count in met.items() if count} == set(REASON_NAMES)
