"""Who hears of it: scripts with keepalived's words, a webhook, mail; none waits for another, nothing secret is said."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import web

from nfqlb import notices
from nfqlb.errors import ConfigError
from nfqlb.health.advice import agent
from nfqlb.health.scripts import Outcome, Scripts
from nfqlb.model import Health, Intent, Key, Quorum, Real, Service
from nfqlb.notices import Notice, Notices
from nfqlb.runconfig import RunConfig
from nfqlb.serving import Turn

KEY = Key("tcp", "203.0.113.10", 80)
REAL = ("10.0.1.11", 8080)
DOWN = Turn("server", KEY, REAL, False, "10.0.1.11:8080 of 203.0.113.10:80/tcp is down: refused", "down")
UP = Turn("server", KEY, REAL, True, "10.0.1.11:8080 of 203.0.113.10:80/tcp is up again")
LOST = Turn("quorum", KEY, None, False, "service 203.0.113.10:80/tcp has lost its quorum")
SECRET = "s3cret-token"


class Ran(Scripts):
    """Stands for the spawner: what was run, and how it ends."""

    def __init__(self, outcome: Outcome | None = None) -> None:
        super().__init__(cast(Any, "the spawner"))
        self.lines: list[tuple[list[str], dict[str, str]]] = []
        self.outcome = outcome or Outcome(0)

    async def run(self, command: Sequence[str], seconds: float, environ: Mapping[str, str] | None = None) -> Outcome:
        self.lines.append(([*command], {**(environ or {})}))
        return self.outcome


def config(**more: Any) -> RunConfig:
    return RunConfig(api="/run/nfqlb/main/api.sock", **more)


def intent(**more: Any) -> Intent:
    return Intent((Service("203.0.113.10", 80, reals=(Real(*REAL),), **more),))


async def told(made: Notices, turns: Sequence[Turn], done: Callable[[], bool], about: Intent | None = None) -> None:
    made.start()
    for turn in turns:
        made.tell(turn, about or intent())
    while not done():
        await asyncio.sleep(0.005)
    await made.close()


def run(*args: Any) -> None:
    asyncio.run(asyncio.wait_for(told(*args), 20))


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "PAUSE", 0.001)
    monkeypatch.setattr(notices, "CALM_SECONDS", 0.01)


@pytest.fixture
def token(tmp_path: Path) -> str:
    file = tmp_path / "token"
    file.write_text(f"{SECRET}\n")
    file.chmod(0o600)
    return str(file)


# --- scripts


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        (DOWN, ["RS", "[10.0.1.11]:tcp:8080", "[203.0.113.10]:tcp:80", "DOWN"]),
        (UP, ["RS", "[10.0.1.11]:tcp:8080", "[203.0.113.10]:tcp:80", "UP"]),
        (LOST, ["VS", "[203.0.113.10]:tcp:80", "DOWN"]),
        (LOST._replace(key=Key("any", "0.0.0.0", 0, mark=7)), ["VS", "FWM 7", "DOWN"]),
    ],
)
def test_the_script_has_keepalived_s_words(turn: Turn, words: list[str]) -> None:
    ran = Ran()
    run(Notices(config(notify="/bin/say --to 'the team'"), ran), [turn], lambda: ran.lines != [])
    ((line, environ),) = ran.lines
    assert line == ["/bin/say", "--to", "the team", *words]
    assert (environ["NFQLB_MESSAGE"], environ["NFQLB_UP"]) == (turn.message, str(int(turn.well)))


def test_a_service_has_commands_of_its_own_for_servers_and_for_its_quorum() -> None:
    ran = Ran()
    about = intent(
        health=Health(notify_up="/bin/up", notify_down="/bin/down now"),
        quorum=Quorum(up="/bin/q up", down="/bin/q down"),
    )
    turns = [DOWN, LOST, UP, LOST._replace(well=True)]
    run(Notices(config(), ran), turns, lambda: len(ran.lines) == 4, about)
    assert [line for line, _ in ran.lines] == [["/bin/down", "now"], ["/bin/q", "down"], ["/bin/up"], ["/bin/q", "up"]]


def test_a_script_that_fails_is_said_and_the_next_one_runs(caplog: pytest.LogCaptureFixture) -> None:
    ran = Ran(Outcome(3, "no pager\n"))
    run(Notices(config(notify="/bin/say"), ran), [DOWN, UP], lambda: len(ran.lines) == 2)
    assert caplog.messages[0] == "notify /bin/say: exit 3: no pager"


@pytest.mark.parametrize("line", ["say", "/no/such/file", "/etc/passwd'"])
def test_a_command_that_may_not_be_run_is_refused(line: str) -> None:
    made, about = Notices(config(), Ran()), intent(health=Health(notify_down=line))
    with pytest.raises(ConfigError):
        made.require(about)


def test_where_no_script_can_be_run_none_is_taken() -> None:
    with pytest.raises(ConfigError, match="as another user"):
        Notices(config(notify="/bin/true"), Scripts()).require(Intent())


# --- the webhook


@asynccontextmanager
async def hook(statuses: list[int], got: list[tuple[str, Any]]) -> AsyncIterator[str]:
    """Answers with these statuses, one after the other, the last again and again."""

    async def take(request: web.Request) -> web.Response:
        got.append((request.headers.get("Authorization", ""), await request.json()))
        return web.Response(status=statuses.pop(0) if len(statuses) > 1 else statuses[0])

    app = web.Application()
    app.add_routes([web.post("/hook", take)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = cast(Any, site._server).sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/hook"
    await runner.cleanup()


def post(statuses: list[int], turns: Sequence[Turn], done: Callable[[Any], bool], **more: Any) -> list[tuple[str, Any]]:
    got: list[tuple[str, Any]] = []

    async def live() -> None:
        async with hook(statuses, got) as url:
            made = Notices(config(webhook=url, **more), Ran())
            await told(made, turns, lambda: done(made.channels["webhook"]))

    asyncio.run(asyncio.wait_for(live(), 20))
    return got


def test_a_webhook_gets_events_in_their_order_with_the_token_of_the_file(token: str) -> None:
    got = post([200], [DOWN, LOST], lambda channel: channel.sent == 2, webhook_token=token)
    events = [event for _, body in got for event in body["events"]]
    assert {authorization for authorization, _ in got} == {f"Bearer {SECRET}"}
    assert [event["what"] for event in events] == ["server", "quorum"]
    first = {key: value for key, value in events[0].items() if key != "time"}
    assert first == {
        "what": "server",
        "service": "203.0.113.10:80/tcp",
        "real": "10.0.1.11:8080",
        "up": False,
        "cause": "down",
        "message": DOWN.message,
    }


def test_a_webhook_that_fails_is_tried_again_a_few_times(caplog: pytest.LogCaptureFixture, token: str) -> None:
    assert len(post([500, 503, 200], [DOWN], lambda channel: channel.sent == 1)) == 3
    assert caplog.messages == []
    assert len(post([500], [DOWN], lambda channel: channel.failed == 1, webhook_token=token)) == notices.TRIES
    assert caplog.messages == ["notices: the webhook fails, 1 are lost: status 500"]
    assert SECRET not in caplog.text


def test_what_waits_too_long_is_lost_from_its_old_end_and_nobody_waits(caplog: pytest.LogCaptureFixture) -> None:
    channel = notices.Channel("the webhook", cast(Any, None), 1)
    for number in range(notices.KEPT + 5):
        channel.put(Notice(DOWN._replace(message=str(number)), 0.0))
    assert (len(channel._waiting), channel.lost, channel._waiting[0].turn.message) == (notices.KEPT, 5, "5")
    assert len(caplog.messages) == 1


def test_an_error_of_ours_costs_what_it_met_and_nothing_later(caplog: pytest.LogCaptureFixture) -> None:
    async def send(batch: Sequence[Notice]) -> None:
        if not batch[0].turn.well:
            raise ZeroDivisionError

    async def look() -> None:
        channel = notices.Channel("the webhook", send, 1)
        working = asyncio.create_task(channel.work())
        for turn in (DOWN, UP):
            channel.put(Notice(turn, 0.0))
        while not channel.sent:
            await asyncio.sleep(0.005)
        working.cancel()
        assert channel.failed == 1

    asyncio.run(asyncio.wait_for(look(), 20))
    assert caplog.text.count("Traceback") == 1


# --- mail


@asynccontextmanager
async def post_office(heard: list[str], said: dict[str, str]) -> AsyncIterator[int]:
    """Enough of SMTP (RFC 5321) to take a message; `said` replaces answers."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def say(text: str) -> None:
            writer.write(f"{text}\r\n".encode())

        say("220 ready")
        body = False
        while line := (await reader.readline()).decode().strip("\r\n"):
            heard.append(line)
            verb = line.split(" ")[0].upper()
            if body:
                while line != ".":
                    line = (await reader.readline()).decode().strip("\r\n")
                    heard.append(line)
                body = False
                say("250 taken")
            elif verb == "DATA":
                body = True
                say("354 go on")
            else:
                say(said.get(verb, "221 bye" if verb == "QUIT" else "250 fine"))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


