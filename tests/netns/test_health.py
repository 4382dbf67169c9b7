"""Active checks on a live director: a server that dies is out in time and comes back, over a crash of the director,
too; and each type of check against the real thing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from netns import Net, load
from netns.dns import ZONE
from netns.host import Host
from netns.tiers import Tiers

INTERVAL, TIMEOUT, FALL, RISE = 0.5, 0.5, 2, 2
SLACK = 0.1
CONFIG = f"""
[[service]]
vip = "10.2.0.100:80"
scheduler = "rr"
health = {{ type = "http", path = "/whoami", interval = {INTERVAL}, timeout = {TIMEOUT}, fall = {FALL}, rise = {RISE} }}
real = [{{ address = "10.2.0.11" }}, {{ address = "10.2.0.12" }}, {{ address = "10.2.0.13" }}]
"""


@pytest.fixture
def net() -> Iterator[Net]:
    with Net(clients=1, servers=3) as net:
        file = net.director.folder / "nfqlb.toml"
        file.write_text(CONFIG)
        net.director.nfqlb("--config", str(file))
        yield net
        assert net.director.stop() == 0


def condition(net: Net, real: str) -> Any:
    return next(one for one in net.director.show("health")["health"] if one["real"] == real)


def soon(true: Callable[[], bool], seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.05)


def test_a_server_that_dies_is_out_in_time_and_takes_its_share_again(net: Net) -> None:
    dying = net.servers[1]
    probe = load.Probe(net.client, net.url("/whoami"), 0.002)  # 500 requests a second
    probe.wait(50)
    began = time.monotonic()
    dying.kill()
    soon(lambda: condition(net, "10.2.0.12:80")["condition"] == "down")
    time.sleep(0.5)
    failed = [moment - began for moment, ok in probe.end() if not ok]
    assert failed
    assert min(failed) > -SLACK
    assert max(failed) <= INTERVAL * FALL + TIMEOUT + SLACK
    assert load.split(load.whoami(net.client, net.url("/whoami"), 10)) == {"s1": 5, "s3": 5}
    log = net.director.process.text if net.director.process else ""
    assert "real server 10.2.0.12:80 of 10.2.0.100:80/tcp is down: Connection refused" in log
    dying.start()
    soon(lambda: condition(net, "10.2.0.12:80")["condition"] == "up")
    assert set(load.split(load.whoami(net.client, net.url("/whoami"), 9)).values()) == {3}
    told = [line for line in net.director.cli("events").stdout.splitlines() if "10.2.0.12:80 of" in line]
    assert told[-1].endswith("is up again")


def test_who_was_down_stays_down_over_a_crash(net: Net) -> None:
    net.servers[0].kill()
    soon(lambda: condition(net, "10.2.0.11:80")["condition"] == "down")
    net.director.kill_director()
    soon(lambda: condition(net, "10.2.0.11:80")["condition"] == "down")
    assert load.split(load.whoami(net.client, net.url("/whoami"), 10)) == {"s2": 5, "s3": 5}


def test_clients_of_a_server_that_is_down_are_reset_and_the_sorry_server_steps_in() -> None:
    """A connection to a server whose check fails, while its echo goes on: the client hears of it at once."""
    with Net(clients=2, servers=3, echo=True) as net:
        file = net.director.folder / "nfqlb.toml"
        file.write_text(
            '[[service]]\nvip = "10.2.0.100:7"\nscheduler = "rr"\n'
            'health = { type = "tcp", port = 80, interval = 0.2, fall = 2, on_down = "reset" }\n'
            'quorum = { sorry = "10.2.0.13:7" }\n'
            'real = [{ address = "10.2.0.11" }, { address = "10.2.0.12" }]\n'
        )
        net.director.nfqlb("--config", str(file))
        held = load.Held(net.client, "10.2.0.100", 4)
        assert sorted(server for server, _ in held.opened) == ["s1", "s1", "s2", "s2"]
        for server in net.servers[:2]:
            server.kill()
        soon(lambda: net.director.show("services")["services"][0]["reals"][1]["health"] == "down")
        soon(lambda: "lost its quorum" in net.director.cli("events").stdout)
        assert held.alive() == 0
        assert net.director.show("reasons")["reasons"]["server_down"] >= 4
        assert [server for server, _ in load.Held(net.clients[1], "10.2.0.100", 3).opened] == ["s3"] * 3
        assert net.director.stop() == 0


def test_the_vip_is_announced_only_with_a_quorum() -> None:
    with Net(clients=1, servers=2, vip="free") as net:
        for server in net.servers:
            server.kill()
        file = net.director.folder / "nfqlb.toml"
        file.write_text(
            f'[director]\nvip_dev = "{net.uplink}"\n[[service]]\nvip = "{net.service()}"\nscheduler = "rr"\n'
            'health = { type = "http", path = "/whoami", interval = 0.2, timeout = 0.5, fall = 2 }\n'
            'quorum = { weight = 2, announce = "quorum" }\n'
            'real = [{ address = "10.2.0.11" }, { address = "10.2.0.12" }]\n'
        )
        net.director.nfqlb("--config", str(file))
        told = f" {net.vip()}/32 "
        soon(lambda: condition(net, "10.2.0.11:80")["condition"] == "down")
        assert told not in net.director.state()["addresses"]
        for server in net.servers:
            server.start()
        soon(lambda: told in net.director.state()["addresses"])
        assert load.split(load.whoami(net.client, net.url("/whoami"), 4)) == {"s1": 2, "s2": 2}
        net.servers[0].kill()
        soon(lambda: told not in net.director.state()["addresses"])
        assert net.director.stop() == 0


def test_each_type_of_check_against_the_real_thing() -> None:
    """Up while the program runs, down while its machine is off the network, up again."""
    more = {"http": 'path = "/whoami", ', "dns": f'query = "{ZONE}", '}
    kinds = {"http": "80", "smtp": "25", "imap": "143", "ftp": "21", "dns": "53/udp", "tcp": "53"}
    with Tiers(servers=2) as net:
        file = net.director.folder / "nfqlb.toml"
        file.write_text(
            "".join(
                f'[[service]]\nvip = "10.2.0.100:{port}"\n'
                'real = [{ address = "10.2.0.11" }, { address = "10.2.0.12" }]\n'
                f'health = {{ type = "{kind}", {more.get(kind, "")}interval = 0.3, timeout = 0.5, fall = 2 }}\n'
                for kind, port in kinds.items()
            )
        )
        net.director.nfqlb("--config", str(file))

        def seen(address: str) -> dict[str, tuple[str, str]]:
            rows = net.director.show("health")["health"]
            return {row["type"]: (row["condition"], row["why"]) for row in rows if row["real"].startswith(address)}

        def well(address: str) -> bool:
            rows = [row for row in net.director.show("health")["health"] if row["real"].startswith(address)]
            return all(row["condition"] == "up" and row["count"] >= 3 for row in rows)

        soon(lambda: well("10.2.0.11:") and well("10.2.0.12:"), 15)
        assert set(seen("10.2.0.11:")) == set(kinds)
        net.servers[0].ip("link set eth0 down")
        soon(lambda: {condition for condition, _ in seen("10.2.0.11:").values()} == {"down"}, 15)
        assert {why for _, why in seen("10.2.0.11:").values()} <= {"no answer within 0.5 s", "No route to host"}
        assert {condition for condition, _ in seen("10.2.0.12:").values()} == {"up"}
        net.servers[0].ip("link set eth0 up")
        soon(lambda: {condition for condition, _ in seen("10.2.0.11:").values()} == {"up"}, 15)
        assert net.director.stop() == 0


def place_of(host: Host, address: str) -> str:
    """Where the machine has the address, as `ip addr add` wants it."""
    shown = json.loads(host.run(["ip", "-j", "addr"]).stdout)
    return next(
        f"{address}/{one['prefixlen']} dev {device['ifname']}"
        for device in shown
        for one in device["addr_info"]
        if one["local"] == address
    )


@pytest.mark.parametrize("mode", ["dr", "tun"])
def test_the_vip_is_asked_on_each_server_and_one_without_it_is_down_though_its_port_is_open(mode: str) -> None:
    """Over both families, for a connection and by pings; the VIP is the director's own address."""
    with Net(clients=1, servers=2, mode=mode) as net:
        timing = "interval = 0.1, timeout = 0.5, fall = 2"
        source = {4: "", 6: f'source = "{net.director.address(6)}", '}  # the kernel prefers a VIP of /128
        vips = [net.service(80, family) for family in (4, 6)]
        kinds = "tcp", "ping"

        def addresses(family: int) -> list[str]:
            return [f'{{ address = "{server.address(family)}" }}' for server in net.servers]

        file = net.director.folder / "nfqlb.toml"
        file.write_text(
            "".join(
                f'[[service]]\nvip = "{vip}/{protocol}"\nmode = "{mode}"\n'
                f'health.check = [{{ type = "{kind}", through = "vip", {source[family]}{timing} }}, '
                f"{{ port = 80, {source[family]}{timing} }}]\n"
                f"real = [{', '.join(addresses(family))}]\n"
                for family, vip in zip((4, 6), vips, strict=True)
                for kind, protocol in zip(kinds, ("tcp", "udp"), strict=True)
            )
        )
        net.director.nfqlb("--config", str(file))

        def conditions() -> dict[str, set[tuple[str, ...]]]:
            """What the checks of each server found, once each of them has a sound result."""
            found: dict[str, set[tuple[str, ...]]] = {server.name: set() for server in net.servers}
            names = {address: server.name for server in net.servers for address in map(server.address, (4, 6))}
            for row in net.director.show("health")["health"]:
                address = row["real"].rpartition(":")[0].strip("[]")
                settled = all(check["count"] > 2 and not check["trouble"] for check in row["checks"])
                found[names[address]].add(tuple(check["condition"] for check in row["checks"]) if settled else ())
            return found

        soon(lambda: conditions() == {"s1": {("up", "up")}, "s2": {("up", "up")}})
        lame = net.servers[1]
        places = [place_of(lame, net.vip(family)) for family in (4, 6)]
        lame.ip(*(f"addr del {place}" for place in places))
        soon(lambda: conditions() == {"s1": {("up", "up")}, "s2": {("down", "up")}})
        assert load.split(load.whoami(net.client, net.url("/whoami"), 4)) == {"s1": 4}
        lame.ip(*(f"addr add {place} nodad" for place in places))
        soon(lambda: conditions() == {"s1": {("up", "up")}, "s2": {("up", "up")}})
        lame.kill()
        soon(lambda: ("down", "down") in conditions()["s2"])  # refused by the VIP as by the server
        why = {check["why"] for row in net.director.show("health")["health"] for check in row["checks"]}
        assert "Connection refused" in why
        assert net.director.stop() == 0
