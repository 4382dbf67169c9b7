"""What agents, scripts and files say, and the weight that follows from it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfqlb.health.advice import NOTHING, Advice, agent, exited, file_says, weight
from nfqlb.model import WEIGHT_MAX


@pytest.mark.parametrize(
    ("text", "advice", "down"),
    [
        ("up", NOTHING, ""),
        ("75%", Advice(percent=75), None),
        ("up 50%\r\n", Advice(percent=50), ""),
        ("UP,READY,0%", Advice(percent=0, state=""), ""),
        ("drain", Advice(state="drain"), None),
        ("maint\nup\n", Advice(state="maint"), None),
        ("ready", Advice(state=""), None),
        ("down", NOTHING, "the agent says down"),
        ("stopped#disk is full", NOTHING, "the agent says stopped: disk is full"),
        ("fail # up\n", NOTHING, "the agent says fail: up"),
        ("failed", NOTHING, "the agent says failed"),
        ("up 30% maxconn:12 banana", Advice(percent=30), ""),
        ("", NOTHING, None),
        ("%", NOTHING, None),
        ("up down", NOTHING, "the agent says down"),
        ("down up", NOTHING, ""),
    ],
)
def test_the_words_of_an_agent(text: str, advice: Advice, down: str | None) -> None:
    assert agent(text) == (advice, down)


@given(st.text())
def test_an_agent_may_say_anything(text: str) -> None:
    advice, _ = agent(text)
    assert 0 <= weight(10, [advice]) <= WEIGHT_MAX


def test_what_is_not_said_again_stays() -> None:
    drained = Advice(percent=50, state="drain")
    assert drained.then(NOTHING) == drained
    assert drained.then(Advice(percent=80)) == Advice(percent=80, state="drain")
    assert drained.then(Advice(state="")) == Advice(percent=50, state="")


@pytest.mark.parametrize(
    ("how", "code", "line", "advice", "why"),
    [
        ("plain", 0, "", NOTHING, ""),
        ("plain", 1, "", NOTHING, "exit code 1"),
        ("plain", 7, "no disk", NOTHING, "exit code 7: no disk"),
        ("plain", -9, "", NOTHING, "the script was ended by signal 9"),
        ("weight", 0, "", NOTHING, ""),
        ("weight", 1, "", NOTHING, "exit code 1"),
        ("weight", 2, "", Advice(weight=0), ""),
        ("weight", 255, "", Advice(weight=253), ""),
        ("nagios", 0, "OK", NOTHING, ""),
        ("nagios", 1, "WARNING - slow", NOTHING, ""),
        ("nagios", 2, "HTTP CRITICAL", NOTHING, "HTTP CRITICAL"),
        ("nagios", 2, "", NOTHING, "CRITICAL"),
        ("nagios", 3, "", NOTHING, "UNKNOWN"),
        ("nagios", 127, "", NOTHING, "exit code 127"),
    ],
)
def test_what_an_exit_code_means(how: str, code: int, line: str, advice: Advice, why: str) -> None:
    assert exited(how, code, line) == (advice, why)


@pytest.mark.parametrize(
    ("text", "factor", "advice", "why"),
    [
        ("0\n", 0, NOTHING, ""),
        ("", 0, NOTHING, ""),
        ("1\n", 0, NOTHING, "the file says 1"),
        (" -3 cores", 0, NOTHING, "the file says -3"),
        ("nonsense", 0, NOTHING, ""),
        ("5", 2, Advice(added=10), ""),
        ("5", -2, Advice(added=-10), ""),
        ("", 2, Advice(added=0), ""),
    ],
)
def test_what_a_file_says(text: str, factor: int, advice: Advice, why: str) -> None:
    assert file_says(text, factor) == (advice, why)


@pytest.mark.parametrize(
    ("configured", "advice", "expected"),
    [
        (3, [], 3),
        (3, [Advice(weight=10)], 10),
        (3, [Advice(weight=10), Advice(weight=1)], 8),  # 3 + 7 - 2, as keepalived adds them up
        (3, [Advice(added=-5)], 0),
        (3, [Advice(added=4), Advice(percent=50)], 4),
        (1, [Advice(percent=1)], 1),
        (10, [Advice(percent=0)], 0),
        (10, [Advice(percent=200)], 20),
        (10, [Advice(percent=50), Advice(percent=50)], 3),
        (10, [Advice(state="drain", percent=50)], 0),
        (0, [Advice(weight=10)], 0),
        (5, [Advice(weight=WEIGHT_MAX), Advice(percent=1000)], WEIGHT_MAX),
    ],
)
def test_the_weight_that_follows(configured: int, advice: list[Advice], expected: int) -> None:
    assert weight(configured, advice) == expected
