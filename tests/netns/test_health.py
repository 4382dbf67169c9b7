"""Active checks on a live director: a server that dies is out in time and comes back, over a crash of the director,
too; and each type of check against the real thing.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import dns.message
import pytest

from netns import load
from netns.dns import ZONE
from netns.host import Host
from netns.tiers import Tiers
from netns.tls import HTTPS, NAME, PAGE, make_keys
from netns.tls import launch as launch_tls
from netns.topology import Net

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


def soon(true: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.05)


def test_a_server_that_dies_is_out_in_time_and_takes_its_share_again(net: Net) -> None:
    dying = net.servers[1]
    probe = load.Probe(net.client, net.url("/whoami"), 0.002, load.Probe.PATIENCE)  # 500 requests a second
    probe.wait(50)
    began = time.monotonic()
    dying.kill()
    took = time.monotonic() - began  # to kill it: it answered until then, maybe
    soon(lambda: condition(net, "10.2.0.12:80")["condition"] == "down")
    time.sleep(0.5)
    failed = [moment - began for moment, ok in probe.end() if not ok]
    assert failed
    assert min(failed) > -SLACK
    assert max(failed) <= took + INTERVAL * FALL + TIMEOUT + SLACK
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


def checks_of_real_things(keys: Path) -> dict[str, str]:
    """A check of each type that a good server passes, each in the words of a configuration."""
    client = f'cert = "{keys}/client.pem", key = "{keys}/client.key"'
    https = f'type = "https", port = {HTTPS}, path = "/page", host = "{NAME}", verify = true, ca = "{keys}/server.pem"'
    query = dns.message.make_query(ZONE, "SOA", id=1).to_wire().hex()
    return {
        "tcp": "port = 80",
        "ping": 'type = "ping"',
        "http": 'type = "http", port = 80, path = "/whoami", headers = ["X-Probe: 1"], expect = "^s[12] "',
        "https": f'{https}, {client}, expect = "of TLS"',
        "http/2": f'{https}, {client}, version = "2", digest = "{sha256(PAGE.encode()).hexdigest()}"',
        "smtp": f'type = "smtp", port = 25, host = "probe.{ZONE}", expect = "^220 .*ESMTP"',
        "imap": 'type = "imap", port = 143, expect = "ready"',
        "ftp": 'type = "ftp", port = 21, expect = "ready"',
        "dns": f'type = "dns", port = 53, query = "text.{ZONE}", record = "TXT", expect = "first edition"',
        "udp": f'type = "udp", port = 53, payload = "{query}", expect = "example"',
        "script": 'type = "script", script = "/usr/bin/curl -sf -m 0.4 http://{address}/whoami"',
    }


def checks_of_wrong_answers(keys: Path) -> dict[str, tuple[str, str]]:
    """Checks that no server there passes, and what they find."""
    client = f'cert = "{keys}/client.pem", key = "{keys}/client.key"'
    https = f'type = "https", port = {HTTPS}, path = "/page", host = "{NAME}"'
    ca = f'verify = true, ca = "{keys}/server.pem"'
    return {
        "status": ('type = "http", port = 80, path = "/nowhere"', "status 404"),
        "body": ('type = "http", port = 80, path = "/whoami", expect = "^s9"', "the body does not match"),
        "no client": (f"{https}, {ca}", "status 400"),
        "http/2 503": (https.replace("/page", "/ill") + f', {client}, version = "2"', "status 503"),
        "a name": (f'{https}, {client}, {ca}, sni = "other.test"', "its certificate: Hostname mismatch"),
        "unknown": (f"{https}, {client}, verify = true", "its certificate: self"),
        "slow": (https.replace("/page", "/slow") + f', {client}, expect = "(slow.){{9}}"', "no answer within 1 s"),
        "closed": ("port = 9", "Connection refused"),
        "no tls": ('type = "https", port = 80', "no TLS: "),
        "no h2": ('type = "http", port = 80, version = "2"', ""),
        "no imap": ('type = "imap", port = 21', "said '220"),
        "smtp": ('type = "smtp", port = 25, expect = "Exim"', "said '220 "),
        "starttls": ('type = "smtp", port = 25, tls = "start"', "said '5"),
        "record": (f'type = "dns", port = 53, query = "text.{ZONE}", record = "TXT", expect = "2nd"', "answered "),
        "zone": ('type = "dns", port = 53, query = "other.test"', "answered REFUSED"),
    }


def test_each_type_of_check_against_the_real_thing(tmp_path: Path) -> None:
    """Up, down because the machine is off the network, half open, wrong answers, and failing without being down."""
    timing = "interval = 0.5, timeout = 1, rise = 2, warmup = 0.1"
    good, wrong = checks_of_real_things(tmp_path), checks_of_wrong_answers(tmp_path)
    with Tiers(servers=2) as net:
        make_keys(net.director, tmp_path)
        for server in net.servers:
            launch_tls(server, tmp_path)
        services = [
            *(f"{check}, {timing}, fall = 2" for check in good.values()),
            *(f"{check}, {timing}, fall = 2" for check, _ in wrong.values()),
            *(f"{check}, {timing}, fall = 1000" for check in good.values()),
        ]
        file = net.director.folder / "nfqlb.toml"
        file.write_text(
            "".join(
                f'[[service]]\nvip = "10.2.0.100:{port}"\nhealth = {{ {health} }}\n'
                'real = [{ address = "10.2.0.11" }, { address = "10.2.0.12" }]\n'
                for port, health in enumerate(services, 7001)
            )
        )
        net.director.nfqlb("--config", str(file))

        def log() -> str:
            return net.director.process.text if net.director.process else ""

        def seen(number: int, first: int, count: int) -> list[dict[str, Any]]:
            """What is said of one server in some of the services."""
            rows = net.director.show("health")["health"][number::2]
            return [row for row in rows[first : first + count] if row["count"] >= 3]

        def are(number: int, condition: str, first: int = 0, *, but: str = "") -> bool:
            rows = dict(zip(good, net.director.show("health")["health"][number::2][first:], strict=False))
            return all(row["condition"] == condition and row["count"] >= 3 for n, row in rows.items() if n not in but)

        soon(lambda: are(0, "up") and are(1, "up") and len(seen(0, len(good), len(wrong))) == len(wrong))
        begun = len(log())
        for (name, (_, why)), row in zip(wrong.items(), seen(0, len(good), len(wrong)), strict=True):
            assert (row["condition"], why in row["why"]) == ("down", True), (name, row["why"])

        lame = net.servers[0]
        listed = subprocess.run(["ip", "netns", "pids", lame.namespace], capture_output=True, text=True, check=True)
        pids = listed.stdout.split()
        lame.run(
            ["kill", "-STOP", *pids], check=False
        )  # kernels still take connections, and answer pings; one may be gone
        soon(lambda: are(0, "down", but="tcp ping") and are(0, "failing", len(good) + len(wrong), but="tcp ping"))
        assert {row["why"] for row in seen(0, 2, len(good) - 3)} == {"no answer within 1 s"}
        soon(lambda: are(1, "up") and [row["condition"] for row in seen(0, 0, 2)] == ["up", "up"])
        lame.run(["kill", "-CONT", *pids])
        soon(lambda: are(0, "up") and are(0, "up", len(good) + len(wrong)))

        lame.ip("link set eth0 down")
        soon(lambda: are(0, "down") and are(1, "up"))
        assert {row["why"] for row in seen(0, 0, len(good) - 1)} <= {"no answer within 1 s", "No route to host"}
        lame.ip("link set eth0 up")
        soon(lambda: are(0, "up") and are(1, "up"))
        patient = range(7001 + len(good) + len(wrong), 7001 + len(services))
        assert not [port for port in patient if f":{port}/" in log()[begun:]]
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
