"""The answers of the API as text: titles, then rows, in the columns that `ipvsadm` taught its users. No colour here.

Strategy: `width` is that of the terminal, 0 where there is none: then a thing is a line, however long. What is too wide
for a terminal goes on below, further in, and nothing is cut but the last digits of counters, as ipvsadm does it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from nfqlb.config.ipvsadm import scaled

SERVER_WIDTH = 28  # as in ipvsadm; more where an IPv6 address needs it
COUNTER_WIDTH = 8
COUNTERS = {"conns": "Conns", "inpkts": "InPkts", "outpkts": "OutPkts", "inbytes": "InBytes", "outbytes": "OutBytes"}
CONNECTION_COLUMNS = {"Pro": 3, "Expire": 6, "State": 11, "Client": 18, "Virtual": 18, "Destination": 0}
SCRIPT_COUNTS = ("chosen", "declined", "failed", "wrong", "late", "rested")
REMOTE = "  -> RemoteAddress:Port"
VALUES = "Forward Weight ActiveConn InActConn"
MAGLEV_SIZE = 4093  # the default
KEY_WIDTH = 12
NARROW = len("  -> ") + SERVER_WIDTH

Answer = Mapping[str, Any]


class Table(NamedTuple):
    titles: Sequence[str]
    rows: Sequence[str]


def services(answer: Answer, width: int = 0) -> Table:
    found: list[tuple[str, str]] = []
    for service in answer["services"]:
        found.append((" ".join([_virtual(service["key"]), service["scheduler"], *_flags(service)]), ""))
        for real in service["reals"]:
            rest = f"{real['mode'] or service['mode']:<7} {real['weight']:<6} {real['active']:<10} {real['inactive']}"
            if real.get("health") not in (None, "", "up"):
                said = f": {real['why']}" if real["health"] == "maintenance" and real.get("why") else ""
                rest = f"{rest:<{len(VALUES)}} {real['health']}{said}"
            if real.get("ramping"):
                rest = f"{rest:<{len(VALUES)}} ramping {real['ramping']}"
            if real.get("reply_us"):
                rest = f"{rest:<{len(VALUES)}} {real['reply_us'] / 1000:.1f} ms"
            found.append((_remote(real), rest))
    columns = VALUES
    first = _first_width(answer)
    if width and first + 1 + max([len(columns), *(len(rest) for _, rest in found)]) > width:
        first = NARROW
    rows = [row for name, rest in found for row in (_beside(name, rest, first) if rest else _folded(name, width))]
    return Table(["Prot LocalAddress:Port Scheduler Flags", f"{REMOTE:<{first}} {columns}"], rows)


def _flags(service: Answer) -> Iterator[str]:
    """What ipvsadm writes behind the scheduler, and what is not as it is by default of the rest."""
    if service["shadow"]:
        yield f"shadow {service['shadow']}"
    if service["flags"]:
        yield f"({','.join(service['flags'])})"
    if sticky := service["persistence"]:
        yield f"persistent {sticky.get('timeout', 300)}"
        if sticky.get("netmask"):
            yield f"mask /{sticky['netmask']}"
        if sticky.get("engine"):
            yield f"pe {sticky['engine']}"
    if service["one_packet"]:
        yield "ops"
    if service["mss"]:
        yield f"mss {service['mss']}"
    if service.get("connections_max"):
        yield f"max {service['connections_max']}"
    if service.get("slow_start"):
        yield f"slow-start {service['slow_start']}"
    if service.get("maglev_size", MAGLEV_SIZE) != MAGLEV_SIZE:
        yield f"maglev-size {service['maglev_size']}"
    if own := service.get("timeouts"):
        yield "timeouts " + ",".join(f"{name}={seconds}" for name, seconds in own.items())
    if not service["offload"]:
        yield "no-offload"
    if service.get("name"):
        yield f"name {service['name']}"


def stats(answer: Answer, width: int = 0) -> Table:
    lines: list[tuple[str, Mapping[str, int]]] = []
    for service in answer["services"]:
        lines.append((_virtual(service["key"]), service))
        lines += [(_remote(real), real) for real in service["reals"]]
    first = max([_first_width(answer), *(len(name) for name, _ in lines)])
    widths = [max([COUNTER_WIDTH, *(len(str(values[key])) for _, values in lines)]) for key in COUNTERS]
    figure: Callable[[int], str] = str
    if width and first + sum(widths) + len(widths) > width:
        first, widths, figure = NARROW, [COUNTER_WIDTH] * len(widths), lambda number: scaled(number).strip()

    def cells(texts: Iterable[str]) -> str:
        return " ".join(f"{text:>{width}}" for text, width in zip(texts, widths, strict=True))

    rows = ((name, cells(figure(values[key]) for key in COUNTERS)) for name, values in lines)
    titles = [f"{'Prot LocalAddress:Port':<{first}} {cells(COUNTERS.values())}", REMOTE]
    return Table(titles, [line for name, rest in rows for line in _beside(name, rest, first)])


def connections(answer: Answer, width: int = 0) -> Table:
    lines = [
        (
            row["protocol"].upper(),
            "{:02}:{:02}".format(*divmod(row["expires"], 60)),
            row["state"],
            row["client"],
            row["virtual"],
            row["destination"],
        )
        for row in answer["connections"]
    ]
    title, *rows = _columns([tuple(CONNECTION_COLUMNS), *lines], tuple(CONNECTION_COLUMNS.values()))
    if width and max(map(len, (title, *rows))) > width:
        names = tuple(CONNECTION_COLUMNS)
        tops = _columns([names[:4], *(line[:4] for line in lines)], tuple(CONNECTION_COLUMNS.values())[:4])
        tails = [(f"    to {virtual}", f"    -> {server}") for *_, virtual, server in (names, *lines)]
        titles, *below = ([top, *tail] for top, tail in zip(tops, tails, strict=True))
        return Table(titles, [line for entry in below for line in entry])
    return Table([title], rows)


def health(answer: Answer, width: int = 0) -> Table:
    rows: list[str] = []
    first = NARROW if width else max([NARROW, *(len(f"  -> {one['real']}") for one in answer["health"])])
    service = ""
    for one in answer["health"]:
        if one["service"] != service:
            service = one["service"]
            rows += _folded(f"{_virtual(service)} {one['type']}", width)
        words = f"{one['condition']:<9} {_span(one['seconds']):>8}"
        why = f" {one['count']} failed: {one['why']}" if one["condition"] in ("failing", "down") and one["why"] else ""
        lines = _beside(f"  -> {one['real']}", words + why, first)
        lines += [f"       {_check(check)}" for check in one["checks"] if len(one["checks"]) > 1 or check["trouble"]]
        rows += lines if not width else [part for line in lines for part in _folded(line, width)]
    return Table(["Prot LocalAddress:Port Check", f"{REMOTE:<{first}} Condition    since"], rows)


def _check(check: Answer) -> str:
    """One of several checks, and what there is to say about it."""
    failed = f"{check['count']} failed: {check['why']}" if check["condition"] in ("failing", "down") else ""
    return f"{check['type']:<8} {check['condition']:<9} {check['trouble'] or failed}".rstrip()


def schedulers(answer: Answer, width: int = 0) -> Table:
    rows: list[str] = []
    for one in answer["schedulers"]:
        rows += _folded(f"{_virtual(one['service'])} {one['scheduler']}", width)
        rows += _script(one["script"], one["fallback"], width)
        if shadow := one["shadow"]:
            share = 100 * shadow["differed"] / max(1, shadow["compared"])
            counts = f"{shadow['differed']} of {shadow['compared']} connections differ ({share:.1f} %)"
            rows += _folded(f"  shadow {shadow['scheduler']}: {counts}", width)
            rows += _script(shadow["script"], one["fallback"], width)
            for real in shadow["reals"]:
                rows += _folded(f"  -> {real['endpoint']} got {real['live']}, would have got {real['shadow']}", width)
            for last in shadow["last"]:
                ends = f"{last['live'] or 'none'}, would have got {last['shadow'] or 'none'}"
                rows += _folded(f"     {last['client']} got {ends}", width)
    return Table(["Prot LocalAddress:Port Scheduler"], rows)


def _script(script: Answer | None, fallback: str, width: int) -> list[str]:
    if not script:
        return []
    counts = ", ".join(f"{script[name]} {name}" for name in SCRIPT_COUNTS)
    rows = _folded(f"  {counts}; {script['mean']} us, at most {script['longest']}; else {fallback}", width)
    return rows + (_folded(f"  last error: {script['error']}", width) if script["error"] else [])


def reasons(answer: Answer, width: int = 0) -> Table:
    """Those that occurred, the most frequent first."""
    counted = sorted(answer["reasons"].items(), key=lambda item: (-item[1], item[0]))
    title, *rows = _columns([("Reason", "Packets"), *((name, str(count)) for name, count in counted if count)], (18, 0))
    return Table([title], rows)


def daemon(answer: Answer, width: int = 0) -> Table:
    lines = []
    for key, value in answer.items():
        values = value if isinstance(value, list) else [value]
        texts = [_words(one) for one in values] or ["none"]
        texts = [part for text in texts for part in _folded(text, width and width - KEY_WIDTH - 1, "  ")]
        lines += [(key if first == 0 else "", text) for first, text in enumerate(texts)]
    return Table([], _columns(lines, (KEY_WIDTH, 0)))


def _first_width(answer: Answer) -> int:
    endpoints = (real["endpoint"] for service in answer["services"] for real in service["reals"])
    return len("  -> ") + max([SERVER_WIDTH, *map(len, endpoints)])


def _beside(name: str, rest: str, first: int) -> list[str]:
    """A row, or two where the name is too long for the first column."""
    return [f"{name:<{first}} {rest}"] if len(name) <= first else [name, f"{'':<{first}} {rest}"]


def _folded(text: str, width: int, indent: str = "     ") -> list[str]:
    """The words of a line, in as many as it takes; no word is cut."""
    if not width or len(text) <= width:
        return [text]
    found = textwrap.wrap(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return found or [text]


def _span(seconds: int) -> str:
    """3s, 5m, 2h, 9d."""
    for size, letter in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds // size}{letter}"
    return f"{seconds}s"


def _virtual(key: str) -> str:
    """As ipvsadm writes it: `TCP  10.0.0.1:80`, `FWM  7 IPv6`."""
    if key.startswith("fwmark:"):
        return f"FWM  {key.removeprefix('fwmark:').replace('/ipv6', ' IPv6')}"
    where, _, protocol = key.rpartition("/")
    return f"{protocol.upper():<4} {where}"


def _remote(real: Answer) -> str:
    return f"  -> {real['endpoint']}"


def _columns(lines: Sequence[Sequence[str]], least: Sequence[int]) -> list[str]:
    """Each column as wide as its widest cell, at least `least`."""
    widths = [max(low, *map(len, cells)) for low, cells in zip(least, zip(*lines, strict=True), strict=True)]
    return [" ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def _words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(one)}" for key, one in value.items())
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
