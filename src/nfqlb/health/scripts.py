"""Has scripts run: the director's end of the socket to the spawner, which runs them as another user.

Strategy: a question is one message with a number, the answer bears the same one. The number holds the pid, because the
socket outlives a director: what a predecessor asked for is nobody's any more. Everything runs on the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import socket
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from nfqlb.errors import ConfigError
from nfqlb.health.advice import said
from nfqlb.model import command
from nfqlb.spawner import MESSAGE_MAX, distrust

GONE = "no script can be run: what runs them has ended"


class Outcome(NamedTuple):
    """How a script ended: its exit code (negative: by that signal) and the beginning of what it wrote. `problem` says
    why it did not run, or not to its end; then there is no code.
    """

    code: int | None = None
    output: str = ""
    problem: str = ""
    lost: bool = False
    """Whether it did not run for a reason that says nothing about it."""

    @property
    def line(self) -> str:
        """The first line that says something."""
        return next((said(line) for line in self.output.splitlines() if line.strip()), "")


class Scripts:
    """`connection` leads to the spawner; without one no script can be run here."""

    def __init__(self, connection: socket.socket | None = None) -> None:
        self._connection = connection
        self._numbers = itertools.count()
        self._sending = asyncio.Lock()
        self._asked: dict[str, asyncio.Future[Outcome]] = {}
        self._listening: asyncio.Task[None] | None = None

    def require(self, field: str, line: str) -> None:
        """ConfigError where this command may not be run, or none can be run here."""
        check_command(field, line)
        if self._connection is None:
            fix = "name a script_user, and leave CAP_SETUID and CAP_SETGID to nfqlb"
            raise ConfigError(field, line, "cannot be run as another user here", fix)

    async def run(self, command: Sequence[str], seconds: float, environ: Mapping[str, str] | None = None) -> Outcome:
        """Run a command as `script_user`, for `seconds` at most, with `environ` beside a clean environment.

        Raises nothing: what goes wrong is the outcome's problem. It may wait before it starts: a number run at once.
        """
        if self._connection is None:
            return Outcome(problem="no script can be run here", lost=True)
        if self._listening is None:
            self._connection.setblocking(False)
            self._listening = asyncio.create_task(self._listen(self._connection))
        loop, number = asyncio.get_running_loop(), f"{os.getpid()}-{next(self._numbers)}"
        answer: asyncio.Future[Outcome] = loop.create_future()
        self._asked[number] = answer
        request = {"id": number, "command": list(command), "env": dict(environ or {}), "seconds": seconds}
        try:
            async with self._sending:
                await loop.sock_sendall(self._connection, json.dumps(request).encode())
            return await answer
        except OSError:
            return Outcome(problem=GONE, lost=True)
        finally:
            del self._asked[number]

    async def close(self) -> None:
        """Listen no more; who waits for a script is told that there is none."""
        if self._listening:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)

    async def _listen(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            with contextlib.suppress(OSError):
                while message := await loop.sock_recv(connection, MESSAGE_MAX):
                    answer = json.loads(message)
                    asked = self._asked.get(answer.pop("id"))
                    if asked and not asked.done():
                        asked.set_result(Outcome(**answer))
        finally:
            self._connection = None
            for asked in self._asked.values():
                if not asked.done():
                    asked.set_result(Outcome(problem=GONE, lost=True))


def check_command(field: str, text: str) -> list[str]:
    """The words of a command line; ConfigError where it begins with no program that may be run."""
    words = command(field, text)
    if why := distrust(words[0]):
        raise ConfigError(field, text, why, "have it belong to root, and its folders, writable by nobody else")
    return words
