"""Tells the world when real servers or services go down or come back: by scripts, a webhook and e-mail.

Strategy: each channel has a queue of its own and one task that empties it, so that none waits for another and the
director for none. A queue that is full loses its oldest notices, which are counted and said once; every attempt has a
time limit, and there are few. What came together goes out together, where the channel can. Secrets stand in files that
are read when they are needed, and are said nowhere.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import ssl
import stat
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from nfqlb.errors import ConfigError, NfqlbError
from nfqlb.health.scripts import Scripts
from nfqlb.model import Intent, Service, command, endpoint
from nfqlb.runconfig import RunConfig, parse_address
from nfqlb.serving import Turn

if TYPE_CHECKING:
    from email.message import EmailMessage

    from aiohttp import ClientSession

KEPT = 1000  # notices that wait for a channel
TOGETHER = 100  # that one request or message takes
CALM_SECONDS = 1.0  # that mail waits for more to say
SCRIPT_SECONDS = 30.0
WEBHOOK_SECONDS = 5.0
MAIL_SECONDS = 30.0
TRIES = 4
PAUSE = 1.0  # seconds before the second try; before each further one twice as long

log = logging.getLogger("nfqlb")


class Notice(NamedTuple):
    """A turn, and when; `commands` are those that its service has for it."""

    turn: Turn
    time: float
    commands: Sequence[str] = ()

    def words(self) -> list[str]:
        """As keepalived writes it to its notify FIFOs (check_daemon.c, notify_fifo_rs and notify_fifo_vs)."""
        key, end, state = self.turn.key, self.turn.end, "UP" if self.turn.well else "DOWN"
        service = f"FWM {key.mark}" if key.mark else f"[{key.address}]:{key.protocol}:{key.port}"
        return ["RS", f"[{end[0]}]:{key.protocol}:{end[1]}", service, state] if end else ["VS", service, state]

    def told(self) -> dict[str, Any]:
        """As JSON; the keys are a promise."""
        turn = self.turn
        found: dict[str, Any] = {"time": round(self.time, 3), "what": turn.what, "service": str(turn.key)}
        if turn.end:
            found["real"] = endpoint(*turn.end)
        return found | {"up": turn.well, "cause": turn.cause, "message": turn.message}


class Channel:
    """A queue that `send` empties; it takes at most `most` notices at a time, and raises OSError to be tried again."""

    def __init__(self, name: str, send: Callable[[Sequence[Notice]], Awaitable[None]], most: int, calm: float = 0.0):
        self.name = name
        self.sent = self.failed = self.lost = 0
        self._send, self._most, self._calm = send, most, calm
        self._waiting: deque[Notice] = deque()
        self._news = asyncio.Event()
        self._full = False

    def put(self, notice: Notice) -> None:
        if len(self._waiting) == KEPT:
            self._waiting.popleft()
            self.lost += 1
            if not self._full:
                log.warning("notices: more than %d wait for %s, the oldest are lost", KEPT, self.name)
            self._full = True
        self._waiting.append(notice)
        self._news.set()

    async def work(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            await asyncio.sleep(self._calm)
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
                if await self._try(batch):
                    self.sent += len(batch)
                else:
                    self.failed += len(batch)
            self._full = False

    async def _try(self, batch: Sequence[Notice]) -> bool:
        for attempt in range(TRIES):
            try:
                await self._send(batch)
                return True
            except (OSError, ValueError, NfqlbError) as error:
                why = str(error) or type(error).__name__
            except Exception as error:  # ours: those that come later are told all the same
                log.exception("an error in notices: %s", self.name)
                why = type(error).__name__
                break
            if attempt < TRIES - 1:
                await asyncio.sleep(PAUSE * 2**attempt)
        log.warning("notices: %s fails, %d are lost: %s", self.name, len(batch), why)
        return False


class Notices:
    """All channels that the settings ask for; `start` and `close` on the loop."""

    def __init__(self, config: RunConfig, scripts: Scripts) -> None:
        self._config, self._scripts = config, scripts
        self._session: ClientSession | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.channels = {"script": Channel("the script", self._run, 1)}
        if config.webhook:
            self.channels["webhook"] = Channel("the webhook", self._post, TOGETHER)
        if config.mail_to:
            self.channels["mail"] = Channel("mail", self._mail, TOGETHER, CALM_SECONDS)

    def require(self, intent: Intent) -> None:
        """Refuse commands that may not be run, and secrets that everybody may read; ConfigError. Reads files."""
        wanted = {line for service in intent.services for line in commands_of(service)}
        for line in wanted | ({self._config.notify} if self._config.notify else set()):
            self._scripts.require("notify", line)
        for field in ("webhook_token", "smtp_login"):
            if path := getattr(self._config, field):
                secret(field, path)

    def start(self) -> None:
        self._tasks = [asyncio.create_task(channel.work()) for channel in self.channels.values()]

    def tell(self, turn: Turn, intent: Intent) -> None:
        """Have it told; never waits."""
        notice = Notice(turn, time.time(), _commands(turn, intent))
        for name, channel in self.channels.items():
            if name != "script" or notice.commands or self._config.notify:
                channel.put(notice)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._session:
            await self._session.close()

    async def _run(self, batch: Sequence[Notice]) -> None:
        """Those of the service as they are written, that for all with keepalived's words behind. Tried once."""
        for notice in batch:
            told = notice.told()
            environ = {f"NFQLB_{key.upper()}": str(value) for key, value in told.items()}
            environ["NFQLB_UP"] = "1" if notice.turn.well else "0"
            lines = [command("notify", line) for line in notice.commands]
            if self._config.notify:
                lines.append([*command("notify", self._config.notify), *notice.words()])
            for line in lines:
                outcome = await self._scripts.run(line, SCRIPT_SECONDS, environ)
                if outcome.problem or outcome.code:
                    log.warning("notify %s: %s", line[0], outcome.problem or f"exit {outcome.code}: {outcome.line}")

    async def _post(self, batch: Sequence[Notice]) -> None:
        from aiohttp import ClientError, ClientSession, ClientTimeout

        if self._session is None:
            self._session = ClientSession(timeout=ClientTimeout(total=WEBHOOK_SECONDS))
        headers = {"Content-Type": "application/json"}
        if self._config.webhook_token:
            headers["Authorization"] = f"Bearer {secret('webhook_token', self._config.webhook_token)}"
        body = json.dumps({"name": self._config.name, "events": [notice.told() for notice in batch]})
        try:
            async with self._session.post(
                self._config.webhook, data=body, headers=headers, allow_redirects=False
            ) as answer:
                if answer.status >= 300:
                    raise OSError(f"status {answer.status}")
        except (ClientError, TimeoutError) as error:
            raise OSError(str(error) or f"no answer within {WEBHOOK_SECONDS:g} s") from None

    async def _mail(self, batch: Sequence[Notice]) -> None:
        await asyncio.to_thread(send_mail, self._config, message(self._config, batch))


