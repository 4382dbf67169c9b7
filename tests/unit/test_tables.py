"""How the answers of the API look as text."""

from __future__ import annotations

import pytest

from nfqlb.cli import tables

PLAIN: dict[str, object] = {"flags": [], "persistence": None, "one_packet": False, "mss": 0, "offload": True}
PLAIN |= {"shadow": ""}


def text(table: tables.Table) -> str:
    return "\n".join([*table.titles, *table.rows]) + "\n"


def real(endpoint: str, **values: int | str) -> dict[str, object]:
    return {"endpoint": endpoint, "mode": "", **values}


def test_services_look_as_ipvsadm_lists_them() -> None:
    answer = {
        "services": [
            {
                "key": "203.0.113.10:80/tcp",
                "mode": "nat",
                "scheduler": "wlc",
                **PLAIN,
                "flags": ["sh-port"],
                "persistence": {"timeout": 600, "netmask": 24},
                "mss": 1400,
                "offload": False,
                "timeouts": {"tcp": 60, "tcp_fin": 9},
                "connections_max": 5,
                "slow_start": 30,
                "maglev_size": 65537,
                "reals": [
                    real("10.0.1.11:8080", weight=3, active=2, inactive=50, ramping=2, reply_us=12_345),
                    real("10.0.1.12:8080", weight=0, active=0, inactive=1234567, health="maintenance", why="disk"),
                ],
            },
            {"key": "203.0.113.10:53/udp", "mode": "nat", "scheduler": "rr", **PLAIN, "reals": []},
        ]
    }
    assert text(tables.services(answer)) == (
        "Prot LocalAddress:Port Scheduler Flags\n"
        "  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn\n"
        "TCP  203.0.113.10:80 wlc (sh-port) persistent 600 mask /24 mss 1400 max 5 slow-start 30 maglev-size 65537 "
        "timeouts tcp=60,tcp_fin=9 no-offload\n"
        "  -> 10.0.1.11:8080               nat     3      2          50        ramping 2 12.3 ms\n"
        "  -> 10.0.1.12:8080               nat     0      0          1234567   maintenance: disk\n"
        "UDP  203.0.113.10:53 rr\n"
    )


def test_a_long_ipv6_address_moves_the_columns() -> None:
    server = real("[2001:db8:1111:2222:3333:4444:5555:6666]:8080", weight=1, active=0, inactive=0)
    service = {"key": "[2001:db8::10]:80/tcp", "mode": "nat", "scheduler": "rr", **PLAIN, "reals": [server]}
    answer = {"services": [service]}
    assert text(tables.services(answer)) == (
        "Prot LocalAddress:Port Scheduler Flags\n"
        "  -> RemoteAddress:Port                            Forward Weight ActiveConn InActConn\n"
        "TCP  [2001:db8::10]:80 rr\n"
        "  -> [2001:db8:1111:2222:3333:4444:5555:6666]:8080 nat     1      0          0\n"
    )


def test_without_services_there_are_only_titles() -> None:
    assert tables.services({"services": []}).rows == []
    assert tables.stats({"services": []}).rows == []
    assert tables.connections({"connections": []}).rows == []


def test_stats_are_exact_and_aligned_on_the_right() -> None:
    counters = {"conns": 10, "inpkts": 80, "outpkts": 60, "inbytes": 8000, "outbytes": 60_000_000_000}
    answer = {"services": [{"key": "203.0.113.10:80/tcp", **counters, "reals": [real("10.0.1.11:8080", **counters)]}]}
    assert text(tables.stats(answer)) == (
        "Prot LocalAddress:Port               Conns   InPkts  OutPkts  InBytes    OutBytes\n"
        "  -> RemoteAddress:Port\n"
        "TCP  203.0.113.10:80                    10       80       60     8000 60000000000\n"
        "  -> 10.0.1.11:8080                     10       80       60     8000 60000000000\n"
    )


def test_connections_say_in_minutes_when_they_expire() -> None:
    ends = {"client": "198.51.100.1:40001", "virtual": "203.0.113.10:80", "destination": "10.0.1.11:8080"}
    answer = {
        "connections": [
            {"protocol": "tcp", "expires": 895, "state": "ESTABLISHED", **ends},
            {"protocol": "udp", "expires": 6000, "state": "UDP", **ends, "client": "[2001:db8::1:2:3]:40001"},
        ]
    }
    assert text(tables.connections(answer)) == (
        "Pro Expire State       Client                  Virtual            Destination\n"
        "TCP 14:55  ESTABLISHED 198.51.100.1:40001      203.0.113.10:80    10.0.1.11:8080\n"
        "UDP 100:00 UDP         [2001:db8::1:2:3]:40001 203.0.113.10:80    10.0.1.11:8080\n"
    )


def test_reasons_that_occurred_come_by_frequency() -> None:
    answer = {"reasons": {"malformed": 0, "no_service": 4, "forwarded": 156, "fragment": 4}}
    assert text(tables.reasons(answer)) == (
        "Reason             Packets\nforwarded          156\nfragment           4\nno_service         4\n"
    )


def test_the_daemon_is_told_line_by_line() -> None:
    answer = {
        "name": "main",
        "vip_dev": None,
        "edited": True,
        "table": {"capacity": 1024, "used": 3},
        "queues": [{"number": 0, "class": "gso"}, {"number": 1, "class": "plain"}],
        "warnings": [],
    }
    assert text(tables.daemon(answer)) == (
        "name         main\n"
        "vip_dev      none\n"
        "edited       yes\n"
        "table        capacity 1024, used 3\n"
        "queues       number 0, class gso\n"
        "             number 1, class plain\n"
        "warnings     none\n"
    )


