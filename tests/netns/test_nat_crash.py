"""kill -9 of the holder, of the director, of both: services, servers and open connections are there as before."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from netns import changes, kernelstate, load
from netns.changes import PORT
from netns.host import until
from netns.topology import Net
from nfqlb.api.client import Client
from tests import sizes, tables

SEED = 20260801
CAPACITY = 1 << 16


def crash(net: Net, victim: str, *args: str) -> None:
    """After it, a director serves again: the one that the holder restarted, or a new start with these arguments."""
    director = net.director
    if victim == "director":
        killed = director.kill_director()
        wait_for_successor(net, killed)
    else:
        director.kill_holder() if victim == "holder" else director.kill_both()
        director.nfqlb(*args)


def wait_for_successor(net: Net, killed: int, timeout: float = 30.0) -> None:
    done = net.director.cli("show", "daemon", check=False, patience=timeout)
    said = net.director.process.text if net.director.process else ""
    assert done.returncode == 0, f"no answer {timeout} s after director {killed} was killed: {done.stderr}\n{said}"
    assert net.director.director_pid() != killed


@pytest.mark.parametrize("victim", ["holder", "director", "both"])
def test_services_and_open_connections_survive(make_net: Callable[..., Net], diverter: list[str], victim: str) -> None:
    net = make_net(servers=3, echo=True, vip="free")
    found = net.director.state()
    vips = ["--vip", net.service(80), "--vip", net.service(7)]
    reals = [word for server in net.servers[:2] for word in ("--real", server.v4)]
    net.director.nfqlb(*vips, *reals, "--scheduler", "rr", "--vip-dev", net.uplink, *diverter)
    running = net.director.state()
    held = load.Held(net.client, net.vip(), sizes.HELD)
    assert len(held.opened) == sizes.HELD
    net.director.cli("real", "add", net.service(80), f"{net.servers[2].v4}:80,weight=2")
    net.director.cli("real", "edit", net.service(80), f"{net.servers[0].v4}:80", "--weight", "0")
    configured = services(net)

    crash(net, victim)

    assert held.alive() == sizes.HELD
    assert services(net) == configured
    assert set(load.split(load.whoami(net.client, net.url(), 12))) == {"s2", "s3"}
    for what in ("addresses", "sysctls", "queues", "shared memory"):
        assert running[what] == net.director.state()[what]
    assert net.director.stop() == 0
    assert kernelstate.difference(found, net.director.state()) == ""


@pytest.mark.parametrize("victim", ["holder", "both"])
def test_a_stop_after_a_crash_and_a_start_leaves_nothing(net: Net, diverter: list[str], victim: str) -> None:
    found = net.director.state()
    args = ["--vip", net.service(), *net.reals(), *diverter]
    for _ in range(2):
        net.director.nfqlb(*args)
        assert len(load.whoami(net.client, net.url(), 4)) == 4
        net.director.kill_holder() if victim == "holder" else net.director.kill_both()
    net.director.nfqlb(*args)
    assert len(load.whoami(net.client, net.url(), 4)) == 4
    assert net.director.stop() == 0
    assert kernelstate.difference(found, net.director.state()) == ""


@pytest.mark.timeout(120 + 15 * sizes.KILLS)
def test_killed_again_and_again_at_random_moments_under_load(make_net: Callable[..., Net], diverter: list[str]) -> None:
    """Connections begin and end all the time; whatever the victim was doing, the table is whole, no entry is torn, and
    nothing else changes.
    """
    chance = Random(SEED)
    print(f"seed {SEED}, {sizes.KILLS} kills")
    net = make_net(servers=2, echo=True)
    found = net.director.state()
    servers = [word for server in net.servers for word in ("--real", server.v4)]
    ports = [word for port in ("80", "7", f"{PORT}/udp") for word in ("--vip", f"{net.vip()}:{port}")]
    args = [*ports, *servers, "--connections", str(CAPACITY), *diverter]
    net.director.nfqlb(*args)
    held = load.Held(net.client, net.vip(), sizes.HELD)
    running, configured = net.director.state(), services(net)
    load.Probe(net.client, net.url("/whoami"), 0.002)
    changes.start(net.client, "send", net.vip(), PORT, 1000, 3600, changes.FLOWS)
    for number in range(sizes.KILLS):
        victim = chance.choice(["director", "holder", "both"])
        time.sleep(chance.random() * 0.2)  # the moment itself, not a time to wait for anything
        left = tables.audit(halted(net))
        crash(net, victim, *args)
        told = f"kill {number} of seed {SEED}: {victim}"
        assert (left.torn, net.director.show("daemon")["table"]["torn"]) == (0, 0), told
        assert left.adopted >= sizes.HELD, told
        assert held.alive() == sizes.HELD, told
        assert services(net) == configured, told
        assert len(load.whoami(net.client, net.url(), 2)) == 2, told
        assert kernelstate.difference(running, net.director.state()) == "", told
    assert net.director.stop() == 0
    assert kernelstate.difference(found, net.director.state()) == ""


def halted(net: Net) -> bytes:
    """The table's file as a kill at this moment leaves it: the director does nothing any more."""
    pid = net.director.director_pid()
    os.kill(pid, signal.SIGSTOP)
    stopped = Path(f"/proc/{pid}/task")
    until(lambda: all(state(task) == "T" for task in stopped.iterdir()), 5, lambda: f"director {pid} goes on")
    return Path(f"/dev/shm/nfqlb-{net.director.instance}").read_bytes()