def _commands(turn: Turn, intent: Intent) -> Sequence[str]:
    service = intent.by_key.get(turn.key)
    if service and service.health and turn.what == "server":
        found = service.health.notify_up if turn.well else service.health.notify_down
    elif service and service.quorum and turn.what == "quorum":
        found = service.quorum.up if turn.well else service.quorum.down
    else:
        found = ""
    return (found,) if found else ()


def commands_of(service: Service) -> list[str]:
    """All commands that a service has for its turns."""
    found = [service.health.notify_up, service.health.notify_down] if service.health else []
    return [one for one in (*found, *((service.quorum.up, service.quorum.down) if service.quorum else ())) if one]


def message(config: RunConfig, batch: Sequence[Notice]) -> EmailMessage:
    """One message for all of it: what is ill comes first in the subject."""
    from email.message import EmailMessage  # with smtplib a tenth of a director's start

    ill = [notice for notice in batch if not notice.turn.well]
    more = f" and {len(batch) - 1} more" if len(batch) > 1 else ""
    mail = EmailMessage()
    mail["Subject"] = f"[nfqlb {config.name}] {(ill or batch)[0].turn.message}{more}"[:200]
    mail["From"] = config.mail_from or f"nfqlb@{socket.gethostname()}"
    mail["To"] = config.mail_to
    stamps = (time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(notice.time)) for notice in batch)
    mail.set_content("".join(f"{stamp}  {notice.turn.message}\n" for stamp, notice in zip(stamps, batch, strict=True)))
    return mail


def send_mail(config: RunConfig, mail: EmailMessage) -> None:
    """Hand it to the mail server, encrypted where that can, and in any case before a login; OSError where it fails."""
    import smtplib

    address, port = parse_address("smtp", config.smtp, 25)
    with smtplib.SMTP(address, port, timeout=MAIL_SECONDS) as server:
        server.ehlo()
        if config.smtp_login or server.has_extn("starttls"):
            server.starttls(context=ssl.create_default_context() if config.smtp_login else _unchecked())
        if config.smtp_login:
            user, _, password = secret("smtp_login", config.smtp_login).partition(":")
            server.login(user, password)
        server.send_message(mail)


def _unchecked() -> ssl.SSLContext:
    """Better than no encryption (RFC 7435): most servers of a machine's own network have no certificate to check."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def secret(field: str, path: str) -> str:
    """The first line of a file that others must not read; ConfigError names the file, never what is in it."""
    try:
        with open(path) as file:
            mode, line = os.fstat(file.fileno()).st_mode, file.readline().strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise ConfigError(field, path, f"cannot be read: {why}") from None
    if stat.S_IMODE(mode) & 0o007:
        raise ConfigError(field, path, "can be read or written by everybody", f"chmod 600 {path}")
    if not line:
        raise ConfigError(field, path, "is empty", "write the secret into its first line")
    return line
