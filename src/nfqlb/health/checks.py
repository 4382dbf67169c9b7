"""Ask a real server whether it serves: one coroutine for each type of check. They know no state and no schedule.

Strategy: a check returns when the server is well, with what it says beside that; it raises Failed with a short reason
when it is not; OSError and TimeoutError say the same. Unknown says that nobody can say. The caller sets the time,
except that of scripts: whoever runs them waits for their turn.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from nfqlb.errors import ConfigError
from nfqlb.health import advice
from nfqlb.health.advice import NOTHING, Advice
from nfqlb.health.dialogues import dialogue
from nfqlb.health.direct import Direct
from nfqlb.health.files import Files
from nfqlb.health.scripts import Scripts
from nfqlb.health.stream import READ_MAX, Failed, Stream, Unknown, compiled, context, opened, short
from nfqlb.health.web import http as ask_http
from nfqlb.kernel.announce import checksum
from nfqlb.model import DIALOGUES, Check, Key, command

REFUSAL_SECONDS = 0.2  # that an ICMP error has to come, where no answer is expected
ECHO = {socket.AF_INET: (socket.IPPROTO_ICMP, 8, 0), socket.AF_INET6: (socket.IPPROTO_ICMPV6, 128, 129)}
FILTER = {  # let echo replies through (linux/icmp.h, linux/icmpv6.h); raw sockets get everything else
    socket.AF_INET: (255, 1, struct.pack("=I", ~(1 << 0) & 0xFFFFFFFF)),
    socket.AF_INET6: (
        socket.IPPROTO_ICMPV6,
        1,
        b"".join(struct.pack("=I", 0xFFFFFFFF ^ (i == 4) << 1) for i in range(8)),
    ),
}


class Target(NamedTuple):
    """Where to ask, and how; `service` is whose real server it is, and `mode` how packets get there."""

    address: str
    port: int
    check: Check
    service: Key
    mode: str
    scripts: Scripts
    direct: Direct
    files: Files


def require(check: Check, scripts: Scripts) -> None:
    """Refuse a check that could not be made here: ConfigError names what it needs."""
    if check.type == "script":
        scripts.require("health script", check.script)
    if check.ca or check.cert:
        try:
            context(check)
        except Unknown as error:
            field = "ca" if check.ca and not check.cert else "cert"
            raise ConfigError(f"health {field}", getattr(check, field), str(error)) from None


async def ask(target: Target) -> Advice:
    """Run the check; it may take for ever."""
    return await CHECKS[target.check.type](target)


async def tcp(target: Target) -> Advice:
    """A connection, and what is sent and expected over it."""
    check = target.check
    if check.through == "vip":
        return await through(target, check.port or target.service.port)
    async with Stream(target.address, target.port, check) as stream:
        if question := check.question:
            await stream.send(question)
        if check.expect:
            await stream.expect(check.expect)
    return NOTHING


async def through(target: Target, port: int) -> Advice:
    """The VIP on this real server: that it grants a connection, or, with port 0, answers a ping."""
    check = target.check
    await target.direct.ask(
        target.address, target.mode, target.service.address, port, source=check.source, seconds=check.timeout
    )
    return NOTHING


async def greeting(target: Target) -> Advice:
    async with Stream(target.address, target.port, target.check) as stream:
        await dialogue(stream, target.check)
    return NOTHING


async def http(target: Target) -> Advice:
    async with Stream(target.address, target.port, target.check) as stream:
        if target.check.version == "2" and target.check.type == "https" and stream.protocol != "h2":
            raise Failed("speaks no HTTP/2")
        await ask_http(stream, target.check, target.address, target.port)
    return NOTHING


async def udp(target: Target) -> Advice:
    """A datagram, and the answer; where none is expected, that nobody says the port is closed."""
    check = target.check
    answer = await _datagram(target, check.question, wait=bool(check.expect))
    if check.expect and not compiled(check.expect).search(answer):
        raise Failed(f"answered {short(answer)}")
    return NOTHING


async def names(target: Target) -> Advice:
    """A name that the server knows, or is asked to find, and what it must say of it."""
    import dns.exception
    import dns.message
    import dns.rcode
    import dns.rdatatype

    check = target.check
    kind = check.record or ("A" if check.query else "SOA")
    try:
        query = dns.message.make_query(check.query or ".", kind)
        answer = dns.message.from_wire(await _datagram(target, query.to_wire(), wait=True))
    except (dns.exception.DNSException, ValueError) as error:
        raise Failed(f"answered no DNS: {error}") from None
    if not query.is_response(answer):
        raise Failed("answered another question")
    if answer.rcode() != dns.rcode.NOERROR:
        raise Failed(f"answered {dns.rcode.to_text(answer.rcode())}")
    if check.expect:
        records = [record.to_text() for found in answer.answer for record in found]
        if not any(compiled(check.expect).search(record.encode()) for record in records):
            raise Failed(f"answered {short(', '.join(sorted(records)).encode())}")
    return NOTHING


async def ping(target: Target) -> Advice:
    """An ICMP echo; by a raw socket, or one that is for pings alone where that is all one may have."""
    if target.check.through == "vip":
        return await through(target, 0)
    family = socket.AF_INET6 if ":" in target.address else socket.AF_INET
    protocol, request, reply = ECHO[family]
    token = os.urandom(16)
    header = struct.pack("!BBHHH", request, 0, 0, os.getpid() & 0xFFFF, 1)
    loop = asyncio.get_running_loop()
    try:
        connection = opened(target.address, socket.SOCK_RAW, target.check.source, protocol)
        connection.setsockopt(*FILTER[family])
    except PermissionError:
        connection = opened(target.address, socket.SOCK_DGRAM, target.check.source, protocol)
    with connection:
        connection.connect((target.address, 0))
        await loop.sock_sendall(connection, _summed(header + token) if family == socket.AF_INET else header + token)
        while not (found := await loop.sock_recv(connection, 256)).endswith(token) or found[-24] != reply:
            pass
    return NOTHING


async def script(target: Target) -> Advice:
    """A command, and what its exit code means."""
    check, service = target.check, target.service
    words = {"address": target.address, "port": target.port, "vip": service.address, "vip_port": service.port}
    filled = [PLACE.sub(lambda found: str(words[found[1]]), word) for word in command("health script", check.script)]
    environ = {f"NFQLB_{name.upper()}": str(value) for name, value in words.items()}
    outcome = await target.scripts.run(filled, check.timeout, {**environ, "NFQLB_SERVICE": str(service)})
    if outcome.code is None:
        raise (Unknown if outcome.lost else Failed)(outcome.problem)
    found, why = advice.exited(check.exit, outcome.code, outcome.line)
    if why:
        raise Failed(why)
    return found


async def file(target: Target) -> Advice:
    """A number in a file; one that is not there is 0."""
    path = target.check.file
    try:
        text = await target.files.read(path)
    except FileNotFoundError:
        text = ""
    except OSError as error:
        raise Unknown(f"{path}: {error.strerror}") from None
    found, why = advice.file_says(text, target.check.factor)
    if why:
        raise Failed(why)
    return found


async def agent(target: Target) -> Advice:
    """What the server's agent says; one that says nothing is no reason for anything."""
    try:
        async with Stream(target.address, target.port, target.check) as stream:
            if question := target.check.question:
                await stream.send(question)
            text = (await stream.line()).decode(errors="replace")
    except (OSError, Failed) as error:
        raise Unknown(f"no word of the agent: {getattr(error, 'strerror', None) or error}") from None
    found, down = advice.agent(text)
    if down:
        raise Failed(down, found)
    if down is None:
        raise Unknown("", found)
    return found


CHECKS: dict[str, Callable[[Target], Awaitable[Advice]]] = {
    "tcp": tcp,
    "http": http,
    "https": http,
    "udp": udp,
    "dns": names,
    "ping": ping,
    "script": script,
    "file": file,
    "agent": agent,
    **dict.fromkeys(DIALOGUES, greeting),
}
PLACE = re.compile(r"\{(address|port|vip|vip_port)\}")


async def _datagram(target: Target, payload: bytes, *, wait: bool) -> bytes:
    loop = asyncio.get_running_loop()
    with opened(target.address, socket.SOCK_DGRAM, target.check.source) as connection:
        connection.connect((target.address, target.port))
        await loop.sock_sendall(connection, payload)
        if wait:
            return await loop.sock_recv(connection, READ_MAX)
        try:
            async with asyncio.timeout(REFUSAL_SECONDS):
                return await loop.sock_recv(connection, READ_MAX)
        except TimeoutError:
            return b""


def _summed(message: bytes) -> bytes:
    """An ICMP message with its checksum."""
    return message[:2] + struct.pack("!H", checksum(message)) + message[4:]