def state(task: Path) -> str:
    return (task / "stat").read_text().rpartition(")")[2].split()[0]


def test_what_commands_made_is_there_after_both_died(make_net: Callable[..., Net]) -> None:
    """Services and servers by commands and by ipvsadm, one that drains, one in maintenance, one that is down: a start
    without any argument knows all of it, and where each connection goes.
    """
    net = make_net(servers=3, echo=True)
    director, (first, second, third) = net.director, net.servers
    director.nfqlb()
    file, reals = director.folder / "checked.toml", ", ".join(f'{{ address = "{one.v4}" }}' for one in net.servers)
    file.write_text(
        f'[[service]]\nvip = "{net.service(80)}"\nscheduler = "rr"\n'
        'health = { type = "http", path = "/whoami", interval = 0.2, fall = 1, rise = 1000 }\n'
        f"real = [{reals}]\n"
    )
    director.cli("apply", str(file))
    tcp, udp = net.service(7), net.service(7)
    director.cli("service", "add", tcp, "--scheduler", "wrr", "--label", "echo")
    for weight, server in enumerate(net.servers, 1):
        director.cli("real", "add", tcp, f"{server.v4}:7,weight={weight}")
    director.cli("real", "edit", tcp, f"{third.v4}:7", "--upper", "500")
    director.cli("ipvsadm", "-A", "-u", udp, "-s", "sh", "-b", "sh-port")
    director.cli("ipvsadm", "-a", "-u", udp, "-r", f"{first.v4}:7", "-m", "-w", "3")
    director.cli("ipvsadm", "-a", "-u", udp, "-r", f"{second.v4}:7", "-m", "-w", "0")
    director.cli("ipvsadm", "-A", "-f", "5", "-s", "lc", "-p", "60")
    director.cli("ipvsadm", "-a", "-f", "5", "-r", f"{third.v4}:0", "-m")
    held = load.Held(net.client, net.vip(), 12)
    director.cli("drain", tcp, f"{second.v4}:7", "--timeout", "600s", "--keep", "--no-wait")
    director.cli("real", "maint", net.service(80), f"{third.v4}:80", "--why", "a new disk")
    first.kill()
    until(lambda: director.real(f"{first.v4}:80")["health"] == "down", 10, lambda: "nobody found it down")
    before = told(net)
    assert len(before["connections"]) >= 12

    director.kill_both()
    first.start()
    director.nfqlb()

    assert told(net) == before
    assert held.alive() == 12
    assert set(load.split(load.whoami(net.client, net.url(), 6))) == {second.name}
    assert director.stop() == 0


def told(net: Net) -> dict[str, object]:
    """All that a director says of what it was told and found out; times and counters begin anew."""
    director = net.director
    client = Client(str(director.run_folder / director.instance / "api.sock"))
    stats = director.show("stats")["services"]
    return {
        "services": json.loads(director.cli("show", "services", "--json").stdout.replace('"rising"', '"down"')),
        "health": [
            (one["service"], one["real"], one["condition"].replace("rising", "down"))
            for one in director.show("health")["health"]
        ],
        "drains": [(one["service"], one["real"], one["phase"], one["keep"]) for one in client.drains()["drains"]],
        "stats": [(one["key"], [real["endpoint"] for real in one["reals"]]) for one in stats],
        "connections": sorted(
            (one["client"], one["virtual"], one["destination"], one["state"])
            for one in director.show("connections")["connections"]
            if one["virtual"] == net.service(7)
        ),
        "ipvsadm": director.cli("ipvsadm", "-Sn").stdout,
        "file": director.cli("export").stdout,
    }


def services(net: Net) -> list[object]:
    """What is configured, without the figures that go on."""
    shown = net.director.show("services")["services"]
    return [
        (service["key"], service["scheduler"], [(real["endpoint"], real["weight"]) for real in service["reals"]])
        for service in shown
    ]
