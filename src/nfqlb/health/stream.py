"""Connections of checks: plain ones on a bare socket, which costs least, and TLS by asyncio's.

Strategy: a check opens one, says and reads something, and ends it by a reset, so that thousands of checks leave no
TIME_WAIT on either side. A plain one can go over to TLS once (STARTTLS).
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import ssl
import struct
from functools import lru_cache
from typing import Self

from nfqlb.health.advice import NOTHING, Advice
from nfqlb.health.files import require
from nfqlb.model import Check

READ_MAX = 65536  # bytes of an answer that are looked at
RESET = struct.pack("ii", 1, 0)  # SO_LINGER
IP_BIND_ADDRESS_NO_PORT = 24


class _Said(Exception):
    """`advice` is what the server said beside that."""

    def __init__(self, why: str, advice: Advice = NOTHING) -> None:
        super().__init__(why)
        self.advice = advice


class Failed(_Said):
    """The server answered, but not as it should."""


class Unknown(_Said):
    """Nobody can say how the server is: the fault is here, or nothing was said of that."""


class Stream:
    """`address` and `port` are the server's; TimeoutError and OSError are the server's fault, or the network's."""

    def __init__(self, address: str, port: int, check: Check) -> None:
        self._check, self._end = check, (address, port)
        self._socket = opened(address, socket.SOCK_STREAM, check.source)
        self._secure: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._rest = b""  # received and not taken

    async def __aenter__(self) -> Self:
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            await connect(self._socket, self._end)
            if self._check.tls == "on" or self._check.type == "https":
                await self.secure()
        except BaseException:
            self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._secure:
            self._secure[1].transport.abort()
        self._socket.close()

    async def secure(self) -> None:
        """Go over to TLS."""
        check = self._check
        self._secure = await asyncio.open_connection(
            sock=self._socket, ssl=context(check), server_hostname=check.sni or check.host or "", limit=READ_MAX
        )

    @property
    def protocol(self) -> str | None:
        """What was agreed on by ALPN."""
        tls = self._secure[1].get_extra_info("ssl_object") if self._secure else None
        return tls.selected_alpn_protocol() if tls else None

    async def send(self, data: bytes) -> None:
        if self._secure:
            self._secure[1].write(data)
            await self._secure[1].drain()
        else:
            await asyncio.get_running_loop().sock_sendall(self._socket, data)

    async def receive(self) -> bytes:
        """Some more bytes; none at the end."""
        if self._rest:
            rest, self._rest = self._rest, b""
            return rest
        if self._secure:
            return await self._secure[0].read(READ_MAX)
        return await asyncio.get_running_loop().sock_recv(self._socket, READ_MAX)

    async def line(self) -> bytes:
        """The next line, without its end; Failed where the server ends before that."""
        found = b""
        while b"\n" not in found:
            more = await self.receive()
            if not more or len(found) > READ_MAX:
                raise Failed(f"said {short(found)}")
            found += more
        line, _, self._rest = found.partition(b"\n")
        return line.rstrip(b"\r")

    async def expect(self, pattern: str) -> None:
        """Read until the regular expression matches; Failed where it does not."""
        wanted, found = compiled(pattern), b""
        while len(found) < READ_MAX:
            more = await self.receive()
            found += more
            if wanted.search(found):
                return
            if not more:
                break
        raise Failed(f"said {short(found)}")


def opened(address: str, kind: int, source: str, protocol: int = 0) -> socket.socket:
    """A socket for a check of this server."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    found = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
    try:
        if source:
            if kind != socket.SOCK_RAW:
                found.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            found.bind((source, 0))
    except BaseException:
        found.close()
        raise
    return found


async def connect(found: socket.socket, end: tuple[str, int]) -> None:
    """As loop.sock_connect, which asks what kind of address that is every time."""
    try:
        found.connect(end)
    except BlockingIOError:
        loop, fd = asyncio.get_running_loop(), found.fileno()
        done = loop.create_future()
        loop.add_writer(fd, _wake, done)
        try:
            await done
        finally:
            loop.remove_writer(fd)
        if number := found.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(number, os.strerror(number)) from None


def _wake(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


def context(check: Check) -> ssl.SSLContext:
    """How TLS is spoken; the files are read when a check first wants them, until `context_of` forgets."""
    return context_of(check.verify, check.ca, check.cert, check.key, check.version if check.type == "https" else "")


@lru_cache(1024)
def context_of(verify: bool, ca: str, cert: str, key: str, version: str) -> ssl.SSLContext:
    found = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        for path in filter(None, (ca if verify else "", cert, key)):
            require(path)
        if not verify:
            found.check_hostname, found.verify_mode = False, ssl.CERT_NONE
        elif ca:
            found.load_verify_locations(ca)
        else:
            found.load_default_certs()
        if cert:
            found.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:
        raise Unknown(f"gives no certificate: {getattr(error, 'strerror', None) or error}") from None
    if version:
        found.set_alpn_protocols(["h2"] if version == "2" else ["http/1.1"])
    return found


@lru_cache(1024)
def compiled(pattern: str) -> re.Pattern[bytes]:
    """The regular expression of a check; the dot is any byte."""
    return re.compile(pattern.encode(), re.DOTALL)


def short(data: bytes) -> str:
    """The beginning of what was said, for people."""
    text = data.decode(errors="replace").strip()
    return repr(text if len(text) <= 40 else text[:37] + "...") if text else "nothing"
