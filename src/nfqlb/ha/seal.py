"""Sync messages that only who knows the group's key can write, and nobody can send twice. No socket, no clock.

Strategy: a sealed datagram is the message behind a head that no kernel takes for one of its own (its size is not the
datagram's), and before an HMAC-SHA256 (RFC 2104) over both. The head names the sender's run, a number that counts up in
it, and the time. What is older than SKEW, of a number that was seen, or too far behind it, is refused; so is all that
has no seal. The key is never written anywhere.
"""

from __future__ import annotations

import hmac
import os
import stat
import struct
from pathlib import Path

from nfqlb.errors import ConfigError

MARK = b"\xffS\xff\xff"
HEAD = struct.Struct(">4s8sQQ")  # mark, run, number, nanoseconds since 1970
MAC = 32
OVERHEAD = HEAD.size + MAC  # bytes
SKEW = 60 * 10**9  # nanoseconds that clocks may differ by
WINDOW = 1024  # numbers that may come late
RUNS_MAX = 64  # of peers that are remembered
KEY_MIN = 16  # bytes


class ReplayError(ValueError):
    """A message that came before: a network may do that, and so may who listens to it."""


class Seal:
    """One end. `open` and `seal` raise ValueError with a word for what is wrong."""

    def __init__(self, key: bytes, run: bytes) -> None:
        self._key, self._run, self._number = key, run, 0
        self._seen: dict[bytes, tuple[int, int]] = {}  # by run: the highest number, and which of those below were seen

    def seal(self, message: bytes, now: int) -> bytes:
        self._number += 1
        head = HEAD.pack(MARK, self._run, self._number, now)
        return head + message + hmac.digest(self._key, head + message, "sha256")

    def open(self, data: bytes, now: int) -> tuple[bytes, bytes]:
        """The run it is of, and the message."""
        if len(data) < OVERHEAD or not data.startswith(MARK):
            raise ValueError("it has no seal")
        body, mac = data[:-MAC], data[-MAC:]
        if not hmac.compare_digest(mac, hmac.digest(self._key, body, "sha256")):
            raise ValueError("its seal is wrong")
        _, run, number, then = HEAD.unpack_from(body)
        if abs(now - then) > SKEW:
            raise ValueError("it is of another time: are the clocks right?")
        highest, seen = self._seen.get(run, (0, 0))
        if number > highest:
            seen = (seen << min(number - highest, WINDOW) | 1) & ((1 << WINDOW) - 1)
            highest = number
        else:
            bit = 1 << (highest - number) if highest - number < WINDOW else 0
            if not bit or seen & bit:
                raise ReplayError("it came before")
            seen |= bit
        self._seen.pop(run, None)
        self._seen[run] = highest, seen
        if len(self._seen) > RUNS_MAX:
            del self._seen[next(iter(self._seen))]
        return run, body[HEAD.size :]


def read_key(path: str) -> bytes:
    """The key in a file that is root's alone; ConfigError otherwise, never with what is in it."""
    try:
        about = os.stat(path)
        key = Path(path).read_bytes().strip()
    except OSError as error:
        fix = f"write one: head -c 32 /dev/urandom | base64 > {path}; chmod 600 {path}"
        raise ConfigError("key_file", path, f"cannot be read ({error.strerror})", fix) from None
    if about.st_uid not in (0, os.geteuid()) or stat.S_IMODE(about.st_mode) & 0o077:
        raise ConfigError("key_file", path, "may be read by others", f"chown root {path}; chmod 600 {path}")
    if len(key) < KEY_MIN:
        raise ConfigError("key_file", path, f"holds less than {KEY_MIN} bytes", "head -c 32 /dev/urandom | base64")
    return key
