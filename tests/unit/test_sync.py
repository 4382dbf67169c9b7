"""Connection sync over real sockets of this machine: two directors' tables, without the directors."""

from __future__ import annotations

import os
import resource
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nfqlb._core.mirror import Mirror
from nfqlb._core.sync import Message, Record, encode
from nfqlb.errors import ConfigError
from nfqlb.ha import resync
from nfqlb.ha.seal import OVERHEAD, SKEW, WINDOW, Seal, read_key
from nfqlb.ha.sync import MARK, SUM, Greeting, Syncing
from nfqlb.model import Sync
from nfqlb.testing import endpoint, tcp
from tests.core.lab import CLIENT, REAL, VIP, Lab, Virtual, clients

WEB = Virtual(VIP, {REAL: 1})
KEY = b"0123456789abcdef"
PORT = 28848  # none that the kernel hands out, to a test beside this one


def until(holds: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.01)


@contextmanager
def side(own: str, peer: str, role: str = "both", key_file: str = "") -> Iterator[tuple[Lab, Syncing]]:
    """A director at `own`, a loopback address, with one peer."""
    lab = Lab(WEB, capacity=4096)
    lab.datapath.announce()
    settings = Sync(role=role, peers=(peer,), port=PORT, key_file=key_file)
    syncing = Syncing(Mirror(lab.datapath), 4096, settings, lab.clock, own)
    syncing.start()
    try:
        yield lab, syncing
    finally:
        syncing.stop()


def fate(lab: Lab, client: str) -> str:
    return lab.send(tcp(client, VIP, "A")).reason


def test_a_connection_is_known_to_the_peer_and_a_late_one_gets_the_whole_table() -> None:
    with side("127.0.8.1", "127.0.8.2") as (one, _):
        for client in clients(300):
            one.open(client)
        with side("127.0.8.2", "127.0.8.1") as (other, late):
            until(lambda: late.status()["state"] == "whole")
            assert late.ready
            assert other.load(REAL) == (300, 0)
            one.open("192.0.2.99:1")
            until(lambda: other.load(REAL) == (301, 0))
            assert fate(other, "192.0.2.99:1") == "forwarded"


def test_who_is_alone_is_ready_all_the_same() -> None:
    with side("127.0.8.3", "127.0.8.4") as (_, only):
        assert not only.ready
        until(lambda: only.ready)
        assert only.status()["state"] == "alone"


