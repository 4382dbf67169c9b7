"""A whole table over TCP, for a peer that joins or returns.

Strategy: who wants it connects, both say who they are and give a nonce, and frames follow: a length and a sync message
of version 1, with a length of 0 behind the last. With a key, the one who asks proves that it knows it before anything
is read from the table, and each frame carries an HMAC under a key of this conversation with the frame's number, so that
none can be left out, changed or played again. A kernel does not listen there: it is not asked again.
"""

from __future__ import annotations

import hmac
import os
import socket
import struct
from collections.abc import Callable, Iterator

GREETING = b"nfqlb sync 1\n"
NONCE = 16
MAC = 32
LENGTH = struct.Struct(">I")
ROOM = 9216  # bytes of a message: 255 records
FRAME_MAX = 65535
PLACES = 16384  # of the table that are read at a time
SECONDS = 10.0  # that either end waits for the other


class Conversation:
    """One end of a connection, after both have greeted."""

    def __init__(self, sock: socket.socket, key: bytes, *, asks: bool) -> None:
        sock.settimeout(SECONDS)
        self._socket, self._number = sock, 0
        mine = os.urandom(NONCE)
        sock.sendall(GREETING + mine)
        theirs = self._read(len(GREETING) + NONCE)
        if not theirs.startswith(GREETING):
            raise ValueError("it does not speak nfqlb's sync")
        nonces = (mine, theirs[len(GREETING) :]) if asks else (theirs[len(GREETING) :], mine)
        self._key = hmac.digest(key, b"".join(nonces), "sha256") if key else b""
        if not key:
            return
        proof = hmac.digest(self._key, b"asks", "sha256")
        if asks:
            sock.sendall(proof)
        elif not hmac.compare_digest(self._read(MAC), proof):
            raise ValueError("it has another key")

    def send(self, messages: Iterator[bytes]) -> None:
        """All of these, and that there are no more."""
        for message in messages:
            self._send(message)
        self._send(b"")

    def receive(self) -> Iterator[bytes]:
        """Until the other says that there is no more; ValueError or OSError when it does not get so far."""
        while True:
            (length,) = LENGTH.unpack(self._read(LENGTH.size))
            if length > FRAME_MAX:
                raise ValueError("a frame is too long")
            message, mac = self._read(length), self._read(MAC if self._key else 0)
            if not hmac.compare_digest(mac, self._mac(message)):
                raise ValueError("a frame has a wrong seal")
            if not message:
                return
            yield message

    def _send(self, message: bytes) -> None:
        self._socket.sendall(LENGTH.pack(len(message)) + message + self._mac(message))

    def _mac(self, message: bytes) -> bytes:
        self._number += 1
        return hmac.digest(self._key, self._number.to_bytes(8, "big") + message, "sha256") if self._key else b""

    def _read(self, size: int) -> bytes:
        parts = []
        while size:
            part = self._socket.recv(min(size, 1 << 16))
            if not part:
                raise ValueError("it ended in the middle")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


def give(sock: socket.socket, key: bytes, dump: Callable[[int], tuple[list[bytes], int]]) -> None:
    """Send what `dump` makes from a place on, until it says 0."""

    def messages() -> Iterator[bytes]:
        place = 1
        while place:
            found, place = dump(place)
            yield from found

    Conversation(sock, key, asks=False).send(messages())


def take(sock: socket.socket, key: bytes, apply: Callable[[bytes], object]) -> None:
    """Have `apply` enter all that comes."""
    for message in Conversation(sock, key, asks=True).receive():
        apply(message)
