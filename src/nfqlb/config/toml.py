"""The configuration file of `nfqlb run --config`, in TOML: text in, options of the director and an intent out. No I/O.

Strategy: tomllib reads, the values of the model check themselves, and what is here is the map between keys and fields.
A key that nobody knows is refused, so is one that this version cannot honour yet: a file never means less than it
says. Each error names file, line, key, value and fix; tomllib keeps no line numbers of keys, so `_lines` finds them
again, and where a key stands inside an inline table the line is that of the nearest header or key around it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import msgspec

from nfqlb.errors import ConfigError
from nfqlb.model import (
    Answers,
    Intent,
    Key,
    Persistence,
    Real,
    Service,
    Timeouts,
    check_choice,
    key_of_mark,
    parse_real,
    parse_vip,
)
from nfqlb.runconfig import RunConfig

Path = tuple[str | int, ...]
Types = Mapping[str, type]

TOP: Types = {"director": dict, "timeouts": dict, "answers": dict, "service": list}
DIRECTOR: Types = {
    "name": str,
    "api": str,
    "vip_dev": str,
    "queue": int,
    "workers": int,
    "engine": str,
    "diverter": str,
    "firewall": str,
    "connections": int,
    "dr_by": str,
    "dr_mask": int,
    "metrics": str,
    "log_format": str,
}
TIMEOUTS: Types = {"tcp": int, "tcp_fin": int, "udp": int}
ANSWERS: Types = {"no_server": str, "no_connection": str, "sloppy_tcp": bool}
SERVICE: Types = {
    "name": str,
    "vip": str,
    "fwmark": int,
    "family": str,
    "mode": str,
    "scheduler": str,
    "flags": list,
    "persistence": dict,
    "one_packet": bool,
    "mss": int,
    "real": list,
}
PERSISTENCE: Types = {"timeout": int, "netmask": int, "quiescent": str}
FAMILIES = {"ipv4": 4, "ipv6": 6}
REAL: Types = {"address": str, "weight": int, "upper": int, "lower": int}
LATER = {
    "health": "health checks",
    "offload": "offload",
}
TYPE_NAMES = {
    str: "a string in quotes",
    bool: "true or false",
    int: "a whole number",
    dict: "a table",
    list: "a list",
}
KEY_OF_FIELD = {
    **{f"persistence {key}": f"persistence.{key}" for key in PERSISTENCE},
    "vip port": "vip",
    "protocol": "vip",
    "real": "address",
    "real port": "address",
}

HEADER = re.compile(r"\s*(\[\[?)\s*([\w.-]+)\s*\]")
KEY = re.compile(r"\s*([\w.-]+)\s*=")


class Loaded(NamedTuple):
    """`director` holds the keys of the section that are there; each is a field of RunConfig."""

    director: dict[str, Any]
    intent: Intent


def loads(text: str, file: str) -> Loaded:
    """Read a configuration; `file` is its name for messages."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError("config", file, f"is not TOML: {error}") from None
    return _Reader(file, _lines(text)).load(tables)