def mail(said: dict[str, str], turns: Sequence[Turn], done: Callable[[Any], bool], **more: Any) -> list[str]:
    heard: list[str] = []

    async def live() -> None:
        async with post_office(heard, said) as port:
            settings = {"mail_to": "ops@example.com, boss@example.com", "smtp": f"127.0.0.1:{port}", **more}
            made = Notices(config(**settings), Ran())
            await told(made, turns, lambda: done(made.channels["mail"]))

    asyncio.run(asyncio.wait_for(live(), 20))
    return heard


def test_mail_says_all_that_came_together_and_what_is_ill_first() -> None:
    heard = mail({}, [UP, LOST], lambda channel: channel.sent == 2, mail_from="lb@example.com")
    assert [line for line in heard if line.startswith("rcpt")] == [
        "rcpt TO:<ops@example.com>",
        "rcpt TO:<boss@example.com>",
    ]
    assert f"Subject: [nfqlb main] {LOST.message} and 1 more" in " ".join(" ".join(heard).split()), "folded"
    assert "From: lb@example.com" in heard
    assert sum(UP.message in line or LOST.message in line for line in heard) >= 2


@pytest.mark.parametrize("odd", "\0\x0b\x0c\x1b\x1c\x1e\x85\u2028")
def test_a_reason_with_a_control_character_is_told_all_the_same(odd: str) -> None:
    why = agent(f"down # disk{odd}full")[1]
    heard = mail({}, [DOWN._replace(message=f"is down: {why}")], lambda channel: channel.sent or channel.failed)
    assert any(line.startswith("Subject:") for line in heard)
    assert odd not in "".join(heard)


