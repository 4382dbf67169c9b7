"""Serve the API on a unix socket.

Strategy: a handler reads the request into values of the model, calls one verb of the director and writes one struct of
the schema. Errors are NfqlbError all the way; `_guard` is the only place that turns them into HTTP. Who may speak is
decided by the kernel's word on the peer (SO_PEERCRED), not by file permissions alone: root, the director's own user and
members of the group that owns the socket file.

The socket is bound, given its mode and only then listened on, so there is no moment in which others could connect.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import stat
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from nfqlb import clock
from nfqlb.api import openapi, schema
from nfqlb.api.director import Director
from nfqlb.applying import CONFIRM_MAX, Outcome, whole
from nfqlb.control import registry
from nfqlb.errors import (
    ConfigError,
    ConfigErrors,
    ConflictError,
    ExistsError,
    MissingError,
    NfqlbError,
    NotFoundError,
    TakenError,
    UnreachableError,
)
from nfqlb.feed import Event
from nfqlb.model import Answers, Intent, Key, Options, Real, Service, Sync, Timeouts, parse_real, parse_vip
from nfqlb.runconfig import check_socket_path

MODE = 0o660
BODY_MAX = 16 * 2**20
DRAIN_MAX = 30 * 86400
FOLLOW_MAX = 86400
WHY_MAX = 200
KEY = "{key:[^/]+(?:/[a-z0-9]+)?}"  # the slash before the protocol may come as it is or as %2F
NUMBER = re.compile(r"\d{1,20}(\.\d{1,9})?", re.ASCII)
REVISION = re.compile(r'(?:W/)?"(\d{1,15})"')
SHUTDOWN_SECONDS = 1.0
SO_PEERGROUPS = 59  # include/uapi/asm-generic/socket.h; Python does not name it
GROUPS_BYTES = 1024  # the most that Python's getsockopt takes: 256 groups

T = TypeVar("T")
log = logging.getLogger(__name__)


async def serve(director: Director, path: Path) -> web.AppRunner:
    """Answer on `path` until the runner's cleanup(), which removes the socket; TakenError if somebody else answers."""
    listener = _listen(path)
    inode = os.stat(path).st_ino

    async def remove_socket(_: web.Application) -> None:
        if path.exists() and os.stat(path).st_ino == inode:
            path.unlink()

    app = web.Application(middlewares=[_guard(path)], client_max_size=BODY_MAX)
    app.add_routes(_Routes(director).table())
    app.on_cleanup.append(remove_socket)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS, handler_cancellation=True)
    await runner.setup()
    await web.SockSite(runner, listener).start()
    return runner


