"""The core equals the model over long random sequences; and, in small steps that hypothesis can shrink."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nfqlb._core.telemetry import REASON_NAMES
from tests.property.world import SECONDS, SEGMENTS, VIPS, Step, Twin
from tests.sizes import MACHINE_RUNS, SEQUENCE_STEPS, SEQUENCES

pytestmark = pytest.mark.slow

# reasons that well-formed packets can have
POSSIBLE = set(REASON_NAMES) - {"malformed", "truncated", "fragment", "other_protocol", "error_reissued"}
POSSIBLE -= {"drop_packet", "limited", "no_call_id", "standby", "not_master"}
POSSIBLE -= {"server_down", "shed"}  # of a director that checks, and which queues alone bring about


@pytest.mark.parametrize("seed", range(SEQUENCES))
def test_the_core_equals_the_model_over_a_long_sequence(seed: int) -> None:
    chance = Random(seed)
    step, twin = Step(chance), Twin()
    reasons: Counter[str] = Counter()
    for _ in range(8):
        twin.configure(step.configuration(twin.virtuals), twin.timeouts)
    quiet = chance.choice([0.02, 0.1])  # how often time passes
    for number in range(SEQUENCE_STEPS):
        what = chance.random()
        if what < quiet:
            twin.lab.clock.advance(chance.choice(SECONDS))
        elif what < quiet + 0.04:
            twin.configure(step.configuration(twin.virtuals), twin.timeouts)
        elif what < quiet + 0.045:
            twin.configure(twin.virtuals, step.timeouts(), step.policy())
        else:
            reasons[twin.send(*step.packet(twin.model.entries), worker=chance.randrange(3))] += 1
        if number % 25 == 0:
            twin.compare()
    twin.compare()
    assert {name: count for name, count in twin.lab.drain().reasons.items() if count} == reasons
    assert reasons["forwarded"] > SEQUENCE_STEPS / 20
    assert reasons["returned"] > SEQUENCE_STEPS / 100
    assert set(reasons) <= POSSIBLE


def test_the_sequences_meet_every_reason_that_they_can() -> None:
    met: Counter[str] = Counter()
    for seed in range(3):
        step, twin = Step(Random(1000 + seed)), Twin(1)
        for number in range(800):
            if number % 20 == 0:
                twin.configure(step.configuration(twin.virtuals), twin.timeouts, step.policy())
            met[twin.send(*step.packet(twin.model.entries))] += 1
    assert set(met) == POSSIBLE


class Machine(RuleBasedStateMachine):
    """The same world, one thing at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.twin = Twin()

    @rule(seed=st.integers(0, 2**32))
    def change_the_configuration(self, seed: int) -> None:
        self.twin.configure(Step(Random(seed)).configuration(self.twin.virtuals), self.twin.timeouts)

    @rule(seed=st.integers(0, 2**32))
    def set_the_timeouts(self, seed: int) -> None:
        self.twin.configure(self.twin.virtuals, Step(Random(seed)).timeouts(), Step(Random(seed)).policy())

    @rule(seconds=st.sampled_from(SECONDS))
    def pass_time(self, seconds: float) -> None:
        self.twin.lab.clock.advance(seconds)

    @rule(seed=st.integers(0, 2**32), worker=st.integers(0, 2))
    def send_a_packet(self, seed: int, worker: int) -> None:
        self.twin.send(*Step(Random(seed)).packet(self.twin.model.entries), worker=worker)

    @rule(seed=st.integers(0, 2**32), count=st.integers(10, 60))
    def send_many(self, seed: int, count: int) -> None:
        step = Step(Random(seed))
        for _ in range(count):
            self.twin.send(*step.packet(self.twin.model.entries))

    @invariant()
    def both_keep_the_same(self) -> None:
        self.twin.compare()


Machine.TestCase.settings = settings(max_examples=MACHINE_RUNS, stateful_step_count=30)
TestMachine = Machine.TestCase


def test_the_world_is_as_its_comments_say() -> None:
    assert len(set(VIPS.values())) == len(VIPS), "no two services share a server's port"
    assert {"S", "SA", "A", "FA", "R"} <= set(SEGMENTS)
