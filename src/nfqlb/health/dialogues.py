"""Servers of mail and files, which speak first: SMTP (RFC 5321), IMAP (RFC 9051) and FTP (RFC 959).

Strategy: the greeting, what makes the server say what it can, TLS where that is wanted (RFC 3207, RFC 9051 6.2.1,
RFC 4217), and goodbye. Every step must be answered as by a server that is ready.
"""

from __future__ import annotations

import re
import socket

from nfqlb.health.stream import Failed, Stream, compiled, short
from nfqlb.model import Check

REPLY = re.compile(rb"(\d{3})([ -])")


async def dialogue(stream: Stream, check: Check) -> None:
    """Ask the server of the check's type; Failed with what it said."""
    greeting = await SPEAK[check.type](stream, check)
    if check.expect and not compiled(check.expect).search(greeting):
        raise Failed(f"said {short(greeting)}")


async def smtp(stream: Stream, check: Check) -> bytes:
    hello = f"EHLO {check.host or socket.gethostname()}\r\n".encode()
    greeting = await _reply(stream, b"220")
    await _say(stream, hello, b"250")
    if check.tls == "start":
        await _say(stream, b"STARTTLS\r\n", b"220")
        await stream.secure()
        await _say(stream, hello, b"250")
    await _say(stream, b"QUIT\r\n", b"221")
    return greeting


async def ftp(stream: Stream, check: Check) -> bytes:
    greeting = await _reply(stream, b"220")
    if check.tls == "start":
        await _say(stream, b"AUTH TLS\r\n", b"234")
        await stream.secure()
    await _say(stream, b"QUIT\r\n", b"221")
    return greeting


async def imap(stream: Stream, check: Check) -> bytes:
    greeting = await stream.line()
    if not re.match(rb"\* (OK|PREAUTH)\b", greeting):
        raise Failed(f"said {short(greeting)}")
    if check.tls == "start":
        await _command(stream, b"a", b"STARTTLS")
        await stream.secure()
    await _command(stream, b"b", b"CAPABILITY")
    await _command(stream, b"c", b"LOGOUT")
    return greeting


async def _say(stream: Stream, line: bytes, code: bytes) -> bytes:
    await stream.send(line)
    return await _reply(stream, code)


async def _reply(stream: Stream, code: bytes) -> bytes:
    """A reply of SMTP or FTP, to its last line; Failed where its code is another one."""
    said = b""
    while True:
        line = await stream.line()
        said += line + b"\n"
        found = REPLY.match(line + b" ")
        if found and found[1] != code:
            raise Failed(f"said {short(line)}")
        if found and found[2] == b" ":
            return said
        if not said.startswith(code + b"-"):
            raise Failed(f"said {short(line)}")


async def _command(stream: Stream, tag: bytes, command: bytes) -> None:
    await stream.send(tag + b" " + command + b"\r\n")
    while not (line := await stream.line()).startswith(tag + b" "):
        pass
    if not line.startswith(tag + b" OK"):
        raise Failed(f"said {short(line)}")


SPEAK = {"smtp": smtp, "imap": imap, "ftp": ftp}
