"""The steps from one intent to another: none exactly where they are equal, and they name what comes and goes."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from nfqlb.control.reconcile import Step, steps
from nfqlb.model import Answers, Intent, Options, Persistence, Real, Service, Timeouts
from tests.intents import intents
from tests.sizes import EXAMPLES
from tests.unit.fakes import DNS, WEB

BOTH = Intent((WEB, DNS))
WEB_KEY, DNS_KEY = str(WEB.key), str(DNS.key)
FIRST, SECOND, THIRD = WEB.reals
NEW = Service("203.0.113.10", 443, scheduler="rr", reals=(Real("10.0.1.11", 443, 2),), persistence=Persistence(60))


def web(**changed: Any) -> Intent:
    return Intent((replace(WEB, **changed), DNS))


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (BOTH, []),
        (Intent((WEB,)), [Step("delete", "service", DNS_KEY)]),
        (
            Intent((WEB, DNS, NEW)),
            [
                Step(
                    "add",
                    "service",
                    "203.0.113.10:443/tcp",
                    changes={"scheduler": (None, "rr"), "persistence": (None, {"timeout": 60})},
                ),
                Step("add", "real", "203.0.113.10:443/tcp", "10.0.1.11:443", {"weight": (None, 2)}),
            ],
        ),
        (
            web(scheduler="lc", mss=1400),
            [Step("edit", "service", WEB_KEY, changes={"scheduler": ("wrr", "lc"), "mss": (0, 1400)})],
        ),
        (
            web(reals=(replace(FIRST, weight=9), THIRD, Real("10.0.1.14", 80))),
            [
                Step("delete", "real", WEB_KEY, "10.0.1.12:8080"),
                Step("edit", "real", WEB_KEY, "10.0.1.11:8080", {"weight": (3, 9)}),
                Step("add", "real", WEB_KEY, "10.0.1.14:80"),
            ],
        ),
        (
            web(reals=(SECOND, FIRST, THIRD)),
            [
                Step(
                    "edit",
                    "order",
                    WEB_KEY,
                    changes={"reals": ([str(FIRST), str(SECOND), str(THIRD)], [str(SECOND), str(FIRST), str(THIRD)])},
                )
            ],
        ),
        (Intent((DNS, WEB)), [Step("edit", "order", changes={"services": ([WEB_KEY, DNS_KEY], [DNS_KEY, WEB_KEY])})]),
        (
            Intent((WEB, DNS), Timeouts(udp=9), Answers(no_server="drop"), Options(1)),
            [
                Step("edit", "timeouts", changes={"udp": (300, 9)}),
                Step("edit", "answers", changes={"no_server": ("icmp", "drop")}),
                Step("edit", "options", changes={"conn_reuse_mode": (3, 1)}),
            ],
        ),
    ],
    ids=["equal", "delete", "add", "edit", "reals", "order of reals", "order of services", "what holds for all"],
)
def test_each_difference_is_a_step(after: Intent, expected: list[Step]) -> None:
    assert steps(BOTH, after) == expected


@settings(max_examples=EXAMPLES, deadline=None)
@given(intents(), st.data())
def test_there_are_no_steps_exactly_between_equals(before: Intent, data: st.DataObject) -> None:
    after = data.draw(st.just(msgspec.convert(msgspec.to_builtins(before), Intent)) | intents())
    assert (steps(before, after) == []) == (before == after)


@settings(max_examples=EXAMPLES, deadline=None)
@given(intents(), intents())
def test_the_steps_name_what_comes_and_what_goes(before: Intent, after: Intent) -> None:
    found = steps(before, after)

    def named(action: str) -> set[tuple[str, str]]:
        return {(step.service, step.real) for step in found if step.action == action and step.what != "order"}

    def ends(intent: Intent, keys: set[Any]) -> set[tuple[str, str]]:
        """Real servers of services that are in both intents."""
        return {(str(s.key), str(real)) for s in intent.services for real in s.reals if s.key in keys}

    old, new = ({service.key for service in intent.services} for intent in (before, after))
    both = old & new
    added = {(str(s.key), end) for s in after.services if s.key not in old for end in ("", *map(str, s.reals))}
    assert named("add") == added | ends(after, both) - ends(before, both)
    assert named("delete") == {(str(key), "") for key in old - new} | ends(before, both) - ends(after, both)
