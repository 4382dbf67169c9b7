"""The configuration file, in TOML: text in, options of the director and an intent out, and back. No I/O.

Strategy: tomli reads (tomllib, compiled: files may be large), the values of the model check themselves, and what is
here is the map between keys and fields. A key that nobody knows is refused: a file never means less than it says. What
is wrong is noted and left out, and the rest is looked at as if it had not been there, so one reading finds every
error. Each names file, line, key, value and fix; tomli keeps no line numbers of keys, so `_lines` finds them again,
and where a key stands inside an inline table the line is that of the nearest header or key around it.

Written is what differs from the default, in the order of the tables of keys below, so equal configurations are equal
files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from itertools import count
from operator import itemgetter
from types import UnionType
from typing import Any, NamedTuple, TypeVar, get_args, get_origin

import msgspec
import tomli
import tomli_w

from nfqlb.errors import ConfigError, ConfigErrors, meant
from nfqlb.model import (
    Answers,
    Check,
    Health,
    Intent,
    Key,
    Options,
    OwnTimeouts,
    Persistence,
    Quorum,
    Real,
    Service,
    Sync,
    Timeouts,
    check_choice,
    key_of_mark,
    parse_real,
    parse_seconds,
    parse_time,
    parse_vip,
)
from nfqlb.runconfig import SETTINGS, Ha, RunConfig

Path = tuple[str | int, ...]
Types = Mapping[str, type]
T = TypeVar("T")


class Seconds(int):
    """Of a key: a whole number of them, or a text with a unit."""


class Time(float):
    """Of a key: as Seconds, which need not be whole."""


def _keys(kind: type[msgspec.Struct], *seconds: str) -> Types:
    """The fields of a value of the model as keys of the file; of `seconds` there are whole ones only."""
    return {
        field.encode_name: Seconds if field.name in seconds else _in_toml(field.type)
        for field in msgspec.structs.fields(kind)
    }


def _in_toml(kind: Any) -> type:
    if isinstance(kind, UnionType):  # with None
        kind = get_args(kind)[0]
    plain: type = get_origin(kind) or kind
    return {float: Time, tuple: list}.get(plain, plain)


TOP: Types = {
    "director": dict,
    "ha": dict,
    "timeouts": dict,
    "answers": dict,
    "options": dict,
    "sync": dict,
    "service": list,
}
DIRECTOR: Types = {name: kind for name, kind in _keys(RunConfig).items() if name in SETTINGS and name != "ha"}
HA = _keys(Ha, "preempt_delay")
TIMEOUTS = _keys(Timeouts, *Timeouts.__struct_fields__)
ANSWERS, OPTIONS = _keys(Answers), _keys(Options)
SYNC = _keys(Sync, "refresh_period")
SERVICE: Types = {
    "name": str,
    "vip": str,
    "fwmark": int,
    "family": str,
    "mode": str,
    "scheduler": str,
    "fallback": str,
    "budget": int,
    "shadow": str,
    "flags": list,
    "persistence": dict,
    "one_packet": bool,
    "mss": int,
    "health": dict,
    "offload": bool,
    "quorum": dict,
    "timeouts": dict,
    "connections_max": int,
    "slow_start": Seconds,
    "maglev_size": int,
    "real": list,
}
CHECK, HEALTH = _keys(Check), _keys(Health)
SHARED = ("interval", "timeout", "rise", "fall", "retry_delay", "warmup", "source")  # said once for several checks
QUORUM = _keys(Quorum)
PERSISTENCE = _keys(Persistence, "timeout")
FAMILIES = {"ipv4": 4, "ipv6": 6}
REAL: Types = {"address": str, "weight": int, "upper": int, "lower": int, "mode": str, "agent_port": int}
TYPE_NAMES = {
    str: "a string in quotes",
    bool: "true or false",
    int: "a whole number",
    Seconds: 'a whole number of seconds, or a time as in "5m"',
    Time: 'a number of seconds, or a time as in "500ms"',
    dict: "a table",
    list: "a list",
}
KEY_OF_FIELD = {"vip port": "vip", "protocol": "vip", "real": "address", "real port": "address"}
SECTIONS = (
    "timeout ",
    "timeouts ",
    "persistence ",
    "health ",
    "quorum ",
    "ha ",
)  # what the model puts before a field of theirs
STAND_IN = Key("tcp", "192.0.2.1", 0)  # for a service whose address is wrong, so that the rest of it is looked at

HEADER = re.compile(r"\s*(\[\[?)\s*([\w.-]+)\s*\]")
KEY = re.compile(r"\s*([\w.-]+)\s*=")


class Loaded(NamedTuple):
    """`director` holds the keys of the section that are there, and `ha`; each is a field of RunConfig."""

    director: dict[str, Any]
    intent: Intent


def loads(text: str, file: str, *, whole: bool = False) -> Loaded:
    """Read a configuration; `file` is its name for messages. ConfigErrors holds everything that is wrong with it; so it
    is with a `whole` one without a word on services.
    """
    try:
        tables = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        raise ConfigErrors([ConfigError("config", file, f"is not TOML: {error}")]) from None
    except ValueError:  # of int()
        raise ConfigErrors([ConfigError("config", file, "has a number of thousands of digits")]) from None
    except RecursionError:
        raise ConfigErrors([ConfigError("config", file, "is nested too deeply")]) from None
    if whole and "service" not in tables:
        fix = "write [[service]], or service = [] to delete every service"
        raise ConfigErrors([ConfigError("config", file, "says nothing of services", fix)])
    return _Reader(text, file).load(tables)


def dumps(loaded: Loaded) -> str:
    """The file that `loads` reads as this."""
    director, intent = loaded
    document = {
        "director": {key: director[key] for key in DIRECTOR if key in director},
        "ha": msgspec.to_builtins(director.get("ha", {})),
        "timeouts": _changed(intent.timeouts, TIMEOUTS),
        "answers": _changed(intent.answers, ANSWERS),
        "options": _changed(intent.options, OPTIONS),
        **({"sync": _sync(intent.sync)} if intent.sync else {}),
        "service": [_service(service) for service in intent.services],
    }
    return tomli_w.dumps({key: table for key, table in document.items() if table or key == "service"})


def _sync(sync: Sync) -> dict[str, Any]:
    """Its role is always there: a table without keys would be none."""
    return {"role": sync.role, **_changed(sync, SYNC, "role")}


def _service(service: Service) -> dict[str, Any]:
    if service.fwmark:
        family = {} if ":" not in service.address else {"family": "ipv6"}
        identity = {"fwmark": service.fwmark, **family}
    else:
        identity = {"vip": str(service.key)}
    reals = [{"address": str(real), **_changed(real, REAL, "address")} for real in service.reals]
    values = _changed(service, SERVICE, *identity, "fwmark")
    return {**identity, **values, **({"real": reals} if reals else {})}


def _changed(value: msgspec.Struct, known: Types, *but: str) -> dict[str, Any]:
    """The fields that have a key of their own and are not what they are by default."""
    defaults = {field.name: field.default for field in msgspec.structs.fields(value)}
    found = {key: getattr(value, key) for key in known if key in defaults and key not in but}
    return {key: msgspec.to_builtins(one) for key, one in found.items() if one != defaults[key]}


class _Reader:
    """`errors` are what was found so far, each with its line."""

    def __init__(self, text: str, file: str) -> None:
        self.text, self.file = text, file
        self.names: dict[str, Path] = {}
        self.errors: list[tuple[int, ConfigError]] = []

    @cached_property
    def lines(self) -> dict[Path, int]:
        return _lines(self.text)

    def load(self, tables: dict[str, Any]) -> Loaded:
        top = self.table((), tables, TOP)
        director = self.table(("director",), top.get("director", {}), DIRECTOR)
        if "ha" in top and (ha := self.ha(top["ha"])):
            director["ha"] = ha
        self.make(("director",), RunConfig, {"api": "", **director})
        timeouts = self.section("timeouts", top, TIMEOUTS, Timeouts)
        answers = self.section("answers", top, ANSWERS, Answers)
        options = self.section("options", top, OPTIONS, Options)
        services = {
            at: service
            for at, one in enumerate(top.get("service", []))
            if (service := self.service(("service", at), one))
        }
        intent = self.intent(services, timeouts, answers, options, self.sync(top))
        if self.errors:
            raise ConfigErrors(error for _, error in sorted(self.errors, key=itemgetter(0)))
        return Loaded(director, intent)

    def ha(self, table: object) -> Ha | None:
        values = self.table(("ha",), table, HA)
        missing = [key for key in ("interface", "vrid") if isinstance(table, dict) and key not in table]
        for key in missing:
            self.refuse(("ha", key), "", "is not there", "every director of the group says it")
        for key in ("peers", "addresses", "gateways"):
            values |= {key: self.texts(("ha",), values, key)} if key in values else {}
        made = self.make(("ha",), partial(Ha, interface="lo", vrid=1), values)
        return None if missing else made

    def section(self, name: str, top: dict[str, Any], known: Types, kind: Callable[..., T]) -> T:
        values = self.table((name,), top.get(name, {}), known)
        return self.make((name,), kind, values) or kind()

    def sync(self, top: dict[str, Any]) -> Sync | None:
        if "sync" not in top:
            return None
        values = self.table(("sync",), top["sync"], SYNC)
        return self.make(("sync",), Sync, {**values, "peers": self.texts(("sync",), values, "peers")})

    def make(self, path: Path, kind: Callable[..., T], values: dict[str, Any]) -> T | None:
        """A value of the model. What it refuses is noted and left out, to see what else is wrong; None if it must not
        be left out.
        """
        while True:
            try:
                return kind(**values)
            except ConfigError as error:
                key = self.note(path, error)
                if key not in values:
                    return None
                values = {name: value for name, value in values.items() if name != key}

    def intent(self, services: dict[int, Service], *parts: Any) -> Intent:
        while True:
            try:
                return Intent(tuple(services.values()), *parts)
            except ConfigError as error:  # two services want the same: the later one is too many
                at = max(at for at, service in services.items() if service.key == error.value)
                self.note(("service", at), error)
                del services[at]

    def service(self, path: Path, table: object) -> Service | None:
        values = self.table(path, table, SERVICE)
        name = values.get("name")
        if name is not None and self.names.setdefault(name, path) != path:
            self.refuse((*path, "name"), name, "is there twice", "give each service a name of its own")
            del values["name"]
        key = self.key(path, table, values)
        values["flags"] = self.texts(path, values, "flags")
        if "persistence" in values:
            where = (*path, "persistence")
            sticky = self.table(where, values["persistence"], PERSISTENCE)
            values["persistence"] = self.make(where, Persistence, sticky)
        if "health" in values:
            values["health"] = self.health((*path, "health"), values["health"])
        if "quorum" in values:
            where = (*path, "quorum")
            values["quorum"] = self.make(where, Quorum, self.table(where, values["quorum"], QUORUM))
        if "timeouts" in values:
            where = (*path, "timeouts")
            values["timeouts"] = self.make(where, OwnTimeouts, self.table(where, values["timeouts"], TIMEOUTS))
        places = ((*path, "real", at) for at in count())
        found = (
            (place, self.real(place, one, key or STAND_IN))
            for place, one in zip(places, values.pop("real", []), strict=False)
        )
        reals = {place: real for place, real in found if real}
        if key is None:
            self.make(path, partial(Service, STAND_IN.address), values)
            return None
        while True:
            identity: dict[str, Any] = {"address": key.address, "port": key.port, "protocol": key.protocol}
            identity |= {"last": key.last, "fwmark": key.mark}
            try:
                return Service(**identity, **values, reals=tuple(reals.values()))
            except ConfigError as error:
                place = next((place for place in reversed(reals) if _is_about(error, reals[place])), None)
                wrong = self.note(place or path, error)
                if place:
                    del reals[place]
                elif wrong in values:
                    del values[wrong]
                else:
                    return None

    def health(self, path: Path, table: object) -> Health | None:
        """One check, or several; what is shared is that of each that does not say otherwise."""
        values = self.table(path, table, HEALTH)
        several = values.pop("check", [])
        for key in [key for key in values if several and key in CHECK and key not in SHARED]:
            value = values.pop(key)
            fix = "give it to those that it is for"
            self.refuse((*path, key), _short(value), "stands beside checks of their own", fix)
        shared = {key: values.pop(key) for key in SHARED if several and key in values}
        checks = [self.check((*path, "check", at), one, shared) for at, one in enumerate(several)]
        if checks:
            values["checks"] = tuple(check for check in checks if check)
        return self.make(path, Health, {**values, **self.headers(path, values)})

    def check(self, path: Path, table: object, shared: Mapping[str, Any]) -> Check | None:
        values = self.table(path, table, CHECK)
        return self.make(path, Check, {**shared, **values, **self.headers(path, values)})

    def headers(self, path: Path, values: dict[str, Any]) -> dict[str, Any]:
        return {"headers": self.texts(path, values, "headers")} if "headers" in values else {}

    def texts(self, path: Path, values: dict[str, Any], key: str) -> tuple[str, ...]:
        """A list of strings, taken out of the values, as the model has it; nothing where it is not there."""
        found = values.pop(key, [])
        if all(isinstance(one, str) for one in found):
            return tuple(found)
        self.refuse((*path, key), _short(found), "is not a list of strings")
        return ()

    def key(self, path: Path, table: object, values: dict[str, Any]) -> Key | None:
        """What the service is addressed by, taken out of its values; None where that is wrong."""
        vip, mark, version = (values.pop(name, None) for name in ("vip", "fwmark", "family"))
        if not isinstance(table, dict):
            return None
        if ("vip" in table) == ("fwmark" in table):
            problem = "has a vip and a fwmark" if "vip" in table else "has no vip"
            self.refuse(path, "", problem, 'write vip = "ADDRESS:PORT/tcp", or fwmark = N')
            return None
        if vip is None and mark is None:  # of another type
            return None
        try:
            if vip is not None:
                if version is not None:
                    raise ConfigError("family", version, "belongs to a fwmark", "the vip says its own family")
                key = parse_vip(vip)
            else:
                check_choice("family", version or "ipv4", tuple(FAMILIES))
                key = key_of_mark(mark, FAMILIES[version or "ipv4"])
            Service(key.address, key.port, key.protocol, last=key.last, fwmark=key.mark)
        except ConfigError as error:
            self.note(path, error)
            return None
        return key

    def real(self, path: Path, table: object, service: Key) -> Real | None:
        values = self.table(path, table, REAL)
        end = None
        if "address" in values:
            end = self.end(path, values.pop("address"), service)
        elif isinstance(table, dict) and "address" not in table:
            self.refuse(path, "", "has no address", 'write address = "ADDRESS:PORT"')
        made = self.make(path, partial(Real, *(end or STAND_IN[1:3])), values)
        return made if end else None

    def end(self, path: Path, text: str, service: Key) -> tuple[str, int] | None:
        if "," in text:
            self.refuse((*path, "address"), text, "holds more than the address", "write weight = N")
            return None
        try:
            real = parse_real(text, service)
        except ConfigError as error:
            self.note(path, error)
            return None
        return real.address, real.port

    def table(self, path: Path, table: object, known: Types) -> dict[str, Any]:
        """What is right in the table: known keys of the right type; nothing if it is no table."""
        if not isinstance(table, dict):
            self.refuse(path, table, "is not a table")
            return {}
        found = {}
        for key, value in table.items():
            where = (*path, key)
            if key not in known:
                self.refuse(
                    where, _short(value), "is not known here", f"{meant(key, known)}the keys are {', '.join(known)}"
                )
            elif known[key] in (Seconds, Time) and isinstance(value, str):
                read = parse_seconds if known[key] is Seconds else parse_time
                try:
                    found[key] = read(key, value)
                except ConfigError as error:
                    self.refuse(where, _short(value), error.problem, error.fix)
            elif not _is(value, known[key]):
                self.refuse(where, _short(value), f"is not {TYPE_NAMES[known[key]]}")
            else:
                found[key] = value
        return found

    def note(self, path: Path, error: ConfigError) -> str:
        """Keep an error of the model, with its place in the file; the key that it is about."""
        field = next((error.field[len(one) :] for one in SECTIONS if error.field.startswith(one)), error.field)
        key = KEY_OF_FIELD.get(field, field)
        for section in ("health", "quorum", "timeouts", "persistence"):
            if error.field.startswith(f"{section} ") and section not in path:  # told by the service
                self.refuse((*path, section, key), error.value, error.problem, error.fix)
                return section
        self.refuse((*path, key), error.value, error.problem, error.fix)
        return key

    def refuse(self, path: Path, value: object, problem: str, fix: str = "") -> None:
        known = (self.lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in self.lines)
        line = next(known, 0)
        place = f"{self.file}:{line}" if line else self.file
        field = f"{place}: {'.'.join(step for step in path if isinstance(step, str))}"
        self.errors.append((line, ConfigError(field, value, problem, fix)))


def _is(value: object, kind: type) -> bool:
    """TOML has whole numbers and others; a time may be both."""
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, (int, float) if kind is Time else int if kind is Seconds else kind)


def _is_about(error: ConfigError, real: Real) -> bool:
    return error.value == (real.port if error.field == "real port" else real)


def _lines(text: str) -> dict[Path, int]:
    """The line of each header and key, by path; elements of an array of tables count from 0."""
    lines: dict[Path, int] = {}
    counts: dict[Path, int] = {}
    table: Path = ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := HEADER.match(line):
            table = ()
            *outer, last = header[2].split(".")
            for name in outer:
                table = (*table, name)
                if table in counts:
                    table = (*table, counts[table])
            table = (*table, last)
            if header[1] == "[[":
                counts[table] = counts.get(table, -1) + 1
                table = (*table, counts[table])
            lines.setdefault(table, number)
        elif key := KEY.match(line):
            lines.setdefault((*table, *key[1].split(".")), number)
    return lines


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."
