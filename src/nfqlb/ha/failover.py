"""The director's part in failover: what keepalived is to do, whether this director may be master, whether it is.

Strategy: keepalived is kept by a process that outlives the director (`nfqlb.ha.keeper`). This side starts it where none
answers, writes the configuration, says words to it and hears states from it. What was said is said again to every
new keeper, so either side may die at any moment. Everything runs on the loop.

Ready is a director that nothing holds. A part that has to catch up before this director may be master holds it under a
name of its own (`hold`, `release`), as the sync of connections does until it has the whole table.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Set
from functools import partial
from pathlib import Path
from typing import NoReturn

from nfqlb.errors import MissingError
from nfqlb.ha import require_device
from nfqlb.ha.keepalived import configuration, instance
from nfqlb.ha.keeper import CONFIGURATION, PROGRAM, SOCKET
from nfqlb.runconfig import Ha

APT = "apt install keepalived"
ROLES = ("master", "backup", "fault", "stopped", "unknown")
CALM_SECONDS = 0.05  # changes of services come in bursts, and each is a reload
RETRY_SECONDS = 0.05  # between tries to reach a keeper
WRITE_SECONDS = 1.0  # between tries to write the configuration
STOP_SECONDS = 8.0  # that the keeper has to end keepalived

log = logging.getLogger("nfqlb")


class Failover:
    """`told` hears each new role: "master", "backup", "fault", "stopped" or "unknown"."""

    def __init__(self, ha: Ha, name: str, folder: Path, form: str, told: Callable[[str], None]) -> None:
        self.ha, self.role, self.changes, self.since = ha, "unknown", 0, time.monotonic()
        self._name, self._folder, self._form, self._told = name, folder, form, told
        self._wanted: Set[str] = frozenset(ha.addresses)
        self._holds: list[str] = []
        self._news = asyncio.Event()
        self._keepers: list[subprocess.Popen[bytes]] = []

    def require(self) -> None:
        """MissingError where keepalived is not there."""
        if self.ha.keepalived == "start" and not shutil.which(PROGRAM):
            raise MissingError(f"[ha] needs {PROGRAM}, which is not there: {APT}; no VIP is on this machine until then")

    def require_devices(self) -> None:
        """ConfigError where a device that the configuration names is not there."""
        gateways = [("gateways", gateway.partition("%")[2]) for gateway in self.ha.gateways]
        for field, device in [("interface", self.ha.interface), ("device", self.ha.device), *gateways]:
            if device:
                require_device(f"ha {field}", device)

    def wants(self, addresses: Set[str]) -> None:
        """The master is to have these, unless the configuration names others."""
        if not self.ha.addresses and addresses != self._wanted:
            self._wanted = frozenset(addresses)
            self._news.set()

    def hold(self, why: str) -> None:
        """This director must not be master until the same is released."""
        if why not in self._holds:
            self._holds.append(why)
            self._news.set()

    def release(self, why: str) -> None:
        if why in self._holds:
            self._holds.remove(why)
            self._news.set()

    @property
    def statistics(self) -> dict[str, object]:
        """What `nfqlb show daemon` says."""
        ha = self.ha
        return {
            "role": self.role,
            "seconds": int(time.monotonic() - self.since),
            "changes": self.changes,
            "waits_for": ", ".join(self._holds) or None,
            "interface": ha.interface,
            "vrid": ha.vrid,
            "priority": ha.priority,
            "peers": ", ".join(ha.peers) or "multicast",
        }

    async def mind(self) -> NoReturn:
        """Have a keeper do what is wanted, and hear from it, until cancelled."""
        while True:
            try:
                reader, writer = await self._connect()
            except OSError:
                self._enter("unknown")
                await asyncio.sleep(RETRY_SECONDS)
                continue
            speaking = asyncio.create_task(self._speak(writer))
            speaking.add_done_callback(partial(_close, writer))
            try:
                with contextlib.suppress(OSError):
                    async for line in reader:
                        state = line.decode().strip().lower()
                        self._enter("stopped" if state == "stop" else state)
            finally:
                speaking.cancel()
            self._enter("unknown")
            await asyncio.sleep(RETRY_SECONDS)

    async def stop(self) -> None:
        """Give the VIPs to another director, and end keepalived where it is ours."""
        await self._end(b"stop\n", until_done=True)

    async def leave(self) -> None:
        """Leave everything to a successor on this machine, who has a little longer than after a crash."""
        await self._end(b"leave\n", until_done=False)

    async def _end(self, word: bytes, *, until_done: bool) -> None:
        """The last word to the keeper."""
        try:
            async with asyncio.timeout(STOP_SECONDS):
                reader, writer = await asyncio.open_unix_connection(str(self._folder / SOCKET))
                writer.write(word)
                await writer.drain()
                if until_done:
                    await reader.read()
                writer.close()
        except (OSError, TimeoutError):
            return
        finally:
            for keeper in self._keepers:
                keeper.poll()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """To the keeper of a predecessor, or to one that is started now."""
        try:
            return await asyncio.open_unix_connection(str(self._folder / SOCKET))
        except OSError:
            self._keepers = [one for one in self._keepers if one.poll() is None]
            if not self._keepers:
                self._start()
            raise

    def _start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        pid_file = self.ha.pid_file if self.ha.keepalived == "join" else ""
        about = str(self._folder), instance(self._name), str(self.ha.patience), pid_file, self._form, self._name
        command = [sys.executable, "-P", "-m", "nfqlb.ha.keeper", *about]
        self._keepers.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True))

    async def _speak(self, writer: asyncio.StreamWriter) -> NoReturn:
        """Say what is wanted, and again what has changed. Where the configuration cannot be written, keepalived goes on
        by the one that it has.
        """
        text = word = failure = ""
        while True:
            self._news.clear()
            wanted = configuration(self.ha, self._name, self._wanted, self._folder)
            if wanted != text:
                try:
                    changed = await asyncio.to_thread(_write, self._folder / CONFIGURATION, wanted)
                    writer.write(b"reload\n" if changed else b"start\n")
                    text, failure = wanted, ""
                except OSError as error:
                    if str(error) != failure:
                        failure = str(error)
                        log.error("failover: keepalived is not told of its new configuration: %s", failure)
            if word != (now := "held" if self._holds else "ready"):
                word = now
                writer.write(f"{word}\n".encode())
            await writer.drain()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if wanted == text else WRITE_SECONDS):
                    await self._news.wait()
            await asyncio.sleep(CALM_SECONDS)

    def _enter(self, role: str) -> None:
        if role != self.role:
            self.role, self.since = role, time.monotonic()
            self.changes += 1
            self._told(role)


def _close(writer: asyncio.StreamWriter, speaking: asyncio.Task[NoReturn]) -> None:
    """Whoever does not speak hears nothing either: both begin anew."""
    writer.close()
    if not speaking.cancelled() and (error := speaking.exception()) and not isinstance(error, ConnectionError):
        log.error("failover: %s", error)


def _write(path: Path, text: str) -> bool:
    """Replace the file as a whole; whether it was another."""
    with contextlib.suppress(OSError):
        if path.read_text() == text:
            return False
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)
    return True
