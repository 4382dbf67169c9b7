"""Fixtures of the network tests, and the checks that none of them, and no cell of their matrix, was left out.

expected.txt names every network test, a line each. When all of this directory is asked for, a listed test that neither
passed nor failed (skipped, deselected, renamed, its file gone) fails the run: a green run means that they all ran. So
does a cell of the matrix that neither ran nor stands in inapplicable.toml.

The tests may be spread over processes (pytest-xdist). What became of each comes to the first process with its report;
what a process knows of all of its tests, with its end.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from netns.topology import Net
from tests.netns.matrix import INAPPLICABLE, Cell, Matrix, cell_of, inapplicable
from tests.netns.watch import Watch

HERE = Path(__file__).parent
RAN = pytest.StashKey[set[str]]()
MATRIX = pytest.StashKey[Matrix]()
PACKETS = pytest.StashKey[Counter[str]]()


class How(NamedTuple):
    """One way to run nfqlb: which engine takes the packets and what diverts them."""

    engine: str
    diverter: str

    @property
    def args(self) -> list[str]:
        return ["--engine", self.engine, "--diverter", self.diverter]


HOWS = [How(engine, diverter) for engine in ("fast", "reference") for diverter in ("nft", "iptables")]


@pytest.fixture(params=HOWS, ids="-".join)
def how(request: pytest.FixtureRequest) -> How:
    """Both engines under both diverters."""
    return request.param


@pytest.fixture(params=("nft", "iptables"))
def diverter(request: pytest.FixtureRequest) -> list[str]:
    """Both diverters, under the default engine."""
    return ["--diverter", request.param]


@pytest.fixture
def make_net() -> Iterator[Callable[..., Net]]:
    """make_net(servers=2): a topology that goes when the test ends."""
    with ExitStack() as stack:
        yield lambda **shape: stack.enter_context(Net(**shape))


@pytest.fixture
def net(make_net: Callable[..., Net]) -> Net:
    """The usual one: a client, a router, a director with the VIP, two web servers."""
    return make_net(servers=2)


@pytest.fixture(scope="session")
def watch(pytestconfig: pytest.Config) -> Callable[[Net], Watch]:
    """`with watch(net) as watched`: what leaves its director meanwhile is accounted for."""
    return lambda net: Watch(net, pytestconfig.stash[PACKETS])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    matrix = config.stash[MATRIX]
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("netns")
            if os.geteuid() != 0:
                item.add_marker(pytest.mark.skip(reason="network namespaces need root"))
        if cell := cell_of(item):
            matrix.collect(cell.kind)
            if cell in matrix.listed:
                item.add_marker(pytest.mark.skip(reason=matrix.listed[cell]))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[Any]:
    report: pytest.TestReport = yield
    cell = cell_of(item)
    if cell and (report.failed or (report.when == "call" and report.passed)):  # what is skipped is torn down as well
        report.cell = list(cell)  # type: ignore[attr-defined]
    return report


def pytest_configure(config: pytest.Config) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and its children
    config.stash[RAN] = set()
    config.stash[MATRIX] = Matrix(inapplicable(INAPPLICABLE.read_text()))
    config.stash[PACKETS] = Counter()
    config.pluginmanager.register(Recorder(config.stash))


class Recorder:
    def __init__(self, stash: pytest.Stash) -> None:
        self.ran, self.matrix, self.packets = stash[RAN], stash[MATRIX], stash[PACKETS]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.outcome != "skipped":
            self.ran.add(name(report.nodeid))
        if cell := getattr(report, "cell", None):
            self.matrix.record(Cell(*cell), report.passed)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """A process of xdist's has ended; one that crashed tells nothing."""
        told = getattr(node, "workeroutput", {})
        for kind in told.get("kinds", ()):
            self.matrix.collect(kind)
        self.packets.update(told.get("packets", {}))


def name(nodeid: str) -> str:
    return nodeid.removeprefix("tests/netns/")


def is_worker(config: pytest.Config) -> bool:
    """Whether this process runs tests for another one."""
    return hasattr(config, "workerinput")


def all_asked_for(config: pytest.Config) -> bool:
    narrowed = config.option.keyword or config.option.markexpr or config.option.deselect or config.option.collectonly
    folders = [Path(config.invocation_params.dir, argument).resolve() for argument in config.args]
    return not narrowed and any(folder == HERE or folder in HERE.parents for folder in folders)


def missing(config: pytest.Config) -> tuple[list[str], int]:
    expected = (HERE / "expected.txt").read_text().split("\n")[:-1]
    return [test for test in expected if test not in config.stash[RAN]], len(expected)


def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    if is_worker(config):
        told = {"kinds": config.stash[MATRIX].kinds, "packets": dict(config.stash[PACKETS])}
        config.workeroutput.update(told)  # type: ignore[attr-defined]
    elif all_asked_for(config) and (missing(config)[0] or any(config.stash[MATRIX].wrong())):
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    matrix, packets = config.stash[MATRIX], config.stash[PACKETS]
    if matrix.passed:
        for line in ["", *matrix.table()]:
            terminalreporter.line(line)
        terminalreporter.line(
            f"packets that left a director and were checked: {packets['checked']:,}"
            f" ({packets['unfinished']:,} of them with the checksum left to the device)"
        )
    if all_asked_for(config):
        for sentence in matrix.wrong():
            terminalreporter.line(sentence, red=True)
        absent, expected = missing(config)
        for test in absent:
            terminalreporter.line(f"expected network test did not run: {test}", red=True)
        terminalreporter.line(f"network tests: {expected - len(absent)} of {expected} expected ones ran")
