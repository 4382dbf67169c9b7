"""What checks say beside well and ill: weights, and that a server wants to be left alone. Pure: no clock, no I/O.

The agent's words are those of HAProxy's agent-check (its configuration manual, 5.2 "agent-check"); a script's exit
codes those of keepalived's MISC_CHECK with misc_dynamic, and those of Nagios plugins; a file's number is that of its
FILE_CHECK.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from nfqlb.model import WEIGHT_MAX

PERCENT = re.compile(r"(\d{1,5})%", re.ASCII)
ILL = ("down", "failed", "fail", "stopped")
LINE_MAX = 200
NAGIOS = ("OK", "WARNING", "CRITICAL", "UNKNOWN")


class Advice(NamedTuple):
    """What one check wants: another `weight` than the one configured, something `added` to it, so many `percent` of it.
    `state` is "drain" (no new connections, persistent clients stay) or "maint" (none at all). None: it says nothing.
    """

    weight: int | None = None
    added: int | None = None
    percent: int | None = None
    state: str | None = None

    def then(self, later: Advice) -> Advice:
        """This, and what was said later: what is not said again stays."""
        said = {name: value for name, value in later._asdict().items() if value is not None}
        return self._replace(**said)


NOTHING = Advice()


def weight(configured: int, advice: Iterable[Advice]) -> int:
    """The weight that follows from what several checks want: differences are added up, percentages multiplied. One that
    was configured as 0 stays it; a percentage makes 0 only where it is 0.
    """
    found, percents = configured, []
    for one in advice:
        if one.state:
            return 0
        found += (0 if one.weight is None else one.weight - configured) + (one.added or 0)
        percents += [] if one.percent is None else [one.percent]
    found = max(0, found)
    for percent in percents:
        found = -(-found * percent // 100)
    return min(found, WEIGHT_MAX) if configured else 0


def said(text: str) -> str:
    """A line that somebody else wrote, fit for logs, mail and environments: no control characters, and not long."""
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text.strip())[:LINE_MAX]


def agent(text: str) -> tuple[Advice, str | None]:
    """What an agent says, and why the server is down: "" where it is up, None where it says nothing of that.

    Words that it does not know are passed over; of those that contradict each other the last one counts.
    """
    line = text.lstrip("\r\n").replace("\r", "\n").partition("\n")[0]
    words, _, reason = line.partition("#")
    advice, down = NOTHING, None
    for word in re.split(r"[\s,]+", words.lower()):
        if found := PERCENT.fullmatch(word):
            advice = advice._replace(percent=int(found[1]))
        elif word in ("drain", "maint"):
            advice = advice._replace(state=word)
        elif word == "ready":
            advice = advice._replace(state="")
        elif word == "up":
            down = ""
        elif word in ILL:
            down = f"the agent says {word}" + (f": {said(reason)}" if reason.strip() else "")
    return advice, down


def exited(how: str, code: int, line: str) -> tuple[Advice, str]:
    """What a script's exit code means, and why the server is ill by it; "" where it is well."""
    said = f": {line}" if line else ""
    if code < 0:
        return NOTHING, f"the script was ended by signal {-code}"
    if how == "nagios":
        state = NAGIOS[code] if code < len(NAGIOS) else f"exit code {code}"
        return NOTHING, "" if code < 2 else line or state
    if how == "weight" and code >= 2:
        return Advice(weight=code - 2), ""
    return NOTHING, f"exit code {code}{said}" if code else ""


def file_says(text: str, factor: int) -> tuple[Advice, str]:
    """What the number in a file means, and why the server is ill by it; no number is 0."""
    found = re.match(r"\s*([+-]?\d{1,12})\b", text, re.ASCII)
    number = int(found[1]) if found else 0
    if factor:
        return Advice(added=number * factor), ""
    return NOTHING, f"the file says {number}" if number else ""
