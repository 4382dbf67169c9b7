"""What a director keeps over its own death: the intent, its revision, and how the last life ended.

Strategy: `state.toml` is the whole, replaced as such (temporary file, fsync, rename, fsync of the folder), so a reader
finds the old state or the new one. What changed since stands in a journal beside it, `state.jsonl`: a line for each
save, appended and fsynced, so that a save costs what changed. Lines are numbered, and `serial` in the whole says which
is the last that it contains; so it does not matter whether a crash comes before or after older lines are taken away. A
last line that is torn is a save that nobody was told of, and counts as not there. When the journal has outgrown the
whole, `tidy` makes them one; so does the end of a director.

`clean` is false while a director lives: found false at a start, it tells of a crash. `origin` is a digest of the intent
that the command gave: the same command after a crash means "go on", and run-time edits survive; another command means
what it says.
"""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
import threading
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec
import tomli
import tomli_w

from nfqlb.control.drains import Drain
from nfqlb.control.registry import differing
from nfqlb.errors import ConfigError, NfqlbError
from nfqlb.model import Answers, Intent, Key, Options, Service, Sync, Timeouts

HEAD = "# Written by nfqlb; edit it only while no director of this name runs, and no state.jsonl is beside it.\n"
JOURNAL = ".jsonl"
JOURNAL_MIN = 1 << 18  # bytes of a journal that are always allowed
MUCH = 0.5  # of the services: a save that changes more of them writes the whole


