"""Health: the machine in every state, each check against servers well and ill, and the runner that keeps asking."""

from __future__ import annotations

import asyncio
import itertools
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import dns.message
import dns.rcode
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from nfqlb.control.compile import quiesced
from nfqlb.errors import ConfigError
from nfqlb.health.machine import SERVING, TABLE, Condition, Result, Status, diagram, step
from nfqlb.health.runner import End, Runner
from nfqlb.model import Health, Intent, Key, Real, Service

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
    status, serves, row = Status(), True, 0
    for at, result in enumerate(results):
        status = step(status, result, rise=rise, fall=fall)
        row = row + 1 if at and results[at - 1] is result else 1
        if serves and result is Result.FAIL and row >= fall:
            serves = False
        elif not serves and result is Result.PASS and row >= rise:
            serves = True
        assert (status.serves, status.condition in SERVING, status.row) == (serves, serves, row)


def test_why_is_kept_until_there_is_another_reason() -> None:
    status = step(Status(), Result.FAIL, rise=1, fall=1, why="refused")
    assert step(status, Result.PASS, rise=2, fall=1).why == "refused"


# --- what is down gets weight 0, whatever was asked for


def test_down_servers_are_quiesced_and_the_others_left_alone() -> None:
    web = Service("203.0.113.10", 80, reals=(Real("10.0.1.11", 80, 3), Real("10.0.1.12", 80, 5)))
    other = Service("203.0.113.10", 81, reals=(Real("10.0.1.11", 81),))
    intent = Intent((web, other))
    after = quiesced(intent, {(web.key, "10.0.1.11", 80)})
    assert [real.weight for real in after.services[0].reals] == [0, 5]
    assert after.services[1] is other


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
        return web.Response(status=int(request.query.get("status", "200")), text=f"page of {request.host}")

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


def resolver(rcode: dns.rcode.Rcode) -> Callable[[bytes], bytes]:
    def answer(data: bytes) -> bytes:
        reply = dns.message.make_response(dns.message.from_wire(data))
        reply.set_rcode(rcode)
        return reply.to_wire()

    return answer


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
    ("smtp, up", lambda: stream(says(b"220 mail ESMTP\r\n")), Health("smtp"), ""),
    ("smtp, busy", lambda: stream(says(b"421 too busy\r\n")), Health("smtp"), "said '421 too busy'"),
    ("imap, up", lambda: stream(says(b"* OK ready\r\n")), Health("imap"), ""),
    ("imap, bye", lambda: stream(says(b"* BYE\r\n")), Health("imap"), r"said '\* BYE'"),
    ("ftp, up", lambda: stream(says(b"220 (vsFTPd)\r\n")), Health("ftp"), ""),
    ("ftp, closed", lambda: stream(says(b"")), Health("ftp"), "no answer|said nothing"),
    ("udp, up", lambda: datagrams(lambda data: None), Health("udp", send="x"), ""),
    ("udp, refused", lambda: nobody(UDP), Health("udp", send="x"), "Connection refused"),
    ("udp, right answer", lambda: datagrams(lambda data: data), Health("udp", send="x", expect="x"), ""),
    ("udp, wrong answer", lambda: datagrams(lambda data: b"y"), Health("udp", send="x", expect="x"), "answered 'y'"),
    ("udp, no answer", lambda: datagrams(lambda data: None), Health("udp", send="x", expect="x"), "no answer within"),
    ("dns, up", lambda: datagrams(resolver(dns.rcode.NOERROR)), Health("dns", query="a.example"), ""),
    ("dns, refuses", lambda: datagrams(resolver(dns.rcode.REFUSED)), Health("dns"), "answered REFUSED"),
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
    assert max(tenths) < 300
