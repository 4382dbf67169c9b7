"""HTTP checks: one GET, and what its answer must be. Versions 1.0 and 1.1 read by httptools, 2 by h2.

Strategy: as little as will do. The status decides as soon as it is there, unless the body has to match: then that is
read, as far as READ_MAX, to its end where a digest is wanted.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any, Protocol

from nfqlb.health.stream import READ_MAX, Failed, Stream, compiled, short
from nfqlb.model import Check, endpoint

BODY_MAX = 16 * 2**20  # bytes that a digest may be of


class Answer(Protocol):
    """What was read so far; `body` is kept if somebody wants it."""

    status: int
    body: bytearray
    done: bool

    def feed(self, data: bytes) -> None: ...
    def end(self) -> None: ...


async def http(stream: Stream, check: Check, address: str, port: int) -> None:
    """Ask for the page; Failed with what is wrong about it."""
    answer: Answer
    if check.version == "2":
        answer = Second(check, _authority(check, address, port))
        await stream.send(answer.begin())
    else:
        answer = First()
        await stream.send(_request(check, address, port))
    wants_body = bool(check.expect or check.digest)
    limit = BODY_MAX if check.digest else READ_MAX
    while not answer.done and not (answer.status and not wants_body) and len(answer.body) < limit:
        data = await stream.receive()
        if not data:
            answer.end()
            break
        answer.feed(data)
        if isinstance(answer, Second) and (reply := answer.reply()):
            await stream.send(reply)
    _judge(check, answer)


def _judge(check: Check, answer: Answer) -> None:
    if not answer.status:
        raise Failed("closed the connection before it answered")
    if not check.accepts(answer.status):
        raise Failed(f"status {answer.status}")
    if check.expect and not compiled(check.expect).search(answer.body[:READ_MAX]):
        raise Failed("the body does not match")
    if check.digest:
        kind = "md5" if len(check.digest) == 32 else "sha256"
        found = hashlib.new(kind, answer.body, usedforsecurity=False).hexdigest()
        if not answer.done or found != check.digest:
            raise Failed(f"the body has the digest {found}")


def _authority(check: Check, address: str, port: int) -> str:
    return check.host or endpoint(address, port)


@lru_cache(65536)
def _request(check: Check, address: str, port: int) -> bytes:
    """What is sent; headers that are given take the place of ours."""
    headers = {"Host": _authority(check, address, port), "User-Agent": "nfqlb", "Accept": "*/*", "Connection": "close"}
    own = {header.partition(":")[0].lower() for header in check.headers}
    lines = [f"{name}: {value}" for name, value in headers.items() if name.lower() not in own]
    return "\r\n".join([f"GET {check.path} HTTP/{check.version}", *lines, *check.headers, "", ""]).encode()


class First:
    """HTTP/1: the methods on_ are httptools' callbacks."""

    def __init__(self) -> None:
        from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

        self.status, self.body, self.done = 0, bytearray(), False
        self._parser, self._error, self._upgrade = HttpResponseParser(self), HttpParserError, HttpParserUpgrade

    def feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except self._upgrade:
            raise Failed("status 101") from None
        except self._error as error:
            raise Failed(f"answered no HTTP: {error}") from None

    def end(self) -> None:
        self.done = self.done or self._until_end

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        self.status = 0 if 100 <= status < 200 else status

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.done = bool(self.status)

    @property
    def _until_end(self) -> bool:
        """Whether the body is what comes until the connection ends."""
        return bool(self.status) and not self._has_length

    _has_length = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._has_length = True


class Second:
    """HTTP/2 (RFC 9113): one stream of one connection."""

    def __init__(self, check: Check, authority: str) -> None:
        from h2.config import H2Configuration
        from h2.connection import H2Connection

        self.status, self.body, self.done = 0, bytearray(), False
        self._connection = H2Connection(H2Configuration(client_side=True, header_encoding=None))
        scheme = "https" if check.type == "https" else "http"
        given = {name.lower(): value.strip() for name, _, value in (one.partition(":") for one in check.headers)}
        fixed = {":method": "GET", ":scheme": scheme, ":authority": given.pop("host", authority), ":path": check.path}
        self._headers = [*{**fixed, "user-agent": "nfqlb", "accept": "*/*", **given}.items()]

    def begin(self) -> bytes:
        self._connection.initiate_connection()
        self._connection.send_headers(1, self._headers, end_stream=True)
        return self.reply()

    def reply(self) -> bytes:
        """What has to be sent now."""
        return bytes(self._connection.data_to_send())

    def feed(self, data: bytes) -> None:
        from h2.exceptions import ProtocolError

        try:
            events = self._connection.receive_data(data)
        except ProtocolError as error:
            raise Failed(f"answered no HTTP/2: {str(error) or type(error).__name__}") from None
        for event in events:
            self._note(event)

    def end(self) -> None:
        """The connection ended; what is not complete stays so."""

    def _note(self, event: Any) -> None:
        kind = type(event).__name__
        if kind == "ResponseReceived":
            status = dict(event.headers)[b":status"]  # the library sees that it is there, not what it is
            if not status.isdigit():
                raise Failed(f"answered no HTTP/2: status {short(status)}")
            self.status = int(status)
        elif kind == "DataReceived":
            self.body += event.data
            self._connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif kind == "StreamEnded":
            self.done = True
        elif kind in ("StreamReset", "ConnectionTerminated") and not self.status:
            raise Failed(f"reset the stream: error {event.error_code}")
