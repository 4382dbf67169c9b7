"""The steps of a change, as lines to read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

Answer = Mapping[str, Any]
SIGNS = {"add": "+", "delete": "-", "edit": "~"}


def tell(answer: Answer, as_json: bool) -> None:
    """What was applied, or would be."""
    if as_json:
        click.echo(json.dumps(answer, indent=2, ensure_ascii=False))
        return
    for line in lines(answer["steps"]):
        click.echo(line)
    for note in answer["notes"]:
        click.echo(f"! {note}")
    if not answer["applied"]:
        click.echo("nothing was done: this is a plan" if answer["steps"] else "there is nothing to do")
    elif answer["steps"]:
        click.echo(f"applied: revision {answer['revision']}")
    else:
        click.echo(f"nothing to do: revision {answer['revision']} is that already")


def lines(steps: Sequence[Answer]) -> Iterator[str]:
    """A line for each step; those of real servers are further in, below their service."""
    told = ""
    for step in steps:
        service = step.get("service", "")
        about_service = step["what"] == "service" or (step["what"] == "order" and not service)
        if service and not about_service and service != told:
            yield f"~ service {service}"
        told = service
        sign, changes = SIGNS[step["action"]], step.get("changes", {})
        name = step.get("real") or (service if about_service else "")
        words = [sign, step["what"], name, *(_change(field, *pair) for field, pair in changes.items())]
        yield ("    " if service and not about_service else "") + " ".join(filter(None, words))


def _change(field: str, before: object, after: object) -> str:
    if before is None:
        return f"{field} {_told(after)}"
    return f"{field} {_told(before)} -> {_told(after)}"


def _told(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, dict):
        return " ".join(f"{key} {_told(one)}" for key, one in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value in (None, "") else str(value)
