"""Health: the machine in every state, each check against servers well and ill, and the runner that keeps asking."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from hashlib import md5, sha256
from pathlib import Path
from typing import Any

import dns.message
import dns.rcode
import dns.rrset
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from nfqlb import spawner
from nfqlb.errors import ConfigError
from nfqlb.health.advice import Advice
from nfqlb.health.checks import CHECKS
from nfqlb.health.files import Files
from nfqlb.health.machine import SERVING, TABLE, Condition, Result, Status, diagram, step, together
from nfqlb.health.runner import End, Runner, following
from nfqlb.health.scripts import Scripts
from nfqlb.model import Check, Health, Intent, Key, Real, Service

DOCS = Path(__file__).parents[2] / "docs" / "health.md"
FAST = {"interval": 0.05, "timeout": 0.3, "rise": 2, "fall": 2}


# --- the machine


def test_the_table_knows_every_result_in_every_condition() -> None:
    assert set(TABLE) == set(itertools.product(Condition, Result))


def test_the_diagram_in_the_docs_is_that_of_the_table() -> None:
    drawn = re.search(r"```mermaid\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert drawn
    assert drawn[1].splitlines() == list(diagram())


@given(st.lists(st.sampled_from(Result), max_size=60), st.integers(1, 5), st.integers(1, 5))
def test_it_turns_after_so_many_results_in_a_row_and_not_before(results: list[Result], rise: int, fall: int) -> None:
    status, serves, row, last = Status(), True, 0, Result.UNKNOWN
    for result in results:
        before, status = status, step(status, result, rise=rise, fall=fall)
        if result is Result.UNKNOWN:
            assert status is before
            continue
        row, last = row + 1 if result is last else 1, result
        if serves and result is Result.FAIL and row >= fall:
            serves = False
        elif not serves and result is Result.PASS and row >= rise:
            serves = True
        assert (status.serves, status.condition in SERVING, status.row) == (serves, serves, row)


def test_why_is_kept_until_there_is_another_reason() -> None:
    status = step(Status(), Result.FAIL, rise=1, fall=1, why="refused")
    assert step(status, Result.PASS, rise=2, fall=1).why == "refused"


@pytest.mark.parametrize(
    ("status", "accepted"),
    [("200", {200}), ("200-204,301", {200, 204, 301}), ("404", {404})],
)
def test_a_list_of_statuses(status: str, accepted: set[int]) -> None:
    health = Health("http", status=status)
    assert {code for code in (199, 200, 204, 205, 301, 404) if health.accepts(code)} == accepted


def test_a_service_of_every_port_needs_one_to_ask() -> None:
    with pytest.raises(
        ConfigError, match="health port '0': is that of every packet; give the port that is to be asked"
    ):
        Service("203.0.113.10", 0, reals=(Real("10.0.1.11", 0),), health=Health())
    Service("203.0.113.10", 0, reals=(Real("10.0.1.11", 0),), health=Health(port=80))


# --- checks, against servers of this process

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def stream(answer: Answer) -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def says(text: bytes) -> Answer:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(text)
        await reader.read(100)

    return answer


def speaks(hello: bytes, *answers: bytes, tls: ssl.SSLContext | None = None) -> Answer:
    """One answer to each line; with `tls` the first one is followed by its handshake."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(hello)
        for at, line in enumerate(answers):
            await reader.readline()
            writer.write(line)
            if tls and at == STARTTLS_AT[hello[:1]]:
                await writer.drain()
                await writer.start_tls(tls)
        await reader.read(100)

    return answer


STARTTLS_AT = {b"2": 1, b"*": 0}  # by how the server begins: SMTP greets first, IMAP does not
MAIL = b"220-mail\r\n220 ESMTP\r\n", b"250-mail\r\n250 STARTTLS\r\n"
BYE = b"221 bye\r\n"


async def echoes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(await reader.read(100))


async def hangs(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(5)


@asynccontextmanager
async def datagrams(answer: Callable[[bytes], bytes | None]) -> AsyncIterator[int]:
    class Server(asyncio.DatagramProtocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, addr: Any) -> None:
            if (reply := answer(data)) is not None:
                self.transport.sendto(reply, addr)

    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Server, ("127.0.0.1", 0))
    try:
        yield transport.get_extra_info("sockname")[1]
    finally:
        transport.close()


