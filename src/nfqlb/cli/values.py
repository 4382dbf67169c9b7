"""Options of the command line as values of the model."""

from __future__ import annotations

from collections.abc import Sequence

from nfqlb.model import Service, parse_real, parse_vip


def service(vip: str, reals: Sequence[str], mode: str | None, scheduler: str | None) -> Service:
    key = parse_vip(vip)
    chosen = {field: value for field, value in (("mode", mode), ("scheduler", scheduler)) if value is not None}
    servers = tuple(parse_real(real, key) for real in reals)
    return Service(key.address, key.port, key.protocol, reals=servers, last=key.last, fwmark=key.mark, **chosen)
