"""The answers of the API as text: titles, then rows, in the columns that `ipvsadm` taught its users. No colour here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

SERVER_WIDTH = 28  # as in ipvsadm; more where an IPv6 address needs it
COUNTER_WIDTH = 8
COUNTERS = {"conns": "Conns", "inpkts": "InPkts", "outpkts": "OutPkts", "inbytes": "InBytes", "outbytes": "OutBytes"}
CONNECTION_COLUMNS = {"Pro": 3, "Expire": 6, "State": 11, "Client": 18, "Virtual": 18, "Destination": 0}
REMOTE = "  -> RemoteAddress:Port"

Answer = Mapping[str, Any]


class Table(NamedTuple):
    titles: Sequence[str]
    rows: Sequence[str]


def services(answer: Answer) -> Table:
    rows = []
    width = _first_width(answer)
    for service in answer["services"]:
        rows.append(" ".join([_virtual(service["key"]), service["scheduler"], *_flags(service)]))
        for real in service["reals"]:
            first = f"{_remote(real):<{width}} {real['mode'] or service['mode']:<7} {real['weight']:<6}"
            rows.append(f"{first} {real['active']:<10} {real['inactive']}")
    columns = f"{REMOTE:<{width}} Forward Weight ActiveConn InActConn"
    return Table(["Prot LocalAddress:Port Scheduler Flags", columns], rows)


def _flags(service: Answer) -> Iterator[str]:
    """What ipvsadm writes behind the scheduler, and the MSS."""
    if service["flags"]:
        yield f"({','.join(service['flags'])})"
    if sticky := service["persistence"]:
        yield f"persistent {sticky.get('timeout', 300)}"
        if sticky.get("netmask"):
            yield f"mask /{sticky['netmask']}"
    if service["one_packet"]:
        yield "ops"
    if service["mss"]:
        yield f"mss {service['mss']}"


def stats(answer: Answer) -> Table:
    lines: list[tuple[str, Mapping[str, int]]] = []
    for service in answer["services"]:
        lines.append((_virtual(service["key"]), service))
        lines += [(_remote(real), real) for real in service["reals"]]
    first = max([_first_width(answer), *(len(name) for name, _ in lines)])
    widths = [max([COUNTER_WIDTH, *(len(str(values[key])) for _, values in lines)]) for key in COUNTERS]

    def row(name: str, cells: Iterable[object]) -> str:
        return " ".join([f"{name:<{first}}", *(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))])

    titles = [row("Prot LocalAddress:Port", COUNTERS.values()), REMOTE]
    return Table(titles, [row(name, (values[key] for key in COUNTERS)) for name, values in lines])


def connections(answer: Answer) -> Table:
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
    return Table([title], rows)


def reasons(answer: Answer) -> Table:
    """Those that occurred, the most frequent first."""
    counted = sorted(answer["reasons"].items(), key=lambda item: (-item[1], item[0]))
    title, *rows = _columns([("Reason", "Packets"), *((name, str(count)) for name, count in counted if count)], (18, 0))
    return Table([title], rows)


def daemon(answer: Answer) -> Table:
    lines = []
    for key, value in answer.items():
        values = value if isinstance(value, list) else [value]
        texts = [_words(one) for one in values] or ["none"]
        lines += [(key if first == 0 else "", text) for first, text in enumerate(texts)]
    return Table([], _columns(lines, (12, 0)))


def _first_width(answer: Answer) -> int:
    endpoints = (real["endpoint"] for service in answer["services"] for real in service["reals"])
    return len("  -> ") + max([SERVER_WIDTH, *map(len, endpoints)])


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
