"""Ask a real server whether it serves: one coroutine for each type of check. They know no state and no schedule.

Strategy: a check returns when the server is well and raises Failed with a short reason when it is not; OSError and
TimeoutError say the same. The caller sets the time. Connections are ended by a reset where the protocol allows it, so
that thousands of checks leave no TIME_WAIT on either side.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NamedTuple

from nfqlb.model import Health, endpoint

if TYPE_CHECKING:
    from aiohttp import ClientSession

READ_MAX = 65536  # bytes of an answer that are looked at
REFUSAL_SECONDS = 0.2  # that an ICMP error has to come, where no answer is expected
RESET = struct.pack("ii", 1, 0)  # SO_LINGER
GREETINGS = {  # what a server says at once, and what it is told in the end
    "smtp": (re.compile(rb"220[ -].*"), b"QUIT\r\n"),
    "imap": (re.compile(rb"\* (OK|PREAUTH)\b.*"), b"a LOGOUT\r\n"),
    "ftp": (re.compile(rb"220[ -].*"), b"QUIT\r\n"),
}


class Failed(Exception):
    """The server answered, but not as it should."""


class Target(NamedTuple):
    """Where to ask, and how; `session` is for HTTP."""

    address: str
    port: int
    health: Health
    session: Callable[[], ClientSession]


async def ask(target: Target) -> None:
    """Run the check; it may take for ever."""
    await CHECKS[target.health.type](target)


async def tcp(target: Target) -> None:
    """A connection, and what is sent and expected over it."""
    health = target.health
    async with _Stream(target) as (reader, writer):
        if health.send:
            writer.write(health.send.encode())
        if health.expect:
            await _read(reader, re.compile(health.expect.encode(), re.DOTALL))


async def greeting(target: Target) -> None:
    """The line that servers of mail and files begin with."""
    pattern, farewell = GREETINGS[target.health.type]
    async with _Stream(target) as (reader, writer):
        line = (await reader.readline()).strip()
        if not pattern.match(line):
            raise Failed(f"said {_short(line)}")
        writer.write(farewell)
        await writer.drain()
        await reader.read(READ_MAX)


async def http(target: Target) -> None:
    """The status of a page, and what its body must hold."""
    health = target.health
    url = f"{health.type}://{endpoint(target.address, target.port)}{health.path}"
    name = health.host or None
    headers = {"Host": name} if name else {}
    asked = target.session().get(url, headers=headers, allow_redirects=False, ssl=health.verify, server_hostname=name)
    async with asked as answer:
        if not health.accepts(answer.status):
            raise Failed(f"status {answer.status}")
        if health.expect:
            body = await answer.content.read(READ_MAX)
            if not re.search(health.expect.encode(), body, re.DOTALL):
                raise Failed("the body does not match")


async def udp(target: Target) -> None:
    """A datagram, and the answer; where none is expected, that nobody says the port is closed."""
    health = target.health
    answer = await _datagram(target, health.send.encode(), wait=bool(health.expect))
    if health.expect and not re.search(health.expect.encode(), answer, re.DOTALL):
        raise Failed(f"answered {_short(answer)}")


async def dns(target: Target) -> None:
    """A name that the server knows, or is asked to find."""
    import dns.exception
    import dns.message
    import dns.rcode

    query = dns.message.make_query(target.health.query or ".", "SOA" if not target.health.query else "A")
    try:
        answer = dns.message.from_wire(await _datagram(target, query.to_wire(), wait=True))
    except dns.exception.DNSException as error:
        raise Failed(f"answered no DNS: {error}") from None
    if not query.is_response(answer):
        raise Failed("answered another question")
    if answer.rcode() != dns.rcode.NOERROR:
        raise Failed(f"answered {dns.rcode.to_text(answer.rcode())}")


CHECKS: dict[str, Callable[[Target], Awaitable[None]]] = {
    "tcp": tcp,
    "http": http,
    "https": http,
    "udp": udp,
    "dns": dns,
    **dict.fromkeys(GREETINGS, greeting),
}


class _Stream:
    """A connection that is reset in the end."""

    def __init__(self, target: Target) -> None:
        self._target = target

    async def __aenter__(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, self._writer = await asyncio.open_connection(self._target.address, self._target.port)
        connection = self._writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        return reader, self._writer

    async def __aexit__(self, *_: object) -> None:
        self._writer.transport.abort()


async def _read(reader: asyncio.StreamReader, pattern: re.Pattern[bytes]) -> None:
    found = b""
    while len(found) < READ_MAX:
        more = await reader.read(READ_MAX)
        found += more
        if pattern.search(found):
            return
        if not more:
            break
    raise Failed(f"said {_short(found)}")


async def _datagram(target: Target, payload: bytes, *, wait: bool) -> bytes:
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if ":" in target.address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as connection:
        connection.connect((target.address, target.port))
        await loop.sock_sendall(connection, payload)
        if wait:
            return await loop.sock_recv(connection, READ_MAX)
        try:
            return await asyncio.wait_for(loop.sock_recv(connection, READ_MAX), REFUSAL_SECONDS)
        except TimeoutError:
            return b""


def _short(data: bytes) -> str:
    text = data.decode(errors="replace").strip()
    return repr(text if len(text) <= 40 else text[:37] + "...") if text else "nothing"