@asynccontextmanager
async def pages() -> AsyncIterator[int]:
    async def page(request: web.Request) -> web.Response:
        if request.path == "/slow":
            await asyncio.sleep(5)
        text = f"page of {request.host}, {request.headers.get('X-A', '-')}"
        return web.Response(status=int(request.query.get("status", "200")), text=text)

    app = web.Application()
    app.router.add_get("/{name:.*}", page)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@asynccontextmanager
async def nobody(kind: int = socket.SOCK_STREAM) -> AsyncIterator[int]:
    with socket.socket(type=kind) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    yield port


def resolver(rcode: int) -> Callable[[bytes], bytes]:
    def answer(data: bytes) -> bytes:
        reply = dns.message.make_response(dns.message.from_wire(data))
        reply.set_rcode(rcode)
        return reply.to_wire()

    return answer


def says_txt(data: bytes) -> bytes:
    query = dns.message.from_wire(data)
    reply = dns.message.make_response(query)
    reply.answer.append(dns.rrset.from_text(query.question[0].name, 0, "IN", "TXT", '"x y"'))
    return reply.to_wire()


async def tells_peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    writer.write(writer.get_extra_info("peername")[0].encode())


CHUNKED = says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")
HINTS = says(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n")


async def until_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readline()
    writer.write(b"HTTP/1.0 200 OK\r\n\r\nx")


async def cut_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readline()
    writer.write(b"HTTP/1.0 200 OK\r\nContent-Length: 9\r\n\r\nx")


def answers_in_frames(*headers: tuple[bytes, bytes]) -> Answer:
    """HTTP/2 that answers with these, whatever they are: literals without indexing (RFC 7541, 6.2.2)."""
    block = b"".join(b"\0%c%b%c%b" % (len(name), name, len(value), value) for name, value in headers)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"\0\0\0\4\0\0\0\0\0")  # SETTINGS
        writer.write(len(block).to_bytes(3, "big") + b"\1\5\0\0\0\1" + block)  # HEADERS, the last of stream 1
        await reader.read(100)

    return answer


