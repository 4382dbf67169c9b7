"""The matrix of the network tests: which cells passed in which engine, which cannot apply, and the table of them.

A test marked `cell` belongs to the cell that its parameters kind (or the mark's), mode (or method), family and engine
name.
"""

from __future__ import annotations

import itertools
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

INAPPLICABLE = Path(__file__).with_name("inapplicable.toml")
COLUMNS = list(itertools.product(("nat", "dr", "tun", "local"), (4, 6)))
ENGINES = ("fast", "reference")


class Cell(NamedTuple):
    kind: str
    mode: str
    family: int
    engine: str

    def __str__(self) -> str:
        return f"{self.kind}, {self.mode}, IPv{self.family}, {self.engine} engine"


def cell_of(item: pytest.Item) -> Cell | None:
    mark = item.get_closest_marker("cell")
    if mark is None:
        return None
    values = {**item.callspec.params, **mark.kwargs}  # type: ignore[attr-defined]
    values["mode"] = values["mode"] or values["method"]
    return Cell(*(values[name] for name in Cell._fields))


def inapplicable(text: str) -> dict[Cell, str]:
    """The cells that a file of that form lists, with their reasons."""
    found = {}
    for row in tomllib.loads(text)["cells"]:
        unknown = row.keys() - {*Cell._fields, "reason"}
        if unknown or not {"kind", "reason"} <= row.keys():
            raise ValueError(
                f"{INAPPLICABLE.name}: {row}: kind and reason are needed, mode, family and engine are known"
            )
        for (mode, family), engine in itertools.product(COLUMNS, ENGINES):
            cell = Cell(row["kind"], mode, family, engine)
            if all(row.get(name, value) == value for name, value in cell._asdict().items()):
                found[cell] = row["reason"]
    return found


class Matrix:
    """What became of each cell: True while all of its tests passed."""

    def __init__(self, listed: Mapping[Cell, str]) -> None:
        self.listed, self.passed, self.kinds = listed, dict[Cell, bool](), list[str]()

    def collect(self, kind: str) -> None:
        if kind not in self.kinds:
            self.kinds.append(kind)

    def record(self, cell: Cell, passed: bool) -> None:
        self.passed[cell] = self.passed.get(cell, True) and passed

    def wrong(self) -> Iterator[str]:
        """A sentence for each cell that is neither run nor listed, both, or nobody's."""
        for kind, (mode, family), engine in itertools.product(self.kinds, COLUMNS, ENGINES):
            cell = Cell(kind, mode, family, engine)
            if (cell in self.passed) == (cell in self.listed):
                yield f"{cell}: {'is listed as inapplicable, and ran' if cell in self.listed else 'did not run'}"
        for kind in sorted({cell.kind for cell in self.listed} - set(self.kinds)):
            yield f"{kind}: is listed as inapplicable, and no test is of that kind"

    def table(self) -> Iterator[str]:
        """A row for each kind, a column for each mode and family, and the reasons of what is not there."""
        yield "".join([" " * 16, *(f"{f'{mode} IPv{family}':>13}" for mode, family in COLUMNS)])
        notes: dict[str, str] = defaultdict(lambda: f"({len(notes) + 1})")
        for kind in self.kinds:
            yield "".join([f"{kind:16}", *(f"{self._state(kind, *column, notes):>13}" for column in COLUMNS)])
        for reason, note in notes.items():
            yield f"{note} {reason}"

    def _state(self, kind: str, mode: str, family: int, notes: dict[str, str]) -> str:
        """ "both", or what each engine has to say."""
        said = {}
        for engine in ENGINES:
            cell = Cell(kind, mode, family, engine)
            state = {True: "ok", False: "FAILED", None: "not run"}[self.passed.get(cell)]
            said[engine] = notes[self.listed[cell]] if cell in self.listed else state
        fast, reference = said.values()
        return ("both ok" if fast == "ok" else fast) if fast == reference else f"{fast}, {reference}"