class _Routes:
    def __init__(self, director: Director) -> None:
        self.director = director
        self._tasks: set[asyncio.Task[Any]] = set()

    def table(self) -> list[web.RouteDef]:
        return [
            web.route(one.method, one.path.replace("{key}", KEY), _knowing(one.query, getattr(self, one.name)))
            for one in openapi.OPERATIONS
        ]

    async def services(self, _: web.Request) -> web.Response:
        director = self.director
        answer = schema.services(
            director.intent(), director.revision, director.slots(), director.drained(), director.serving
        )
        return _json(answer, revision=director.revision)

    async def service(self, request: web.Request) -> web.Response:
        service = registry.find_service(self.director.intent(), _key(request))
        director = self.director
        answer = schema.service_view(service, director.slots(), director.drained(), director.serving)
        return _json(answer, revision=self.director.revision)

    async def add_service(self, request: web.Request) -> web.Response:
        service = await _body(request, Service)
        return await self._change(request, lambda intent: registry.add_service(intent, service), 201)

    async def edit_service(self, request: web.Request) -> web.Response:
        key, edit = _key(request), await _body(request, schema.ServiceEdit)
        changed = _changed(edit)
        return await self._change(request, lambda intent: registry.edit_service(intent, key, **changed))

    async def delete_service(self, request: web.Request) -> web.Response:
        key = _key(request)
        return await self._change(request, lambda intent: registry.delete_service(intent, key))

    async def clear(self, request: web.Request) -> web.Response:
        return await self._change(request, registry.clear)

    async def zero(self, request: web.Request) -> web.Response:
        """Count anew, for one service or for all."""
        director, slots = self.director, self.director.slots()
        keys = [*director.intent().by_key]
        if "key" in request.match_info:
            keys = [registry.find_service(director.intent(), _key(request)).key]
            slots = {end: slot for end, slot in slots.items() if end[0] in keys}
        director.meter.zero(director.drained().slots, slots.values(), keys)
        return _json(schema.Changed(director.revision))

    async def add_real(self, request: web.Request) -> web.Response:
        key, real = _key(request), await _body(request, Real)
        return await self._change(request, lambda intent: registry.add_real(intent, key, real), 201)

    async def edit_real(self, request: web.Request) -> web.Response:
        key, real, edit = _key(request), _endpoint(request), await _body(request, schema.RealEdit)
        changed = _changed(edit)

        def change(intent: Intent) -> Intent:
            before = registry.find_real(registry.find_service(intent, key), real.address, real.port)
            return registry.edit_real(intent, key, msgspec.structs.replace(before, **changed))

        return await self._change(request, change)

    async def delete_real(self, request: web.Request) -> web.Response:
        key, real = _key(request), _endpoint(request)
        return await self._change(request, lambda intent: registry.delete_real(intent, key, real.address, real.port))

    async def drain(self, request: web.Request) -> web.Response:
        key, real, order = _key(request), _endpoint(request), await _body(request, schema.DrainOrder)
        if not 0 <= order.timeout <= DRAIN_MAX:
            raise ConfigError("timeout", order.timeout, "out of range", f"use 0 to {DRAIN_MAX} seconds")
        return _json(await self.director.draining.begin(key, real, order.timeout, order.keep, _revision(request)), 202)

    async def maintenance(self, request: web.Request) -> web.Response:
        key, real, order = _key(request), _endpoint(request), await _body(request, schema.MaintenanceOrder)
        if len(order.why) > WHY_MAX or not order.why.isprintable():
            raise ConfigError("why", _short(order.why), "is no short line", f"use at most {WHY_MAX} characters")
        await self.director.maintain(key, real, order.on, order.why)
        return _json(schema.Changed(self.director.revision))

    async def health(self, _: web.Request) -> web.Response:
        return _json(schema.healths(self.director.serving, self.director.intent(), clock.now()))

    async def schedulers(self, _: web.Request) -> web.Response:
        director = self.director
        return _json(schema.schedulers(director.choosing(), director.intent(), director.slots()))

    async def drains(self, _: web.Request) -> web.Response:
        return _json(schema.Drains(self.director.draining.views()))

    async def connections(self, request: web.Request) -> web.Response:
        rows = self.director.connections(int(_number(request, "limit", 2**32)))
        return _json(await asyncio.to_thread(schema.connections, rows))  # seconds, for a full table

    async def stats(self, _: web.Request) -> web.Response:
        return _json(
            schema.stats(self.director.intent(), self.director.slots(), self.director.drained(), self.director.meter)
        )

    async def reasons(self, _: web.Request) -> web.Response:
        return _json(schema.Reasons(self.director.drained().reasons))

    async def daemon(self, _: web.Request) -> web.Response:
        return _json({**self.director.info(), "revision": self.director.revision})

    async def set_timeouts(self, request: web.Request) -> web.Response:
        timeouts = await _body(request, Timeouts)
        return await self._change(request, lambda intent: registry.set_timeouts(intent, timeouts))

    async def set_answers(self, request: web.Request) -> web.Response:
        answers = await _body(request, Answers)
        return await self._change(request, lambda intent: registry.set_answers(intent, answers))

    async def set_options(self, request: web.Request) -> web.Response:
        options = await _body(request, Options)
        return await self._change(request, lambda intent: registry.set_options(intent, options))

    async def sync(self, _: web.Request) -> web.Response:
        return _json(schema.SyncView(self.director.syncing()))

    async def set_sync(self, request: web.Request) -> web.Response:
        sync = await _body(request, Sync)
        return await self._change(request, lambda intent: registry.set_sync(intent, sync))

    async def stop_sync(self, request: web.Request) -> web.Response:
        return await self._change(request, lambda intent: registry.set_sync(intent, None))

    async def config(self, _: web.Request) -> web.Response:
        director = self.director
        intent, revision = director.intent(), director.revision
        answer = schema.ConfigurationView(
            revision,
            director.applier.confirm_by,
            director.applier.settings(),
            intent.timeouts,
            intent.answers,
            intent.options,
            intent.services,
            intent.sync,
        )
        return _json(answer, revision=revision)

    async def apply(self, request: web.Request) -> web.Response:
        wanted = await _body(request, schema.Configuration)
        if wanted.services is msgspec.UNSET:
            raise ConfigError("body", "", "has no services", "name all that are to be there; [] deletes them all")
        intent = Intent(wanted.services, wanted.timeouts, wanted.answers, wanted.options, wanted.sync)
        within = _number(request, "confirm_within", CONFIRM_MAX)
        if not within and "confirm_within" in request.query:
            fix = f"use more, up to {CONFIRM_MAX}; leave it out to apply for good"
            raise ConfigError("confirm_within", request.query["confirm_within"], "leaves no time to confirm", fix)
        plan = request.query.get("plan", "false")
        if plan not in ("true", "false"):
            raise ConfigError("plan", _short(plan), "is neither true nor false")
        applier, revision = self.director.applier, _revision(request)
        if wanted.revision is not None:
            if revision not in (None, wanted.revision):
                raise ConfigError("body revision", wanted.revision, f"is not that of If-Match ({revision})", "send one")
            revision = wanted.revision
        if plan == "true":
            return _applied(await applier.plan(wanted.director, intent, revision), done=False)
        file = request.query.get("file", "")
        step = applier.apply(wanted.director, intent, file=file, confirm_within=within, revision=revision)
        return _applied(await whole(self._tasks, step))

    async def confirm(self, request: web.Request) -> web.Response:
        return _changed_to(await whole(self._tasks, self.director.applier.confirm(_revision(request))))

    async def rollback(self, request: web.Request) -> web.Response:
        return _changed_to(await whole(self._tasks, self.director.applier.rollback(_revision(request))))

    async def reload(self, request: web.Request) -> web.Response:
        return _applied(await whole(self._tasks, self.director.applier.reload(_revision(request))))

    async def events(self, request: web.Request) -> web.StreamResponse:
        """A line for each; `follow` ends it, or who asked by going away."""
        since, seconds = int(_number(request, "since", 2**53)), _number(request, "follow", FOLLOW_MAX)
        answer = web.StreamResponse(headers={"Content-Type": openapi.LINES})
        await answer.prepare(request)
        with suppress(TimeoutError, ConnectionError):
            if not seconds:
                for event in self.director.feed.since(since):
                    await answer.write(_line(event))
            else:
                async with asyncio.timeout(seconds):
                    async for event in self.director.feed.follow(since):
                        await answer.write(_line(event))
        return answer

    async def openapi(self, _: web.Request) -> web.Response:
        return _json(openapi.document())

    async def _change(self, request: web.Request, edit: Callable[[Intent], Intent], status: int = 200) -> web.Response:
        return _changed_to(await self.director.change(edit, _revision(request)), status)