LATIN = answers_in_frames((b":status", b"200"), (b"x-a", b"caf\xe9"))
NO_STATUS = answers_in_frames((b":status", b"abc"))
UPGRADE = says(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n")
UDP = socket.SOCK_DGRAM
CASES: list[tuple[str, Any, Health, str]] = [
    ("tcp, up", lambda: stream(hangs), Health(), ""),
    ("tcp, refused", nobody, Health(), "Connection refused"),
    ("tcp, right answer", lambda: stream(echoes), Health(send="ping", expect="^ping$"), ""),
    ("tcp, wrong answer", lambda: stream(echoes), Health(send="ping", expect="pong"), "said 'ping'"),
    ("tcp, no answer", lambda: stream(hangs), Health(send="ping", expect="ping"), "no answer within 0.3 s"),
    ("http, up", pages, Health("http", host="web.example", expect="of web.example"), ""),
    ("http, wrong status", pages, Health("http", path="/?status=503"), "status 503"),
    ("http, wanted status", pages, Health("http", path="/?status=503", status="503"), ""),
    ("http, wrong body", pages, Health("http", expect="welcome"), "the body does not match"),
    ("http, slow", pages, Health("http", path="/slow"), "no answer within 0.3 s"),
    ("http, refused", nobody, Health("http"), "Connection refused"),
    ("http, half open", lambda: stream(hangs), Health("http"), "no answer within 0.3 s"),
    ("http, no http", lambda: stream(says(b"220 mail\r\n")), Health("http"), "."),
    ("https, no tls", pages, Health("https"), "."),
    ("smtp, up", lambda: stream(speaks(*MAIL, BYE)), Health("smtp"), ""),
    ("smtp, as expected", lambda: stream(speaks(*MAIL, BYE)), Health("smtp", expect="ESMTP"), ""),
    ("smtp, another", lambda: stream(speaks(*MAIL, BYE)), Health("smtp", expect="Exim"), "said '220-mail"),
    ("smtp, refuses", lambda: stream(speaks(b"220 mail\r\n", b"550 no\r\n")), Health("smtp"), "said '550 no'"),
    ("smtp, no smtp", lambda: stream(says(b"220\r\nSSH\r\n")), Health("smtp"), "said 'SSH'"),
    ("smtp, busy", lambda: stream(says(b"421 too busy\r\n")), Health("smtp"), "said '421 too busy'"),
    ("imap, up", lambda: stream(speaks(b"* OK\r\n", b"* CAPABILITY\r\nb OK\r\n", b"c OK\r\n")), Health("imap"), ""),
    ("imap, refuses", lambda: stream(speaks(b"* OK\r\n", b"b BAD no\r\n")), Health("imap"), "said 'b BAD no'"),
    ("imap, bye", lambda: stream(says(b"* BYE\r\n")), Health("imap"), r"said '\* BYE'"),
    ("ftp, up", lambda: stream(speaks(b"220 (vsFTPd)\r\n", BYE)), Health("ftp"), ""),
    ("ftp, closed", lambda: stream(says(b"")), Health("ftp"), "no answer|said nothing"),
    ("udp, up", lambda: datagrams(lambda data: None), Health("udp", send="x"), ""),
    ("udp, refused", lambda: nobody(UDP), Health("udp", send="x"), "Connection refused"),
    ("udp, right answer", lambda: datagrams(lambda data: data), Health("udp", send="x", expect="x"), ""),
    ("udp, wrong answer", lambda: datagrams(lambda data: b"y"), Health("udp", send="x", expect="x"), "answered 'y'"),
    ("udp, no answer", lambda: datagrams(lambda data: None), Health("udp", send="x", expect="x"), "no answer within"),
    ("dns, up", lambda: datagrams(resolver(dns.rcode.NOERROR)), Health("dns", query="a.example"), ""),
    ("dns, refuses", lambda: datagrams(resolver(dns.rcode.REFUSED)), Health("dns"), "answered REFUSED"),
    ("dns, right answer", lambda: datagrams(says_txt), Health("dns", query="a.example", record="TXT", expect="x"), ""),
    (
        "dns, wrong",
        lambda: datagrams(says_txt),
        Health("dns", query="a.example", record="TXT", expect="z"),
        'answered .*"x',
    ),
    ("dns, nothing", lambda: datagrams(resolver(0)), Health("dns", query="a.example", expect="."), "answered nothing"),
    ("udp, bytes", lambda: datagrams(lambda data: data), Health("udp", payload="00ff", expect=r"^\x00\xff$"), ""),
    ("tcp, bytes", lambda: stream(echoes), Health(payload="00ff", expect=r"^\x00\xff$"), ""),
    ("http, headers", pages, Health("http", headers=("Host: other", "X-A: 1"), expect="of other, 1"), ""),
    ("http, version 1.0", pages, Health("http", version="1.0", expect="page of"), ""),
    ("http, digest", pages, Health("http", host="a", digest=md5(b"page of a, -").hexdigest()), ""),
    ("http, SHA", pages, Health("http", host="a", digest=sha256(b"page of a, -").hexdigest()), ""),
    ("http, wrong digest", pages, Health("http", digest=32 * "0"), "the body has the digest"),
    ("http, in pieces", lambda: stream(CHUNKED), Health("http", expect="^onetwo$"), ""),
    ("http, to the end", lambda: stream(until_end), Health("http", digest=md5(b"x").hexdigest()), ""),
    ("http, cut off", lambda: stream(cut_off), Health("http", digest=md5(b"x").hexdigest()), "the body has the digest"),
    ("http, 103 first", lambda: stream(HINTS), Health("http", status="204"), ""),
    ("http, silent end", lambda: stream(says(b"")), Health("http"), "no answer|closed the connection"),
    ("http, no http/2", pages, Health("http", version="2"), "answered no HTTP/2|no answer|reset|closed"),
    ("http/2, latin-1", lambda: stream(LATIN), Health("http", version="2"), ""),
    ("http/2, no status", lambda: stream(NO_STATUS), Health("http", version="2"), "answered no HTTP/2: status 'abc'"),
    ("http, upgrade", lambda: stream(UPGRADE), Health("http"), "status 101"),
    ("ping, up", lambda: nobody(), Health("ping"), ""),
    ("source", lambda: stream(tells_peer), Health(send="x", expect="127.0.0.7", source="127.0.0.7"), ""),
    ("dns, nonsense", lambda: datagrams(lambda data: b"x"), Health("dns"), "answered no DNS"),
]


@pytest.mark.parametrize(("serving", "health", "why"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_check_finds_what_there_is(serving: Any, health: Health, why: str) -> None:
    """The second time as the first, and the reason says what was wrong."""

    async def look() -> list[str]:
        found: list[str] = []
        async with serving() as port:
            runner = Runner(lambda end, status: None)
            service = Service("203.0.113.10", 80, reals=(Real("127.0.0.1", port),), health=replace(health, **FAST))
            runner.adopt(Intent((service,)))
            end = (service.key, "127.0.0.1", port)
            while len(found) < 2:
                await asyncio.sleep(0.01)
                status = runner.seen[end].status
                if status.row > len(found):
                    found.append(status.why if status.last is Result.FAIL else "")
            await runner.close()
        return found

    for found in asyncio.run(asyncio.wait_for(look(), 20)):
        assert bool(found) == bool(why), found
        assert re.search(why, found), found


# --- the runner


def web_of(port: int, **health: Any) -> tuple[Intent, End]:
    service = Service("203.0.113.10", 80, reals=(Real("127.0.0.1", port),), health=Health(**{**FAST, **health}))
    return Intent((service,)), (service.key, "127.0.0.1", port)


async def until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.01)


def test_each_turn_is_told_once() -> None:
    turns: list[tuple[End, str]] = []

    async def live() -> End:
        async with nobody() as port:
            intent, end = web_of(port)
            runner = Runner(lambda end, status: turns.append((end, status.condition)))
            runner.adopt(intent)
            await until(lambda: runner.down == {end})
            server = await asyncio.start_server(hangs, "127.0.0.1", port)
            await until(lambda: not runner.down)
            await asyncio.sleep(0.2)
            server.close()
            await runner.close()
            return end

    end = asyncio.run(asyncio.wait_for(live(), 20))
    assert turns[:2] == [(end, "down"), (end, "up")]


def test_a_change_keeps_what_is_known_and_forgets_who_left() -> None:
    async def live() -> None:
        async with nobody() as port:
            intent, end = web_of(port)
            runner = Runner(lambda end, status: None)
            runner.adopt(intent)
            await until(lambda: runner.down == {end})
            service = replace(intent.services[0], scheduler="rr", health=Health(**{**FAST, "interval": 60.0}))
            runner.adopt(Intent((service,)))
            assert runner.down == {end}
            runner.adopt(Intent((replace(service, health=None),)))
            assert (runner.down, runner.seen) == (frozenset(), {})
            await runner.close()

    asyncio.run(asyncio.wait_for(live(), 20))


def test_who_was_down_before_a_restart_is_down_until_checks_pass() -> None:
    async def live() -> None:
        async with stream(hangs) as port:
            intent, end = web_of(port)
            runner = Runner(lambda end, status: None, [end, (Key("tcp", "203.0.113.99", 80), "10.0.0.1", 80)])
            runner.adopt(intent)
            assert runner.down == {end}
            await until(lambda: not runner.down)
            await runner.close()

    asyncio.run(asyncio.wait_for(live(), 20))


def runner_of(health: Health, *ports: int, **more: Any) -> tuple[Runner, list[End], list[tuple[str, str]]]:
    """A runner with that many servers of 127.0.0.1, their ends, and what it tells."""
    told: list[tuple[str, str]] = []
    runner = Runner(lambda end, status: told.append((status.condition, status.why)), **more)
    service = Service("203.0.113.10", 80, reals=tuple(Real("127.0.0.1", port) for port in ports), health=health)
    runner.adopt(Intent((service,)))
    return runner, [(service.key, "127.0.0.1", port) for port in ports], told


def live(task: Awaitable[None]) -> None:
    asyncio.run(asyncio.wait_for(task, 20))


# --- several checks


WELL, SLIPPING = Status(), Status(Condition.FAILING, 1, Result.FAIL, "slow")
ILL, BETTER = Status(Condition.DOWN, 3, Result.FAIL, "refused"), Status(Condition.RISING, 1, Result.PASS)


@pytest.mark.parametrize(
    ("statuses", "everybody", "anybody"),
    [
        ([], WELL, WELL),
        ([WELL, WELL], WELL, WELL),
        ([WELL, SLIPPING], SLIPPING, WELL),
        ([SLIPPING, ILL], ILL, SLIPPING),
        ([BETTER, WELL], BETTER, WELL),
        ([BETTER, ILL], ILL, BETTER),
    ],
)
def test_several_checks_together(statuses: list[Status], everybody: Status, anybody: Status) -> None:
    assert together(statuses, "all") == everybody
    assert together(statuses, "any") == anybody


@given(st.lists(st.sampled_from(Condition), min_size=1).map(lambda found: [Status(one) for one in found]))
def test_it_serves_where_all_serve_or_any_does(statuses: list[Status]) -> None:
    assert together(statuses, "all").serves == all(status.serves for status in statuses)
    assert together(statuses, "any").serves == any(status.serves for status in statuses)


@pytest.mark.parametrize("require", ["all", "any"])
def test_one_of_two_checks_fails(require: str) -> None:
    async def look() -> None:
        async with stream(hangs) as port, nobody() as closed:
            checks = Check(**FAST), Check(port=closed, **FAST)
            runner, [end], told = runner_of(Health(checks=checks, require=require), port)
            await until(lambda: runner.seen[end].checks[1].status.row > 3)
            assert [one.status.condition for one in runner.seen[end].checks] == ["up", "down"]
            assert told == ([("down", "tcp: Connection refused")] if require == "all" else [])
            service = Service("203.0.113.10", 80, reals=(Real("127.0.0.1", port),), health=Health(checks=checks))
            runner.adopt(Intent((service,)))  # as it is, but now all must be well
            assert runner.down == {end}
            await runner.close()

    live(look())


def test_the_next_check_comes_sooner_while_the_last_ones_do_not_suffice() -> None:
    async def look() -> float:
        async with nobody() as closed:
            health = Health(interval=5.0, timeout=0.5, retry_delay=0.02, warmup=0.01, fall=4)
            began = asyncio.get_running_loop().time()
            runner, [end], told = runner_of(health, closed)
            await until(lambda: bool(told))
            took = asyncio.get_running_loop().time() - began
            row = runner.seen[end].status.row
            await asyncio.sleep(0.1)
            assert runner.seen[end].status.row == row  # down: at its interval again
            await runner.close()
            return took

    assert asyncio.run(asyncio.wait_for(look(), 20)) < 4


def test_a_fault_of_ours_changes_nothing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    async def look() -> None:
        async with stream(hangs) as port:
            monkeypatch.setattr(socket, "socket", refuse)
            runner, [end], told = runner_of(Health(**FAST), port)
            await until(lambda: runner.seen[end].checks[0].trouble == "Too many open files")
            await asyncio.sleep(0.3)
            assert (runner.seen[end].status, told) == (Status(), [])
            monkeypatch.undo()
            await until(lambda: runner.seen[end].checks[0].trouble == "")
            await runner.close()

    live(look())
    assert len([message for message in caplog.messages if "says nothing" in message]) == 1


def test_an_error_in_a_check_is_said_once_and_the_asking_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[object] = []

    async def broken(target: object) -> Advice:
        asked.append(target)
        raise ZeroDivisionError

    monkeypatch.setitem(CHECKS, "tcp", broken)

    async def look() -> None:
        runner, [end], told = runner_of(Health(**FAST), 80)
        await until(lambda: len(asked) > 2)
        assert runner.seen[end].checks[0].trouble == "an error in nfqlb: ZeroDivisionError"
        assert (runner.seen[end].status, told) == (Status(), [])
        await runner.close()

    live(look())
    assert caplog.text.count("Traceback") == 1


# --- scripts, files and agents


def scripted(check: Callable[[Scripts], Awaitable[None]]) -> None:
    async def look() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            serving, scripts = asyncio.create_task(spawner.serve(theirs)), Scripts(ours)
            await check(scripts)
            await scripts.close()
            ours.close()
            await serving

    live(look())


def test_a_script_says_how_each_server_is_and_what_it_weighs(tmp_path: Path) -> None:
    says = tmp_path / "says"
    says.write_text("12")
    inside = f'test "$NFQLB_VIP $2" = "203.0.113.10 80" || exit 1; read code < {says}; echo $1; exit $code'
    script = f"/bin/sh -c '{inside}' x {{port}} {{vip_port}}"

    async def look(scripts: Scripts) -> None:
        advised: list[End] = []
        health = Health("script", script=script, exit="weight", **{**FAST, "timeout": 5})
        runner, [end, _], told = runner_of(health, 8081, 8082, advised=advised.append, scripts=scripts)
        await until(lambda: len(advised) == 2)
        assert [runner.seen[end].advice for end in advised] == [[Advice(weight=10)]] * 2
        reals = tuple(Real("127.0.0.1", port, 3) for port in (8081, 8082, 8083))
        service, other = Service("203.0.113.10", 80, reals=reals), Service("203.0.113.11", 80)
        weighted = runner.weighted(Intent((service, other))).services
        assert [real.weight for real in weighted[0].reals] == [10, 10, 3]
        assert weighted[1] is other
        says.write_text("1")
        await until(lambda: len(told) == 2)
        assert sorted(told) == [("down", "exit code 1: 8081"), ("down", "exit code 1: 8082")]
        assert runner.seen[end].advice == []
        await runner.close()

    scripted(look)


def test_a_script_that_takes_too_long_and_one_that_may_not_run() -> None:
    async def look(scripts: Scripts) -> None:
        runner, _, told = runner_of(Health("script", script="/bin/sleep 60", **FAST), 80, scripts=scripts)
        await until(lambda: bool(told))
        assert told == [("down", "ran longer than 0.3 s")]
        await runner.close()
        runner, [end], told = runner_of(Health("script", script="/nowhere/x", **FAST), 80, scripts=scripts)
        await until(lambda: bool(runner.seen[end].checks[0].trouble))
        assert (runner.seen[end].status, told) == (Status(), [])
        await runner.close()

    scripted(look)


def test_a_number_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "weight"

    async def look() -> None:
        checks = Check("file", file=str(file), **FAST), Check("file", file=str(file), factor=2, **FAST)
        runner, [end], told = runner_of(Health(checks=checks), 80)
        await until(lambda: all(one.status.row > 1 for one in runner.seen[end].checks))
        file.write_text("3\n")
        await until(lambda: runner.seen[end].advice == [Advice(added=6)] and bool(told))
        assert told == [("down", "file: the file says 3")]
        file.write_text("0\n")
        await until(lambda: not runner.down)
        await runner.close()

    live(look())


def test_a_file_that_hangs_holds_up_nobody(tmp_path: Path) -> None:
    fifo, file = tmp_path / "fifo", tmp_path / "file"
    os.mkfifo(fifo)
    file.write_text("3\n")

    async def look() -> None:
        checks = Check("file", file=str(fifo), **FAST), Check("file", file=str(file), factor=1, **FAST)
        runner, [end], told = runner_of(Health(checks=checks), 80)
        await until(lambda: runner.seen[end].advice == [Advice(added=3)] and bool(runner.seen[end].checks[0].trouble))
        assert runner.seen[end].checks[0].trouble == f"{fifo}: is not a regular file"
        assert told == []
        await runner.close()

    live(look())
    with pytest.raises(ConfigError, match=r"health ca .*: gives no certificate: is not a regular file"):
        Runner(lambda end, status: None).require(
            Intent((Service("203.0.113.10", 80, health=Health("https", verify=True, host="a", ca=str(fifo))),))
        )


def test_a_file_is_read_once_at_a_time_and_who_asks_meanwhile_gets_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def look() -> None:
        hung: list[Future[str]] = []  # by a mount
        monkeypatch.setattr("nfqlb.health.files._read", lambda path, found: hung.append(found))
        files, path = Files(), tmp_path / "weight"
        path.write_text("1" * 300)
        first, second = asyncio.create_task(files.read(str(path))), asyncio.create_task(files.read(str(path)))
        await until(lambda: bool(hung))
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert len(hung) == 1
        hung[0].set_result("7")
        assert await second == "7"
        monkeypatch.undo()
        assert await files.read(str(path)) == "1" * 256
        assert not files._reading

    live(look())


def test_an_agent_is_believed_at_once_and_its_silence_means_nothing() -> None:
    words = [b"up 40%\n"]

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readline() == b"web1\n"
        writer.write(words[0])

    async def look() -> None:
        async with stream(hangs) as port, stream(speak) as agent_port:
            advised: list[End] = []
            patient = {**FAST, "timeout": 1.0}
            agent = Check("agent", port=1, send="web1\n", **{**patient, "fall": 1000})
            checks = agent, Check(**patient), Check("udp", port=1, **patient)
            health = Health(checks=checks, require="any")
            runner, [end], told = runner_of(health, port, advised=advised.append)
            real = Real("127.0.0.1", port, agent_port=agent_port)
            runner.adopt(Intent((Service("203.0.113.10", 80, reals=(real,), health=health),)))
            seen = runner.seen[end]
            await until(lambda: seen.advice == [Advice(percent=40)])
            words[0] = b"down # the disk\n"
            await until(lambda: bool(runner.down))
            assert told == [("down", "the agent says down: the disk")]
            words[0] = b"drain\n"
            await until(lambda: seen.advice == [Advice(percent=40, state="drain")])
            assert runner.down  # it did not say up
            words[0] = b"maint\n"
            await until(lambda: seen.maintained)
            words[0] = b"ready up\n"
            await until(lambda: not runner.down and seen.advice == [Advice(percent=40, state="")])
            words[0] = b""
            await until(lambda: bool(seen.checks[0].trouble))
            assert (runner.down, seen.advice) == (frozenset(), [Advice(percent=40, state="")])
            await runner.close()

    live(look())


# --- what is refused


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"retry_delay": -1.0}, "health retry_delay '-1': out of range"),
        ({"warmup": 90000.0}, "health warmup '90000': out of range"),
        ({"source": "web1"}, "health source 'web1': is not an IP address"),
        ({"type": "ping", "port": 7}, "health port '7': means nothing to ping"),
        ({"type": "http", "headers": ("a",)}, "health headers 'a': is not a header"),
        ({"type": "http", "headers": ("a: b\r\nc: d",)}, "health headers .*: is not a header"),
        ({"type": "http", "version": "3"}, "health version '3': is not known"),
        ({"type": "http", "digest": "12"}, "health digest '12': is no digest"),
        ({"type": "http", "tls": "on"}, "health tls 'on': means nothing to http"),
        ({"through": "me"}, "health through 'me': is not known; choose from server, vip"),
        ({"type": "http", "through": "vip"}, "health through 'vip': means nothing to http; it is for tcp, ping"),
        ({"through": "vip", "send": "x"}, "health send 'x': comes too late for through = vip"),
        ({"tls": "start"}, "health tls 'start': means nothing to tcp"),
        ({"type": "smtp", "sni": "a"}, "health sni 'a': is about no TLS"),
        ({"type": "https", "cert": "/a"}, "health cert '/a': is there without key; give both"),
        ({"type": "https", "ca": "/a"}, "health ca '/a': is not looked at; write verify = true"),
        ({"type": "https", "verify": True}, "health verify 'true': has no name to be valid for; give host"),
        ({"payload": "0g"}, "health payload '0g': is not hexadecimal"),
        ({"payload": "00", "send": "x"}, "health payload '00': is there with send"),
        ({"type": "dns", "record": "a!"}, "health record 'a!': is no type of record"),
        ({"type": "script", "script": "check"}, "health script 'check': begins with no absolute path"),
        ({"type": "script"}, "health script '': begins with no absolute path"),
        ({"type": "file", "file": "a"}, "health file 'a': is not an absolute path"),
        ({"type": "agent"}, "health port '0': is not that of an agent; give the port that it listens on"),
    ],
)
def test_a_check_that_cannot_be_right(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Check(**wrong)


def test_checks_that_cannot_be_right_together() -> None:
    agent = Check("agent", port=1)
    with pytest.raises(ConfigError, match="health check 'agent': is there twice; ask one agent"):
        Health(checks=(agent, agent))
    with pytest.raises(ConfigError, match="health fall '5': stands beside checks of their own"):
        Health(fall=5, checks=(agent,))
    with pytest.raises(ConfigError, match=r"health source '::1': is not of the VIP's family \(203.0.113.10\)"):
        Service("203.0.113.10", 80, health=Health(source="::1"))
    reals = (Real("10.0.1.11", 80),)
    with pytest.raises(ConfigError, match=r"health through 'vip': is of no use to nat \(10.0.1.11:80\)"):
        Service("203.0.113.10", 80, reals=reals, health=Health(through="vip"))
    with pytest.raises(ConfigError, match="health through 'vip': is of no use to a fwmark"):
        Service(fwmark=7, mode="dr", health=Health(through="vip", port=80))


def test_what_cannot_be_made_here_is_refused_before_it_is_tried(tmp_path: Path) -> None:
    def require(**health: Any) -> None:
        Runner(lambda end, status: None).require(Intent((Service("203.0.113.10", 80, health=Health(**health)),)))

    with pytest.raises(ConfigError, match="health script '/bin/true': cannot be run as another user here"):
        require(type="script", script="/bin/true")
    with pytest.raises(ConfigError, match=r"health script '/nowhere': cannot be run: /nowhere: No such file"):
        require(type="script", script="/nowhere")
    with pytest.raises(ConfigError, match=r"health cert .*: gives no certificate: No such file or directory"):
        require(type="https", cert=str(tmp_path / "cert"), key=str(tmp_path / "key"))
    with pytest.raises(ConfigError, match=r"health ca .*: gives no certificate"):
        require(type="https", verify=True, host="a", ca="/etc/passwd")


@pytest.mark.parametrize(
    ("now", "due"),
    [(100.01, 102.0), (101.99, 102.0), (102.01, 102.0), (103.9, 102.0), (105.5, 104.0), (10_000.5, 10_000.0)],
)
def test_a_check_keeps_its_moment_however_late_it_is(now: float, due: float) -> None:
    assert following(100.0, 2.0, now) == due


class Hasty(asyncio.SelectorEventLoop):
    """A loop whose clock jumps, as after a stall."""

    ahead = 0.0

    def time(self) -> float:
        return super().time() + self.ahead


@pytest.mark.parametrize(("answers", "last"), [(True, Result.PASS), (False, Result.FAIL)])
def test_an_answer_that_came_while_this_machine_was_busy_counts(answers: bool, last: Result) -> None:
    loop = Hasty()

    async def busy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        if answers:
            writer.write(b"hello")
        loop.ahead += 150  # this turn ends when the time of the check is long over
        await asyncio.sleep(0.01)
        loop.ahead += 0 if answers else 150
        await reader.read(1)

    async def look() -> None:
        async with stream(busy) as port:
            slow = Health(interval=1000, timeout=100, warmup=0.01, rise=1, fall=1, send="x", expect="hello")
            runner, [end], _ = runner_of(slow, port)
            await until(lambda: runner.seen[end].status.row > 0)
            assert runner.seen[end].status.last is last
            await runner.close()

    with asyncio.Runner(loop_factory=lambda: loop) as running:
        running.run(look())


def test_a_thousand_checks_begin_spread_over_the_interval() -> None:
    began: list[float] = []

    async def live() -> None:
        loop = asyncio.get_running_loop()

        async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            began.append(loop.time())
            writer.close()

        server = await asyncio.start_server(count, "0.0.0.0", 0, backlog=1000)
        port = server.sockets[0].getsockname()[1]
        reals = tuple(Real(f"127.0.{at // 250}.{at % 250 + 1}", port) for at in range(1000))
        service = Service("203.0.113.10", 80, reals=reals, health=Health(interval=1, timeout=1))
        runner = Runner(lambda end, status: None)
        runner.adopt(Intent((service,)))
        await asyncio.sleep(1.2)
        await runner.close()
        server.close()

    asyncio.run(asyncio.wait_for(live(), 20))
    first = [moment - min(began) for moment in sorted(began)[:1000]]
    tenths = [sum(1 for moment in first if tenth / 10 <= moment < (tenth + 1) / 10) for tenth in range(10)]
    assert max(tenths) < 700  # at once it would be 1000; a machine that stalls bunches them
