"""Which numbers the queues get, and what becomes of a thread that ends by itself."""

from __future__ import annotations

import os
import queue as queues
import socket
from collections.abc import Iterator
from typing import Any, cast

import pytest

from nfqlb import worker
from nfqlb.errors import TakenError
from nfqlb.kernel import netlink
from nfqlb.kernel.queues import Queue as Listener
from nfqlb.worker import Queue, Worker, assign


class Socket:
    """As much of a netlink socket as matters here."""

    def __init__(self, portid: int = 0) -> None:
        self.portid = portid

    def getsockname(self) -> tuple[int, int]:
        return self.portid, 0

    def fileno(self) -> int:
        return -1

    def getsockopt(self, level: int, option: int) -> int:
        return 2 * (8 << 20)


def sockets(*portids: int) -> list[socket.socket]:
    return [cast(socket.socket, Socket(portid)) for portid in portids]


def taken(*numbers: int, portid: int = 1) -> dict[int, Listener]:
    return {number: Listener(number, portid, 0, 0, 0) for number in numbers}


def numbers(lanes: list[list[Queue]]) -> list[list[tuple[int, str]]]:
    return [[(queue.number, queue.kind) for queue in lane] for lane in lanes]


def lane(*given: int) -> list[tuple[int, str]]:
    return list(zip(given, ("gso", "plain", "head", "syn"), strict=True))


@pytest.mark.parametrize(
    ("first", "others", "expected"),
    [
        (None, (), [lane(4096, 4098, 4100, 4102), lane(4097, 4099, 4101, 4103)]),
        (None, (4095, 4099, 4101), [lane(4102, 4104, 4106, 4108), lane(4103, 4105, 4107, 4109)]),
        (7, (4096, 6, 15), [lane(7, 9, 11, 13), lane(8, 10, 12, 14)]),
    ],
    ids=["free: from 4096 on", "partly taken: the first block that is free", "asked for"],
)
def test_two_workers_get(first: int | None, others: tuple[int, ...], expected: list[list[tuple[int, str]]]) -> None:
    lanes = assign(sockets(*[0] * 8), first, taken(*others))
    assert numbers(lanes) == expected
    assert not any(queue.bound for lane in lanes for queue in lane)


def test_sockets_of_a_crashed_director_keep_their_queues() -> None:
    seen = {4096 + i: Listener(4096 + i, portid, 0, 0, 0) for i, portid in enumerate(range(50, 58))}
    lanes = assign(sockets(*range(50, 58)), None, {**seen, **taken(4104)})
    assert numbers(lanes) == [lane(4096, 4098, 4100, 4102), lane(4097, 4099, 4101, 4103)]
    assert all(queue.bound for lane in lanes for queue in lane)


def test_a_taken_queue_is_refused_with_its_number() -> None:
    with pytest.raises(TakenError, match="queue 8 is read by another process"):
        assign(sockets(0, 0, 0, 0), 7, taken(8))


def test_the_reader_of_a_queue_is_named_by_who_holds_its_socket() -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink.NETLINK_NETFILTER) as reader:
        reader.bind((0, 0))
        with pytest.raises(TakenError, match=rf"\(pid {os.getpid()}\)"):
            assign(sockets(0, 0, 0, 0), 7, taken(7, portid=reader.getsockname()[0]))


def test_no_room_at_all_is_refused() -> None:
    with pytest.raises(TakenError, match="--queue"):
        assign(sockets(0, 0, 0, 0), None, taken(*range(4097, 65536, 2)))


class Engine:
    """Ends by itself when `fault` is an error or None; else runs until it is stopped."""

    fault: Any = None

    def __init__(self, core: object, queues_: object, *classes: object) -> None:
        self.stopped: queues.Queue[bool] = queues.Queue()

    def run(self) -> None:
        if self.fault == "none":
            self.stopped.get(timeout=10)
        elif self.fault:
            raise self.fault

    def stop(self) -> None:
        self.stopped.put(True)

    def statistics(self) -> list[dict[str, int]]:
        return [{"overruns": 5}]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Engine]]:
    monkeypatch.setattr(worker, "FastEngine", Engine)
    yield Engine
    Engine.fault = None


@pytest.mark.parametrize(
    ("fault", "words"), [(None, "it returned"), (OSError(9, "Bad file descriptor"), "OSError: [Errno 9] Bad file")]
)
def test_an_engine_that_ends_by_itself_is_reported(engine: type[Engine], fault: Any, words: str) -> None:
    heard: queues.Queue[str] = queues.Queue()
    engine.fault = fault
    worked = Worker(cast(Any, None), [Queue(sockets(50)[0], 4096, "gso", True)], "fast", heard.put)
    assert worked.start() == []
    said = heard.get(timeout=10)
    assert "queue 4096" in said
    assert words in said


def test_an_engine_that_is_stopped_is_not(engine: type[Engine]) -> None:
    heard: queues.Queue[str] = queues.Queue()
    engine.fault = "none"
    lane = Worker(cast(Any, None), [Queue(sockets(50)[0], 4096, "gso", True)], "fast", heard.put)
    lane.start()
    assert lane.info(taken(4096)) == [
        {
            "number": 4096,
            "class": "gso",
            "waiting": 0,
            "queue_dropped": 0,
            "user_dropped": 0,
            "buffer": 8 << 20,
            "overruns": 5,
        }
    ]
    lane.stop()
    assert heard.empty()