class _Reader:
    def __init__(self, file: str, lines: Mapping[Path, int]) -> None:
        self.file, self.lines = file, lines
        self.names: dict[str, Path] = {}

    def load(self, tables: dict[str, Any]) -> Loaded:
        top = self.table((), tables, TOP)
        director = self.table(("director",), top.get("director", {}), DIRECTOR)
        with self.at(("director",)):
            RunConfig(**{"api": "", **director})
        timeouts = self.table(("timeouts",), top.get("timeouts", {}), TIMEOUTS)
        with self.at(("timeouts",)):
            times = Timeouts(**timeouts)
        answers = self.table(("answers",), top.get("answers", {}), ANSWERS)
        with self.at(("answers",)):
            told = Answers(**answers)
        services = [self.service(("service", index), one) for index, one in enumerate(top.get("service", []))]
        keys = [service.key for service in services]
        try:
            return Loaded(director, Intent(tuple(services), times, told))
        except ConfigError as error:  # two services want the same: the later one is too many
            at = max(index for index, key in enumerate(keys) if key == error.value)
            raise self.error(("service", at, "vip"), error.value, error.problem, error.fix) from None

    def service(self, path: Path, table: object) -> Service:
        values = self.table(path, table, SERVICE)
        if ("vip" in values) == ("fwmark" in values):
            problem = "has a vip and a fwmark" if "vip" in values else "has no vip"
            raise self.error(path, "", problem, 'write vip = "ADDRESS:PORT/tcp", or fwmark = N')
        name = values.get("name")
        if name is not None and self.names.setdefault(name, path) != path:
            raise self.error((*path, "name"), name, "is there twice", "give each service a name of its own")
        with self.at(path):
            key = self.key(values)
        reals = [self.real((*path, "real", index), one, key) for index, one in enumerate(values.pop("real", []))]
        flags = values.get("flags", [])
        if not all(isinstance(flag, str) for flag in flags):
            raise self.error((*path, "flags"), _short(flags), "is not a list of strings")
        if "persistence" in values:
            table = self.table((*path, "persistence"), values["persistence"], PERSISTENCE)
            with self.at(path):
                values["persistence"] = Persistence(**table)
        with self.at(path, reals):
            values |= {"flags": tuple(flags)}
            values |= {"reals": tuple(reals), "last": key.last, "fwmark": key.mark}
            return Service(key.address, key.port, key.protocol, **values)

    def key(self, values: dict[str, Any]) -> Key:
        """What the service is addressed by, taken out of its table."""
        if "vip" in values:
            if "family" in values:
                raise ConfigError("family", values["family"], "belongs to a fwmark", "the vip says its own family")
            return parse_vip(values.pop("vip"))
        family = values.pop("family", "ipv4")
        check_choice("family", family, tuple(FAMILIES))
        return key_of_mark(values.pop("fwmark"), FAMILIES[family])

    def real(self, path: Path, table: object, service: Key) -> Real:
        values = self.table(path, table, REAL)
        if "address" not in values:
            raise self.error(path, "", "has no address", 'write address = "ADDRESS:PORT"')
        if "," in values["address"]:
            raise self.error((*path, "address"), values["address"], "holds more than the address", "write weight = N")
        with self.at(path):
            real = parse_real(values["address"], service)
            del values["address"]
            return msgspec.structs.replace(real, **values)

    def table(self, path: Path, table: object, known: Types) -> dict[str, Any]:
        """The table, if it is one and has only known keys of the right type."""
        if not isinstance(table, dict):
            raise self.error(path, table, "is not a table")
        for key, value in table.items():
            where = (*path, key)
            if key in LATER:
                fix = "take it out of the file"
                raise self.error(where, _short(value), f"this version of nfqlb does not do {LATER[key]}", fix)
            if key not in known:
                raise self.error(where, _short(value), "is not known here", f"the keys are {', '.join(known)}")
            if not isinstance(value, known[key]) or isinstance(value, bool) != (known[key] is bool):
                raise self.error(where, _short(value), f"is not {TYPE_NAMES[known[key]]}")
        return dict(table)

    @contextmanager
    def at(self, path: Path, reals: list[Real] | None = None) -> Iterator[None]:
        """Errors of the model, with the place in the file."""
        try:
            yield
        except ConfigError as error:
            field = error.field.removeprefix("timeout ")
            if isinstance(error.value, Real) and reals:  # of two equal ones, the second is too many
                path = (*path, "real", len(reals) - 1 - reals[::-1].index(error.value))
            where = KEY_OF_FIELD.get(field, field).split(".")
            raise self.error((*path, *where), error.value, error.problem, error.fix) from None

    def error(self, path: Path, value: object, problem: str, fix: str = "") -> ConfigError:
        known = (self.lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in self.lines)
        place = f"{self.file}:{line}" if (line := next(known, 0)) else self.file
        return ConfigError(f"{place}: {'.'.join(step for step in path if isinstance(step, str))}", value, problem, fix)


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
