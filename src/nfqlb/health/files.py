"""Reads what files of the director's begin with, for checks.

Strategy: a thread for each file, and never two for one: on a mount that hangs it waits for as long as that takes, and
holds up no other file and nothing else of the director, not even its end. Whoever asks meanwhile waits for the same
answer. What is no regular file is not opened: a device may do something then, a FIFO waits for a writer.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import threading
from concurrent.futures import Future

BEGINNING = 256  # bytes


class Files:
    def __init__(self) -> None:
        self._reading: dict[str, Future[str]] = {}

    async def read(self, path: str) -> str:
        """What the file begins with; OSError. It may take for ever."""
        found = self._reading.get(path)
        if found is None:
            found = self._reading[path] = Future()
            found.set_running_or_notify_cancel()  # who waits no more does not end it for others
            found.add_done_callback(lambda _: self._reading.pop(path))
            try:
                threading.Thread(target=_read, args=(path, found), name="file", daemon=True).start()
            except RuntimeError as error:  # no more threads
                found.set_exception(error)
        return await asyncio.wrap_future(found)


def require(path: str) -> None:
    """OSError where this is not a regular file."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "is not a regular file", path)


def _read(path: str, found: Future[str]) -> None:
    try:
        require(path)
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            found.set_result(file.read(BEGINNING).decode(errors="replace"))
    except Exception as error:
        found.set_exception(error)