@contextmanager
def many_files(limit: int) -> Iterator[None]:
    """With that many descriptors at most, and all but a few taken: what is opened then has a high number."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, before)
        while (fd := os.dup(0)) < limit - 32:
            stack.callback(os.close, fd)
        os.close(fd)
        yield


def test_it_speaks_by_descriptors_that_select_does_not_take() -> None:
    with many_files(1100), side("127.0.8.15", "127.0.8.16") as (_, only):
        until(lambda: only.ready or only.status()["state"] == "failed")
        assert only.status()["state"] == "alone"


def test_a_peer_that_could_not_be_answered_is_answered_the_next_time() -> None:
    with side("127.0.8.17", "127.0.8.18") as (one, first), socket.socket() as early:
        one.open()
        free = os.dup(0)
        os.close(free)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
        try:
            early.connect(("127.0.8.17", PORT))
            until(lambda: first.status()["failure"] == "Too many open files")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        with side("127.0.8.18", "127.0.8.17") as (other, late):
            until(lambda: late.status()["state"] == "whole")
            assert other.load(REAL) == (1, 0)


def test_what_failed_for_good_is_an_obstacle_and_greets_nobody() -> None:
    class Broken(Mirror):
        def walk(self, *_: object) -> list[bytes]:
            raise ZeroDivisionError

    lab = Lab(WEB, capacity=4096)
    lab.datapath.announce()
    broken = Syncing(Broken(lab.datapath), 4096, Sync(peers=("127.0.8.20",), port=PORT), lab.clock, "127.0.8.19")
    broken.start()
    until(lambda: broken.obstacle)
    assert (broken.ready, broken.obstacle) == (False, "an error in nfqlb, which the log has")
    for thread in broken._threads:
        thread.join(20)
        assert not thread.is_alive()
    broken.stop()


def test_who_cannot_begin_is_not_ready_says_why_and_begins_as_soon_as_it_can(tmp_path: Path) -> None:
    with socket.create_server(("127.0.8.9", PORT)) as other, side("127.0.8.9", "127.0.8.10") as (_, taken):
        assert (taken.status()["state"], taken.ready) == ("shut", False)
        assert taken.obstacle == taken.status()["failure"] == f"no sync at port {PORT}: Address already in use"
        other.close()
        until(lambda: not taken.obstacle)
        assert taken.status()["state"] == "waiting"
    file = tmp_path / "key"
    with side("127.0.8.9", "127.0.8.10", key_file=str(file)) as (_, locked):
        assert "cannot be read" in locked.obstacle
        key_file(file)
        until(lambda: not locked.obstacle)
    lab = Lab(WEB)
    lab.datapath.announce()
    nowhere = Syncing(Mirror(lab.datapath), 4096, Sync(interface="eth99"), lab.clock)
    nowhere.start()
    assert not nowhere.ready
    assert nowhere.obstacle == "no sync over eth99 at port 8848: no interface with this name"
    nowhere.stop()


def key_file(path: Path, key: bytes = KEY, mode: int = 0o600) -> str:
    path.write_bytes(key)
    path.chmod(mode)
    return str(path)


def test_with_a_key_only_who_has_it_is_believed(tmp_path: Path) -> None:
    right, wrong = key_file(tmp_path / "right"), key_file(tmp_path / "wrong", b"x" * 32)
    forged = encode(Message(1, 0, [Record(6, *endpoint(CLIENT), *endpoint(VIP), *endpoint(REAL), 0, 1, timeout=900)]))
    with (
        side("127.0.8.5", "127.0.8.6", key_file=right) as (one, first),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        sender.bind(("127.0.8.6", 0))
        sender.sendto(forged, ("127.0.8.5", PORT))
        until(lambda: first.status()["messages_unsealed"])
        assert one.connections() == []
        with side("127.0.8.6", "127.0.8.5", key_file=wrong) as (other, _):
            one.open()
            seen = first.status()["messages_unsealed"]
            until(lambda: first.status()["messages_unsealed"] != seen)
            assert other.connections() == []
        with side("127.0.8.6", "127.0.8.5", key_file=right) as (other, second):
            until(lambda: second.status()["state"] == "whole")
            assert other.load(REAL) == (1, 0)


@pytest.mark.parametrize(
    "came", [[1, 1], [1], [1, 3], [2, 1]], ids=["one twice, one lost", "lost", "changed", "out of turn"]
)
def test_what_came_is_held_against_what_was_sent(came: list[int]) -> None:
    """A greeting may be overtaken: at the second that finds it otherwise the table is asked for."""
    sent = [
        encode(Message(1, 0, [Record(6, *endpoint(CLIENT), *endpoint(VIP), *endpoint(REAL), 0, at)])) for at in (1, 4)
    ]
    other = encode(Message(1, 0, []))
    with (
        side("127.0.8.7", "127.0.8.8") as (_, syncing),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        sender.bind(("127.0.8.8", 0))

        def greet(messages: list[bytes]) -> None:
            said = Greeting("run", len(messages), sum(map(zlib.crc32, messages)) % SUM, 0.0, True)
            sender.sendto(MARK + msgspec.json.encode(said), ("127.0.8.7", PORT))

        def peer() -> Any:
            return next(iter(syncing.status()["peers"]), None)  # type: ignore[call-overload]

        greet([])
        until(peer)
        for at in came:
            sender.sendto({1: sent[0], 2: sent[1], 3: other}[at], ("127.0.8.7", PORT))
        greet(sent)
        until(lambda: peer()["received"] == len(came))
        assert peer()["lost"] == 0
        greet(sent)
        sender.sendto(other, ("127.0.8.7", PORT))
        until(lambda: peer()["received"] == len(came) + 1)
        assert peer()["lost"] == (came != [2, 1])


def test_a_sealed_message_is_opened_once_by_who_has_the_key_and_soon() -> None:
    sender, receiver = Seal(KEY, b"sender--"), Seal(KEY, b"receiver")
    first, second = sender.seal(b"one", 1000), sender.seal(b"two", 1000)
    assert len(first) == 3 + OVERHEAD
    assert receiver.open(second, 1000) == (b"sender--", b"two")
    assert receiver.open(first, 1000) == (b"sender--", b"one"), "late is not twice"
    for data, now, reason in (
        (first, 1000, "before"),
        (second, 1000, "before"),
        (sender.seal(b"three", 1000), 1001 + SKEW, "time"),
        (Seal(KEY[::-1], b"sender--").seal(b"x", 1000), 1000, "wrong"),
        (b"plain", 1000, "no seal"),
    ):
        with pytest.raises(ValueError, match=reason):
            receiver.open(data, now)
    for number in range(WINDOW + 1):
        last = sender.seal(b"x", 1000)
        if number == 0:
            old = last
    receiver.open(last, 1000)
    with pytest.raises(ValueError, match="before"):
        receiver.open(old, 1000)


def test_no_bit_of_a_sealed_message_can_be_changed() -> None:
    data = Seal(KEY, b"sender--").seal(b"message", 1000)
    for at in range(len(data) * 8):
        changed = bytearray(data)
        changed[at // 8] ^= 1 << at % 8
        with pytest.raises(ValueError, match=r"seal"):
            Seal(KEY, b"receiver").open(bytes(changed), 1000)


@pytest.mark.parametrize(
    ("mode", "key", "problem"), [(0o640, KEY, "others"), (0o600, b"short\n", "less than"), (None, b"", "read")]
)
def test_a_key_that_is_no_secret_is_refused(tmp_path: Path, mode: int | None, key: bytes, problem: str) -> None:
    path = str(tmp_path / "none") if mode is None else key_file(tmp_path / "key", key, mode)
    with pytest.raises(ConfigError, match=problem) as refused:
        read_key(path)
    assert "short" not in str(refused.value)


def talk(give: bytes, take: bytes, messages: list[bytes]) -> list[bytes]:
    """A whole table from who has the one key to who has the other."""
    one, other = socket.socketpair()
    found: list[bytes] = []

    def giving() -> None:
        with one:
            try:
                resync.give(one, give, lambda place: (messages, 0))
            except (OSError, ValueError):
                return

    thread = threading.Thread(target=giving)
    thread.start()
    try:
        with other:
            resync.take(other, take, found.append)
    finally:
        thread.join(20)
    return found


@pytest.mark.parametrize("key", [b"", KEY])
def test_a_whole_table_comes_whole(key: bytes) -> None:
    assert talk(key, key, [b"one", b"two" * 1000]) == [b"one", b"two" * 1000]


def test_a_whole_table_is_not_given_to_who_has_another_key() -> None:
    with pytest.raises((ValueError, OSError)):
        talk(KEY, KEY[::-1], [b"secret"])
