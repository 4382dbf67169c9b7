"""When a real server counts as down, and when as up again. Pure: no clock, no I/O.

Strategy: one table says what each result of a check does in each state. A server that fails goes on getting connections
until `fall` checks in a row have failed; one that is down gets none until `rise` in a row have passed. New ones are up:
a director that starts refuses nobody for want of a first check. What nobody can say changes nothing. Of several checks
the one counts that is the worst off, or the best where any will do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple


class Condition(StrEnum):
    UP = "up"
    FAILING = "failing"  # up, and the last checks failed
    DOWN = "down"
    RISING = "rising"  # down, and the last checks passed


class Result(StrEnum):
    PASS = "pass"
    FAIL = "fail"
    UNKNOWN = "unknown"  # the fault is here


class Row(NamedTuple):
    """Where a result leads: to `near` while fewer than `limit` ("rise" or "fall") of its kind came in a row, to `far`
    from then on.
    """

    near: Condition
    far: Condition
    limit: str = ""


TABLE: Mapping[tuple[Condition, Result], Row] = {
    (Condition.UP, Result.PASS): Row(Condition.UP, Condition.UP),
    (Condition.UP, Result.FAIL): Row(Condition.FAILING, Condition.DOWN, "fall"),
    (Condition.FAILING, Result.PASS): Row(Condition.UP, Condition.UP),
    (Condition.FAILING, Result.FAIL): Row(Condition.FAILING, Condition.DOWN, "fall"),
    (Condition.DOWN, Result.FAIL): Row(Condition.DOWN, Condition.DOWN),
    (Condition.DOWN, Result.PASS): Row(Condition.RISING, Condition.UP, "rise"),
    (Condition.RISING, Result.FAIL): Row(Condition.DOWN, Condition.DOWN),
    (Condition.RISING, Result.PASS): Row(Condition.RISING, Condition.UP, "rise"),
    **{(condition, Result.UNKNOWN): Row(condition, condition) for condition in Condition},
}
WORST_FIRST = (Condition.DOWN, Condition.RISING, Condition.FAILING, Condition.UP)
SERVING = frozenset((Condition.UP, Condition.FAILING))


class Status(NamedTuple):
    """`row` results of the last kind came in a row; `why` is what the last failed check found."""

    condition: Condition = Condition.UP
    row: int = 0
    last: Result = Result.PASS
    why: str = ""

    @property
    def serves(self) -> bool:
        return self.condition in SERVING


def step(status: Status, result: Result, *, rise: int, fall: int, why: str = "") -> Status:
    """The status after one more result."""
    if result is Result.UNKNOWN:
        return status
    leads = TABLE[status.condition, result]
    row = status.row + 1 if result is status.last else 1
    limit = {"rise": rise, "fall": fall}.get(leads.limit, 1)
    return Status(leads.far if row >= limit else leads.near, row, result, why or status.why)


def together(statuses: Sequence[Status], require: str) -> Status:
    """How a real server is by several checks, of which "all" or "any" must be well; by none it is up."""
    if not statuses:
        return Status()
    choose = min if require == "all" else max
    return choose(statuses, key=lambda status: WORST_FIRST.index(status.condition))


def diagram() -> Iterator[str]:
    """The table as a Mermaid state diagram."""
    yield "stateDiagram-v2"
    yield f"    [*] --> {Condition.UP}"
    for (condition, result), row in TABLE.items():
        if row.near == row.far:
            yield f"    {condition} --> {row.far}: {result}"
            continue
        yield f"    {condition} --> {row.near}: {result}"
        yield f"    {condition} --> {row.far}: {result}, {row.limit} in a row"
