"""`nfqlb apply` and SIGHUP on a live director: connections go on, mistakes touch nothing, and what nobody confirms goes
back, whoever dies meanwhile.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from netns import changes, load
from netns.director import NFQLB
from netns.topology import Net
from nfqlb.api.client import Client
from tests import sizes

SERVICE = '[[service]]\nvip = "10.2.0.100:7/{protocol}"\nscheduler = "rr"\nreal = [{reals}]\n'


def config(*servers: int, protocols: tuple[str, ...] = ("tcp", "udp")) -> str:
    reals = ", ".join(f'{{ address = "10.2.0.1{server}:7" }}' for server in servers)
    return "".join(SERVICE.format(protocol=protocol, reals=reals) for protocol in protocols)


@pytest.fixture
def net() -> Iterator[Net]:
    with Net(clients=1, servers=3, web=False, echo=True) as net:
        file(net).write_text(config(1, 2))
        net.director.nfqlb("--config", str(file(net)))
        yield net
        assert net.director.stop() == 0


def file(net: Net) -> Path:
    return net.director.folder / "nfqlb.toml"


def client(net: Net) -> Client:
    return Client(str(net.director.run_folder / net.director.instance / "api.sock"))


def servers(net: Net) -> set[str]:
    """Who answers new connections."""
    return {answer[0] for answer in load.udp(net.client, net.vip(), 6, 50) if answer}


def soon(true: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.05)


def test_an_applied_file_is_what_runs_and_connections_go_on(net: Net) -> None:
    held = load.Held(net.client, net.vip(), 8)
    file(net).write_text(config(1, 2, 3).replace('"rr"', '"wrr"'))
    planned = net.director.cli("apply", str(file(net)), "--plan")
    assert planned.stdout.splitlines()[-1] == "nothing was done: this is a plan"
    assert servers(net) == {"s1", "s2"}
    applied = net.director.cli("apply", str(file(net)))
    assert planned.stdout.splitlines()[:-1] == applied.stdout.splitlines()[:-1]
    assert servers(net) == {"s1", "s2", "s3"}
    assert held.alive() == 8
    net.director.cli("export", str(net.director.folder / "now.toml"))
    again = net.director.cli("apply", str(net.director.folder / "now.toml"))
    assert again.stdout.startswith("nothing to do")


def test_a_hangup_reads_the_file_again_or_leaves_all_as_it_is(net: Net) -> None:
    held = load.Held(net.client, net.vip(), 4)
    file(net).write_text(config(1, 2, 3, protocols=("udp", "tcp")))
    holder = net.director.process
    assert holder
    os.kill(holder.pid, signal.SIGHUP)
    soon(lambda: "reload: revision 2" in holder.text)
    assert servers(net) == {"s1", "s2", "s3"}
    assert held.alive() == 4
    assert net.director.show("daemon")["edited"] is False
    file(net).write_text(config(1).replace("rr", "best") + "[timeouts]\nudp = 0\n")
    os.kill(holder.pid, signal.SIGHUP)
    soon(lambda: "udp '0': out of range" in holder.text)
    assert holder.text.count("scheduler 'best'") == 2
    assert servers(net) == {"s1", "s2", "s3"}


def test_what_nobody_confirms_goes_back_though_the_director_dies(net: Net) -> None:
    held = load.Held(net.client, net.vip(), 4)
    file(net).write_text(config(1, 2, 3))
    said = net.director.cli("apply", str(file(net)), "--confirm-within", "8s").stdout
    assert said.splitlines()[-1] == "it goes back in 8 s; keep it by `nfqlb confirm`"
    assert servers(net) == {"s1", "s2", "s3"}
    net.director.kill_director()
    soon(lambda: net.director.show("services")["revision"] == 3, 30)
    assert servers(net) == {"s1", "s2"}
    assert held.alive() == 4
    net.director.cli("apply", str(file(net)), "--confirm-within", "6s")
    net.director.cli("confirm")
    time.sleep(6.5)
    assert servers(net) == {"s1", "s2", "s3"}


def test_events_are_told_as_they_happen(net: Net) -> None:
    api = {"NFQLB_API": str(net.director.run_folder / net.director.instance / "api.sock")}
    listener = net.director.spawn([NFQLB, "events", "--follow"], env=api)
    net.director.cli("real", "delete", "10.2.0.100:7/udp", "10.2.0.12:7")
    soon(lambda: "- real 10.2.0.12:7" in listener.text)
    assert "changed: revision 2" in listener.text
    listener.end(signal.SIGINT)


def test_no_connection_breaks_while_one_change_follows_another(net: Net) -> None:
    held, director = load.Held(net.client, net.vip(), 64), client(net)
    with ThreadPoolExecutor() as pool:
        made = pool.submit(
            lambda: [changes.change(director, "10.2.0.100:7/tcp", "10.2.0.13:7", at) for at in range(sizes.CHANGES)]
        )
        alive = [held.alive()]
        while not made.done():
            alive.append(held.alive())
        made.result()
    assert set(alive) == {64}
    assert held.alive() == 64