def test_a_login_is_never_sent_in_clear(token: str, caplog: pytest.LogCaptureFixture) -> None:
    heard = mail({}, [DOWN], lambda channel: channel.failed == 1, smtp_login=token)
    assert not any(SECRET in line or line.upper().startswith("AUTH") for line in heard)
    assert "STARTTLS" in caplog.text
    assert SECRET not in caplog.text


# --- secrets


@pytest.mark.parametrize(
    ("mode", "text", "why"),
    [(0o644, "x", "can be read or written by everybody"), (0o600, "", "is empty"), (None, "", "cannot be read")],
)
def test_a_secret_that_is_none_is_refused_by_the_name_of_its_file(
    tmp_path: Path, mode: int | None, text: str, why: str
) -> None:
    file = tmp_path / "token"
    if mode is not None:
        file.write_text(text)
        os.chmod(file, mode)
    made = Notices(config(webhook="https://example.com/", webhook_token=str(file)), Ran())
    with pytest.raises(ConfigError, match=why) as refused:
        made.require(Intent())
    assert str(file) in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"webhook": "ftp://example.com"}, "webhook 'ftp://example.com': is no URL"),
        ({"webhook": f"https://me:{SECRET}@example.com/"}, "webhook 'example.com': has a user or password"),
        ({"webhook_token": "/etc/token"}, "is for no webhook"),
        ({"mail_to": "nobody"}, "mail_to 'nobody': is no mail address"),
        ({"smtp_login": "/etc/login"}, "say who gets the mail"),
        ({"mail_to": "a@b", "smtp": "mail:x"}, "smtp 'mail:x': is no NAME:PORT"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, str], why: str) -> None:
    with pytest.raises(ConfigError, match=why) as refused:
        config(**settings)
    assert SECRET not in str(refused.value)


def test_nothing_is_told_where_nobody_listens(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    made = Notices(config(), Ran())
    made.tell(DOWN, intent())
    assert [*made.channels] == ["script"]
    assert json.dumps(Notice(DOWN, 1.5).told())