class Pending(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What comes back at `until`, a time of nfqlb.clock: a change was not confirmed by then."""

    until: float
    intent: Intent
    reloaded: str = ""


class Down(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A real server that its checks found down, as it is written."""

    service: str
    real: str


class Maintenance(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A real server that somebody took out, at `since` (seconds since 1970), and said `why`."""

    service: str
    real: str
    since: float
    why: str = ""


class Damped(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is remembered of a real server that went down of late (control.damping.Record)."""

    service: str
    real: str
    times: int
    until: float
    back: float


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is kept; `vip_dev` is empty where no address is added. `reloaded` is the digest of what the
    file of the start asked for when it was last read again. `lost` are services without their quorum.
    """

    revision: int
    clean: bool
    origin: str
    intent: Intent
    vip_dev: str = ""
    drains: tuple[Drain, ...] = ()
    reloaded: str = ""
    pending: Pending | None = None
    down: tuple[Down, ...] = ()
    maintenance: tuple[Maintenance, ...] = ()
    damped: tuple[Damped, ...] = ()
    lost: tuple[str, ...] = ()


class Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One line of the journal: what became of the state before. `state` lacks its intent; the rest tells what changed
    there: a service in `put` takes the place of the one with its key, or the last; `order` is there where that is not
    the order.
    """

    serial: int
    state: State
    timeouts: Timeouts | None = None
    answers: Answers | None = None
    options: Options | None = None
    gone: tuple[Key, ...] = ()
    put: tuple[Service, ...] = ()
    order: tuple[Key, ...] = ()
    sync: Sync | msgspec.UnsetType | None = msgspec.UNSET


class Choice(NamedTuple):
    """What a starting director begins with; `remark` is a sentence where the choice may surprise."""

    state: State
    restored: bool
    remark: str | None


class Store:
    """The two files of one director, for the one process that writes them. `path` is that of the whole."""

    def __init__(self, path: Path) -> None:
        self._path, self._journal = path, path.with_suffix(JOURNAL)
        self._lock = threading.Lock()
        self._state: State | None = None  # as it is on the disk
        self._serial = 0
        self._size = 0  # bytes of the journal that count
        self._room = 0  # bytes that it may have before it is tidied up
        self._base = 0  # the number of the whole
        self._sound = False  # whether it is known what the journal holds

    def load(self) -> State | None:
        """The state, None where there is none yet; ConfigError for files that cannot be what was saved."""
        try:
            tables = tomli.loads(self._path.read_text())
            serial = tables.pop("serial", 0)
            state = msgspec.convert(tables, State)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, NfqlbError) as error:  # TOML, UTF-8 and msgspec errors are ValueErrors
            raise _unusable(self._path, error) from None
        try:
            data = self._journal.read_bytes() if self._journal.exists() else b""
            lines, size = _lines(data)
            news = [line for line in lines if line.serial > serial]
            if [line.serial for line in news] != list(range(serial + 1, serial + 1 + len(news))):
                raise ValueError(f"it does not follow number {serial}, the last in {self._path.name}")
            state, base, serial = _replay(state, news), serial, serial + len(news)
        except (OSError, ValueError, KeyError, NfqlbError) as error:
            raise _unusable(self._journal, error) from None
        self._state, self._serial, self._size, self._base, self._sound = state, serial, size, base, True
        self._room = max(JOURNAL_MIN, self._path.stat().st_size)
        return state

    def save(self, state: State, *, whole: bool = False) -> None:
        """Have the disk hold the state, at the end of a life as a `whole` alone; on OSError it holds the one before."""
        with self._lock:
            before = self._state
            keys = differing(before.intent, state.intent) if before else []
            if before is None or whole or not self._sound or len(keys) > max(1, MUCH * len(before.intent.services)):
                self._replace(state)
            else:
                self._append(_line(self._serial + 1, before, state, keys))
                self._state, self._serial = state, self._serial + 1

    def tidy(self) -> None:
        """Make one file of both, if the journal has outgrown the whole. Saves wait while the files change, not while
        the whole is put into words.
        """
        with self._lock:
            state, serial, size, base = self._state, self._serial, self._size, self._base
        if state is None or size <= self._room:
            return
        data = _encode(state, serial)
        with self._lock:
            if self._base == base:  # else there is a newer whole
                rest = self._journal.read_bytes()[size : self._size]
                self._put(data, serial, rest)

    def _replace(self, state: State) -> None:
        if self._state is None:
            self._journal.unlink(missing_ok=True)  # of a whole that somebody moved away
        self._put(_encode(state, self._serial + 1), self._serial + 1, b"")
        self._state, self._serial, self._sound = state, self._serial + 1, True

    def _put(self, whole: bytes, serial: int, rest: bytes) -> None:
        _write(self._path, whole)
        self._base, self._room = serial, max(JOURNAL_MIN, len(whole))
        self._shorten(rest)

    def _shorten(self, rest: bytes) -> None:
        """Leave nothing but `rest` of the journal; what fails leaves lines that count as contained."""
        with suppress(OSError):
            if rest:
                _write(self._journal, rest)
            else:
                self._journal.unlink(missing_ok=True)
            self._size = len(rest)

    def _append(self, line: bytes) -> None:
        new = not self._journal.exists()
        fd = os.open(self._journal, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, self._size)  # what a crash tore off
            try:
                if os.pwrite(fd, line, self._size) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(fd)
                if new:
                    _sync_folder(self._path.parent)
            except OSError:
                self._sound = False
                with suppress(OSError):
                    os.ftruncate(fd, self._size)
                raise
        finally:
            os.close(fd)
        self._size += len(line)


def load(path: Path) -> State | None:
    """The state that the files at `path` hold, None where there is none yet; ConfigError for what cannot be one."""
    return Store(path).load()


def _line(serial: int, before: State, after: State, keys: list[Key]) -> bytes:
    """The line that makes the one of the other; `keys` are those of the services that differ."""
    one, other = before.intent, after.intent
    gone = tuple(key for key in keys if key not in other.by_key)
    put = tuple(other.by_key[key] for key in keys if key in other.by_key)
    ordered = tuple(_edit(dict(one.by_key), gone, put).values()) == other.services
    body = msgspec.json.encode(
        Line(
            serial,
            msgspec.structs.replace(after, intent=Intent()),
            None if one.timeouts == other.timeouts else other.timeouts,
            None if one.answers == other.answers else other.answers,
            None if one.options == other.options else other.options,
            gone,
            put,
            () if ordered else tuple(other.by_key),
            msgspec.UNSET if one.sync == other.sync else other.sync,
        )
    )
    return b"%08x %s\n" % (zlib.crc32(body), body)


def _replay(state: State, lines: Sequence[Line]) -> State:
    if not lines:
        return state
    intent = state.intent
    services, timeouts, answers, options = dict(intent.by_key), intent.timeouts, intent.answers, intent.options
    sync = intent.sync
    for line in lines:
        services = _edit(services, line.gone, line.put, line.order)
        timeouts, answers, options = line.timeouts or timeouts, line.answers or answers, line.options or options
        sync = sync if line.sync is msgspec.UNSET else line.sync
    after = Intent(tuple(services.values()), timeouts, answers, options, sync)
    return msgspec.structs.replace(lines[-1].state, intent=after)


def _edit(
    services: dict[Key, Service], gone: Iterable[Key], put: Iterable[Service], order: Sequence[Key] = ()
) -> dict[Key, Service]:
    for key in gone:
        del services[key]
    services.update((service.key, service) for service in put)
    return {key: services[key] for key in order} if order else services


def _lines(data: bytes) -> tuple[list[Line], int]:
    """The lines of a journal and the bytes that they take; a last one that is torn does not count."""
    found: list[Line] = []
    size = 0
    for text in data.splitlines(keepends=True):
        body = text[9:-1]
        if not (text.endswith(b"\n") and text[:9] == b"%08x " % zlib.crc32(body)):
            break
        found.append(msgspec.json.decode(body, type=Line))
        size += len(text)
    if b"\n" in data[size:-1]:
        raise ValueError(f"line {len(found) + 1} is damaged")
    return found, size


def _encode(state: State, serial: int) -> bytes:
    values = {"serial": serial, **msgspec.to_builtins(state)}
    for intent in (values["intent"], values.get("pending", {}).get("intent", {})):
        if intent.get("sync", 0) is None:  # what TOML has no word for
            del intent["sync"]
    return (HEAD + tomli_w.dumps(values)).encode()


def _write(path: Path, data: bytes) -> None:
    """Replace the file; on OSError the old one is untouched."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        os.rename(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _unusable(path: Path, error: Exception) -> ConfigError:
    return ConfigError("state file", path, f"cannot be used ({error})", "repair it or move it away")


def digest(intent: Intent | None) -> str:
    """A name for what a command gave; empty where it gave nothing."""
    return "" if intent is None else hashlib.sha256(msgspec.json.encode(intent)).hexdigest()[:16]


def choose(saved: State | None, given: Intent | None, vip_dev: str, *, restore: bool, takeover: bool = False) -> Choice:
    """Which intent a start begins with: the saved one or the command's. `vip_dev` counts in any case where given, and
    real servers that are in maintenance stay there. At a takeover another intent is a change of the saved state.
    """
    origin = digest(given)
    crashed = saved is not None and not saved.clean
    if saved is not None and (restore or (crashed and (given is None or origin in (saved.origin, saved.reloaded)))):
        after = msgspec.structs.replace(saved, clean=False, vip_dev=vip_dev or saved.vip_dev)
        return Choice(after, True, None)
    if saved is not None and crashed and takeover and given is not None:
        after = msgspec.structs.replace(
            saved,
            revision=saved.revision + (given != saved.intent),
            origin=origin,
            intent=given,
            vip_dev=vip_dev or saved.vip_dev,
            reloaded="",
            pending=None,
        )
        return Choice(after, False, None)
    remark = None
    if saved is None and restore:
        remark = f"nothing was saved under this name: starting {'empty' if given is None else 'with what is given'}"
    elif saved is not None and crashed and saved.intent != given:
        remark = "the last director crashed with another configuration: the given one is used"
    revision, maintenance = (saved.revision + 1, saved.maintenance) if saved else (1, ())
    after = State(revision, False, origin, given or Intent(), vip_dev, maintenance=maintenance)
    return Choice(after, False, remark)
