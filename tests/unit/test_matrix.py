"""The matrix of the network tests: a cell that nobody ran, or that ran though it cannot apply, is told."""

from __future__ import annotations

import itertools

import pytest

from tests.netns.matrix import COLUMNS, ENGINES, INAPPLICABLE, Cell, Matrix, inapplicable

LISTED = """
[[cells]]
kind = "udp"
engine = "reference"
mode = "tun"
reason = "it cannot"
"""


def run(*without: Cell) -> Matrix:
    """All of TCP and UDP passed but for what is listed, and `without`."""
    matrix = Matrix(inapplicable(LISTED))
    for kind, (mode, family), engine in itertools.product(("tcp", "udp"), COLUMNS, ENGINES):
        cell = Cell(kind, mode, family, engine)
        matrix.collect(kind)
        if cell not in matrix.listed and cell not in without:
            matrix.record(cell, True)
    return matrix


def test_a_row_of_the_file_means_all_cells_that_it_does_not_tell_apart() -> None:
    assert inapplicable(LISTED) == {Cell("udp", "tun", family, "reference"): "it cannot" for family in (4, 6)}
    assert all(inapplicable(INAPPLICABLE.read_text()).values())
    for row in ('kind = "udp"', 'reason = "why"', 'kind = "udp"\nreason = "why"\nmod = "tun"'):
        with pytest.raises(ValueError):
            inapplicable(f"[[cells]]\n{row}")


def test_each_cell_either_ran_or_is_listed() -> None:
    assert list(run().wrong()) == []
    gone = Cell("tcp", "dr", 6, "fast")
    assert list(run(gone).wrong()) == ["tcp, dr, IPv6, fast engine: did not run"]
    matrix = run()
    matrix.record(Cell("udp", "tun", 4, "reference"), True)
    assert list(matrix.wrong()) == ["udp, tun, IPv4, reference engine: is listed as inapplicable, and ran"]
    assert list(Matrix(inapplicable(LISTED)).wrong()) == ["udp: is listed as inapplicable, and no test is of that kind"]


def test_the_table_says_what_became_of_each_cell() -> None:
    matrix = run(Cell("tcp", "nat", 6, "fast"))
    matrix.record(Cell("tcp", "nat", 4, "fast"), False)
    matrix.record(Cell("tcp", "nat", 4, "fast"), True)
    head, tcp, udp, note = matrix.table()
    assert head.split()[:4] == ["nat", "IPv4", "nat", "IPv6"]
    assert tcp.split() == ["tcp", "FAILED,", "ok", "not", "run,", "ok", *["both", "ok"] * 6]
    assert udp.split() == ["udp", *["both", "ok"] * 4, *["ok,", "(1)"] * 2, *["both", "ok"] * 2]
    assert note == "(1) it cannot"