def _changed_to(revision: int, status: int = 200) -> web.Response:
    return _json(schema.Changed(revision), status, revision)


def _applied(outcome: Outcome, *, done: bool = True) -> web.Response:
    answer = schema.Applied(outcome.revision, done, outcome.steps, outcome.notes, outcome.confirm_by or None)
    return _json(answer, revision=outcome.revision)


def _line(event: Event) -> bytes:
    return msgspec.json.encode(event) + b"\n"


def _knowing(names: Sequence[str], handler: Handler) -> Handler:
    """Refuse a query that says more than the operation hears: what is misspelled must not count as left out."""

    async def heard(request: web.Request) -> web.StreamResponse:
        for name in request.query:
            if name not in names:
                fix = f"it takes {', '.join(names)}" if names else "it takes none"
                raise ConfigError("query", _short(name), "is not a parameter of this", fix)
            if len(request.query.getall(name)) > 1:
                raise ConfigError("query", name, "is there twice", "give it once")
        return await handler(request)

    return heard


def _guard(path: Path) -> Middleware:
    """Let in who may speak; every refusal leaves as JSON."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            uid, groups = _peer(request)
            if uid not in (0, os.geteuid()) and os.stat(path).st_gid not in groups:
                fix = "use root, the director's own user or a member of the group that owns the socket"
                return _refusal(MissingError(f"user {uid} may not use {path}; {fix}"), 403)
            return await handler(request)
        except NfqlbError as error:
            conflict = isinstance(error, ConflictError) and "If-Match" in request.headers
            return _refusal(error, 412 if conflict else _status(error))
        except web.HTTPException as error:
            return _refusal(ConfigError("request", f"{request.method} {request.path}", error.reason), error.status)
        except Exception as error:
            log.exception("%s %s failed", request.method, request.path)
            return _json(schema.ErrorBody(schema.ErrorView("internal", f"{type(error).__name__}: {error}")), 500)

    return guard


def _peer(request: web.Request) -> tuple[int, set[int]]:
    """User and groups of the other side, as they were when it connected."""
    assert request.transport is not None
    peer = request.transport.get_extra_info("socket")
    _, uid, gid = _credentials(peer)
    groups = b""
    with suppress(OSError):  # more of them than fit
        groups = peer.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, GROUPS_BYTES)
    return uid, {gid, *struct.unpack(f"{len(groups) // 4}I", groups)}


def _credentials(connection: socket.socket) -> tuple[int, int, int]:
    """pid, uid and gid of the other side (struct ucred)."""
    pid, uid, gid = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid, gid


def _status(error: NfqlbError) -> int:
    match error:
        case ConfigError() | ConfigErrors():
            return 400
        case NotFoundError():
            return 404
        case ExistsError() | TakenError() | ConflictError():
            return 409
        case UnreachableError():
            return 503
        case _:
            return 500


def _refusal(error: NfqlbError, status: int) -> web.Response:
    return _json(schema.ErrorBody(_error_view(error)), status)


def _error_view(error: NfqlbError) -> schema.ErrorView:
    view = schema.ErrorView(type(error).__name__, str(error))
    if isinstance(error, ConfigError):
        view.field, view.value, view.problem, view.fix = error.field, str(error.value), error.problem, error.fix
    if isinstance(error, ConfigErrors):
        view.errors = [_error_view(one) for one in error.errors]
    return view


def _json(value: object, status: int = 200, revision: int | None = None) -> web.Response:
    answer = web.Response(body=msgspec.json.encode(value), status=status, content_type=openapi.JSON)
    if revision is not None:
        answer.headers["ETag"] = f'"{revision}"'
    return answer


def _revision(request: web.Request) -> int | None:
    """Of which revision this is a change; None: whichever there is."""
    text = request.headers.get("If-Match", "*").strip()
    if text == "*":
        return None
    found = REVISION.fullmatch(text)
    if not found:
        raise ConfigError("If-Match", text, "is not a revision", 'write it in quotes, as in "12"')
    return int(found[1])


def _number(request: web.Request, name: str, most: float) -> float:
    """A number of the query; 0 where it is not there."""
    text = request.query.get(name, "0")
    number = float(text) if NUMBER.fullmatch(text) else -1
    if not 0 <= number <= most:
        raise ConfigError(name, _short(text), "is out of range or no number", f"use 0 to {most:.0f}")
    return number


def _key(request: web.Request) -> Key:
    return parse_vip(request.match_info["key"])


def _endpoint(request: web.Request) -> Real:
    return parse_real(request.match_info["endpoint"], _key(request))


async def _body(request: web.Request, kind: type[T]) -> T:
    body = await request.read()
    try:
        value = msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise ConfigError("body", _short(body.decode(errors="replace")), f"is not JSON: {error}") from None
    except RecursionError:
        raise ConfigError("body", _short(body.decode(errors="replace")), "is nested too deeply") from None
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        problem, _, where = str(error).partition(" - at `$")
        names, wrong = _at(value, re.findall(r"\w+|\.\.\.", where))
        raise ConfigError(" ".join(["body", *names]), _short(wrong), problem) from None


def _at(value: Any, steps: Sequence[str]) -> tuple[list[str], object]:
    """The names on the way, and what stands there. A step `...`, msgspec's for a key of a mapping, is the first key
    from which the rest of the way leads on.
    """
    if not steps or list(steps) == ["..."]:
        return [], value
    step, *rest = steps
    keys = list(value) if step == "..." else [int(step) if isinstance(value, list) else step]
    for key in keys:
        with suppress(LookupError, TypeError, ValueError):
            names, found = _at(value[key], rest)
            return [str(key), *names], found
    raise LookupError(step)


def _changed(edit: msgspec.Struct) -> dict[str, Any]:
    """The fields that an edit names."""
    return {name: value for name, value in msgspec.structs.asdict(edit).items() if value is not msgspec.UNSET}


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _listen(path: Path) -> socket.socket:
    check_socket_path(str(path))
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        _remove_stale(path)
        listener.bind(str(path))
        os.chmod(path, MODE)
        listener.listen()
    except OSError as error:
        listener.close()
        raise ConfigError("api", path, f"cannot listen there: {error.strerror}", "choose another path") from error
    except NfqlbError:
        listener.close()
        raise
    return listener


def _remove_stale(path: Path) -> None:
    """A socket that nobody answers on is what a crash left behind."""
    try:
        mode = os.stat(path, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError("api", path, "is there and is not a socket", "choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        pid, *_ = _credentials(probe)
    raise TakenError(f"the API socket {path} belongs to the process {pid}; choose another one by --name or --api")