LONG = "[2001:db8:1111:2222:3333:4444:5555:666{}]:65535"
NAME = "a-name-that-has-forty-characters-in-all-"
COUNTERS = {"conns": 10**6, "inpkts": 123456789012, "outpkts": 60, "inbytes": 10**15, "outbytes": 99_999_999}
WIDE: dict[str, dict[str, object]] = {
    "services": {
        "services": [
            {
                "key": LONG.format(0) + "/tcp",
                "mode": "nat",
                "scheduler": "mh",
                **PLAIN,
                "flags": ["mh-fallback", "mh-port"],
                "persistence": {"timeout": 600, "netmask": 64},
                "name": NAME,
                "reals": [real(LONG.format(at), weight=2**31 - 1, active=12345678, inactive=9) for at in (1, 2)],
            }
        ]
    },
    "stats": {"services": [{"key": LONG.format(0) + "/udp", **COUNTERS, "reals": [real(LONG.format(1), **COUNTERS)]}]},
    "connections": {
        "connections": [
            {
                "protocol": "tcp",
                "expires": 6000,
                "state": "ESTABLISHED",
                **{name: LONG.format(at) for at, name in enumerate(("client", "virtual", "destination"))},
            }
        ]
    },
    "reasons": {"reasons": {"error_forwarded": 2**63}},
    "daemon": {
        "name": NAME,
        "state": "/var/lib/nfqlb/" + NAME,
        "warnings": [f"the VIP {LONG.format(3)} is neither an address of this machine nor routed here: use --vip-dev"],
        "queues": [{"number": 65535, "class": "plain", "packets": 2**63, "waiting": 16384, "dropped": {"queue": 0}}],
    },
}


@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize("what", list(WIDE))
def test_every_table_fits_the_terminal_and_cuts_no_name(what: str, width: int) -> None:
    table = getattr(tables, what)(WIDE[what], width)
    lines = [*table.titles, *table.rows]
    assert max(map(len, lines)) <= width
    unlimited = text(getattr(tables, what)(WIDE[what]))
    words = [word for word in unlimited.split() if ":" in word or "-" in word or "/" in word]
    assert {"services": LONG.format(2), "daemon": NAME}.get(what, "") in " ".join(lines)
    assert [word for word in words if word not in " ".join(lines).split()] == []


def test_on_a_narrow_terminal_rows_go_on_below() -> None:
    assert text(tables.services(WIDE["services"], 80)) == (
        "Prot LocalAddress:Port Scheduler Flags\n"
        "  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn\n"
        "TCP  [2001:db8:1111:2222:3333:4444:5555:6660]:65535 mh (mh-fallback,mh-port)\n"
        "     persistent 600 mask /64 name a-name-that-has-forty-characters-in-all-\n"
        "  -> [2001:db8:1111:2222:3333:4444:5555:6661]:65535\n"
        "                                  nat     2147483647 12345678   9\n"
        "  -> [2001:db8:1111:2222:3333:4444:5555:6662]:65535\n"
        "                                  nat     2147483647 12345678   9\n"
    )
    assert text(tables.stats(WIDE["stats"], 80)) == (
        "Prot LocalAddress:Port               Conns   InPkts  OutPkts  InBytes OutBytes\n"
        "  -> RemoteAddress:Port\n"
        "UDP  [2001:db8:1111:2222:3333:4444:5555:6660]:65535\n"
        "                                   1000000     123G       60    1000T 99999999\n"
        "  -> [2001:db8:1111:2222:3333:4444:5555:6661]:65535\n"
        "                                   1000000     123G       60    1000T 99999999\n"
    )
    assert text(tables.connections(WIDE["connections"], 80)) == (
        "Pro Expire State       Client\n"
        "    to Virtual\n"
        "    -> Destination\n"
        "TCP 100:00 ESTABLISHED [2001:db8:1111:2222:3333:4444:5555:6660]:65535\n"
        "    to [2001:db8:1111:2222:3333:4444:5555:6661]:65535\n"
        "    -> [2001:db8:1111:2222:3333:4444:5555:6662]:65535\n"
    )


def test_schedulers_say_how_they_do_and_where_a_shadow_differs() -> None:
    script = {"name": "own.py", "budget": 1000, "chosen": 90, "declined": 2, "failed": 1, "wrong": 0, "late": 3}
    script |= {"rested": 4, "mean": 1.5, "longest": 70, "error": "KeyError: 'x', line 7"}
    shadow = {
        "scheduler": "rr",
        "compared": 96,
        "differed": 24,
        "reals": [{"endpoint": "10.0.1.11:8080", "live": 72, "shadow": 48}],
        "last": [{"client": "192.0.2.10:40000", "live": "10.0.1.11:8080", "shadow": ""}],
        "script": None,
    }
    one = {"service": "203.0.113.10:80/tcp", "scheduler": "own.py", "fallback": "wlc"}
    answer = {"schedulers": [one | {"script": script, "shadow": shadow}]}
    assert text(tables.schedulers(answer)) == (
        "Prot LocalAddress:Port Scheduler\n"
        "TCP  203.0.113.10:80 own.py\n"
        "  90 chosen, 2 declined, 1 failed, 0 wrong, 3 late, 4 rested; 1.5 us, at most 70; else wlc\n"
        "  last error: KeyError: 'x', line 7\n"
        "  shadow rr: 24 of 96 connections differ (25.0 %)\n"
        "  -> 10.0.1.11:8080 got 72, would have got 48\n"
        "     192.0.2.10:40000 got 10.0.1.11:8080, would have got none\n"
    )
