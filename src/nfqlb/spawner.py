"""Runs scripts as `script_user`, for a director that may not become anybody: a process of its own.

Strategy: the holder starts it while it still may, and keeps a copy of the director's end of the socket, so that it
lives as long as the holder. It becomes the user at once and gives up all capabilities. Its real uid stays that of
root, so that no script can signal or trace it; a script has the user's three times, which needs no capability.

Each message is one request or one answer, in JSON (SOCK_SEQPACKET keeps them apart). A script runs only from a path
that root alone can write, in a clean environment, in a session of its own. At its end, or when its time is up, the
whole process group is killed. The standard library alone: it begins as root.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pwd
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from nfqlb.kernel.capabilities import SETGID, SETUID, keep_only
from nfqlb.waiting import within

AT_ONCE = 64  # scripts; further ones wait
OUTPUT_MAX = 4096  # bytes that are told; a script may write more
MESSAGE_MAX = 1 << 17
STUBBORN_SECONDS = 1.0  # that a killed script has to be gone
LINKS_MAX = 40  # MAXSYMLINKS
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/"}
IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # a stop is the holder's: it closes the socket


def distrust(path: str) -> str:
    """Why this file must not be run: somebody other than root could change what it is. Nothing where it may."""
    if not os.path.isabs(path):
        return "is not an absolute path"
    try:
        for step, status in _steps(path):
            if status.st_uid:
                return f"belongs to another user than root: {step}"
            if not stat.S_ISLNK(status.st_mode) and status.st_mode & 0o022:
                return f"can be written by others than root: {step}"
    except OSError as error:
        return f"cannot be run: {error.filename}: {error.strerror}"
    return "" if stat.S_ISREG(status.st_mode) else "is not a file"


def _steps(path: str) -> Iterator[tuple[str, os.stat_result]]:
    """Everything that the kernel looks at on its way to the file: folders, links, the folders of their targets."""
    place, names, links = "/", path.split("/"), 0
    yield place, os.lstat(place)
    while names:
        name = names.pop(0)
        if name == "..":
            place = os.path.dirname(place)
        elif name not in ("", "."):
            step = os.path.join(place, name)
            status = os.lstat(step)
            yield step, status
            if stat.S_ISLNK(status.st_mode):
                links += 1
                if links > LINKS_MAX:
                    raise OSError(0, "too many links", step)
                target = os.readlink(step)
                names = target.split("/") + names
                place = "/" if target.startswith("/") else place
            else:
                place = step


def become(user: str) -> None:
    """Act as the user from now on, with no capability; the real uid stays."""
    keep_only(SETUID, SETGID)
    entry = pwd.getpwnam(user)
    os.setgroups(os.getgrouplist(user, entry.pw_gid))
    os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
    os.setresuid(-1, entry.pw_uid, -1)
    keep_only()


async def run(command: Sequence[str], more: Mapping[str, str], seconds: float) -> dict[str, Any]:
    """Run one script to its end or to that of its time: `code` (negative: a signal) and `output`, or a `problem`, which
    is `lost` where the script did not even begin.
    """
    if why := distrust(command[0]):
        return {"problem": f"{command[0]} {why}", "lost": True}
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    with open(reader, "rb", buffering=0):
        try:
            process = subprocess.Popen(
                command,
                env={**ENVIRONMENT, **more},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=writer,
                stderr=writer,
                start_new_session=True,
                user=os.geteuid(),
            )
        except (OSError, ValueError) as error:  # a NUL in a word
            why = getattr(error, "strerror", None) or str(error)
            return {"problem": f"{command[0]} cannot be run: {why}", "lost": True}
        finally:
            os.close(writer)
        text = bytearray()
        with _watched(reader, lambda: _drain(reader, text)):
            code = await _end(process, seconds)
        _drain(reader, text)
    if code is None:
        return {"problem": f"ran longer than {seconds:g} s"}
    return {"code": code, "output": text.decode(errors="replace")}


async def _end(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """Wait for the end of a script, then kill what it left behind; its exit code, None where its time was up."""
    ended = asyncio.Event()
    try:
        pidfd = os.pidfd_open(process.pid)
    except OSError:
        os.killpg(process.pid, signal.SIGKILL)  # nobody would end it
        raise
    try:
        with _watched(pidfd, ended.set):
            await within(seconds, ended)
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # before it is waited for: the number is not another's yet
        late = not ended.is_set()
        with _watched(pidfd, ended.set):
            await within(STUBBORN_SECONDS, ended)  # one that even SIGKILL does not end is left behind
        os.close(pidfd)
        code = process.poll()
    return None if late else code


@contextlib.contextmanager
def _watched(fd: int, readable: Callable[[], object]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    loop.add_reader(fd, readable)
    try:
        yield
    finally:
        loop.remove_reader(fd)


def _drain(reader: int, text: bytearray) -> None:
    """Take what was written, so that no script waits for it to be read; keep the beginning."""
    with contextlib.suppress(BlockingIOError):
        while more := os.read(reader, 65536):
            text += more[: OUTPUT_MAX - len(text)]
        asyncio.get_running_loop().remove_reader(reader)


async def serve(connection: socket.socket) -> None:
    """Answer requests until nobody holds the other end any more; then nothing runs any more."""
    loop, tasks = asyncio.get_running_loop(), set[asyncio.Task[None]]()
    room, sending = asyncio.Semaphore(AT_ONCE), asyncio.Lock()

    async def answer(request: dict[str, Any]) -> None:
        async with room:
            try:
                outcome = await run(request["command"], request["env"], request["seconds"])
            except Exception as error:  # who asked waits for an answer, whatever it is
                outcome = {"problem": f"{request['command'][0]} cannot be run: {error}", "lost": True}
        async with sending:
            await loop.sock_sendall(connection, json.dumps({"id": request["id"], **outcome}).encode())

    connection.setblocking(False)
    with contextlib.suppress(ConnectionError):
        while message := await loop.sock_recv(connection, MESSAGE_MAX):
            task = asyncio.create_task(answer(json.loads(message)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def main(fd: int, user: str) -> None:
    for number in IGNORED:
        signal.signal(number, lambda *_: None)  # not SIG_IGN: scripts would inherit it
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        become(user)
    except OSError as error:
        sys.exit(f"nfqlb: no script can run as {user}: {error.strerror}")
    asyncio.run(serve(socket.socket(fileno=fd)))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
