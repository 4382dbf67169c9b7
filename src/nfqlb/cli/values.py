"""Options of the command line as values of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nfqlb.errors import ConfigError, meant
from nfqlb.model import OwnTimeouts, Persistence, Service, parse_real, parse_seconds, parse_vip


def service(
    vip: str, reals: Sequence[str], mode: str | None, scheduler: str | None, flags: Sequence[str] = (), **more: object
) -> Service:
    """`more` are further fields of the service; those that are None have their defaults."""
    key = parse_vip(vip)
    options: dict[str, Any] = {"mode": mode, "scheduler": scheduler, **more}
    chosen = {field: value for field, value in options.items() if value is not None}
    servers = tuple(parse_real(real, key) for real in reals)
    return Service(
        key.address, key.port, key.protocol, reals=servers, last=key.last, fwmark=key.mark, flags=tuple(flags), **chosen
    )


def persistence(
    seconds: int | None, before: Mapping[str, Any] | None = None, **fields: int | str | None
) -> Persistence | None:
    """That of a service that had the one `before`, with what is not None."""
    chosen = {field: value for field, value in fields.items() if value is not None}
    if seconds is None and before is None:
        for field, value in chosen.items():
            name = "persistence-engine" if field == "engine" else field
            raise ConfigError(name, value, "means nothing without persistence", "give --persistent TIME, too")
        return None
    timeout = {} if seconds is None else {"timeout": seconds}
    return Persistence(**{**(before or {}), **timeout, **chosen})


def own_timeouts(texts: Sequence[str]) -> OwnTimeouts | None:
    """Read NAME=TIME, as often as it is there."""
    found: dict[str, int] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if name not in OwnTimeouts.__struct_fields__:
            fix = f"{meant(name, OwnTimeouts.__struct_fields__)}write {'=, '.join(OwnTimeouts.__struct_fields__)}="
            raise ConfigError("timeout", text, "is not known", fix)
        if name in found:
            raise ConfigError("timeout", text, "is there twice", "give each timeout once")
        found[name] = parse_seconds(f"timeout {name}", value)
    return OwnTimeouts(**found) if found else None


def given(**options: object) -> dict[str, object]:
    """Those that are not None; it takes one at least to change anything."""
    found = {name: value for name, value in options.items() if value is not None}
    if not found:
        names = " or ".join(
            f"--{name if name == 'mss' else name.removesuffix('s').replace('_', '-')}" for name in options
        )
        raise ConfigError("edit", "", "says nothing to change", f"give {names}")
    return found
