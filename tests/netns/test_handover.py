"""A director is replaced while packets flow: none is lost, none is overtaken, no connection notices."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from netns import kernelstate, load
from netns.changes import PORT, Stream
from netns.director import NFQLB
from netns.topology import Net
from nfqlb.api.client import Client
from tests import sizes

SECONDS = 3.0


def services(net: Net) -> list[str]:
    return [word for port in (f"{PORT}/udp", "7/tcp", "80/tcp") for word in ("--vip", f"{net.vip()}:{port}")]


def servers(net: Net) -> list[str]:
    return [word for server in net.servers for word in ("--real", server.v4)]


@pytest.mark.parametrize(
    ("mode", "how", "args"),
    [
        ("nat", "renew", []),
        ("nat", "renew", ["--diverter", "iptables", "--workers", "2"]),
        ("nat", "renew", ["--offload", "auto"]),
        ("nat", "take over", []),
        ("dr", "renew", []),
        ("tun", "take over", ["--diverter", "iptables"]),
    ],
    ids=["nat", "nat-iptables", "nat-offload", "nat-takeover", "dr", "tun-takeover"],
)
def test_nothing_is_lost_when_a_director_hands_over(
    make_net: Callable[..., Net], mode: str, how: str, args: list[str]
) -> None:
    net = make_net(servers=2, echo=True, mode=mode)
    whole = net.storage.fill("whole", sizes.TRANSFER)
    found = net.director.state()
    started = ["--mode", mode, *services(net), *servers(net), *args]
    net.director.nfqlb(*started)
    net.director.cli("real", "edit", f"{net.vip()}:80/tcp", f"{net.servers[0].v4}:80", "--weight", "3")
    configured = net.director.show("services")["services"][2]["reals"][0]["weight"]
    held = load.Held(net.client, net.vip(), sizes.HELD)
    download = load.slow_download(net.client, net.url("/whole"), sizes.TRANSFER // 2)
    stream = Stream(net, sizes.RATE, SECONDS)
    net.director.renew() if how == "renew" else net.director.take_over(*started)
    assert held.alive() == sizes.HELD
    assert download.wait(30) == 0
    assert download.text.split()[0] == whole
    arrived = stream.end()
    assert arrived.sent >= sizes.RATE
    assert (arrived.lost_there, arrived.lost_back, arrived.late_there, arrived.late_back) == (0, 0, 0, 0)
    assert net.director.show("daemon")["restarts"] == 1
    assert net.director.show("services")["services"][2]["reals"][0]["weight"] == configured == 3
    assert net.director.stop() == 0
    assert kernelstate.difference(found, net.director.state()) == ""


def test_a_takeover_is_a_change_or_none_at_all(make_net: Callable[..., Net]) -> None:
    """What is refused leaves the old director; another configuration keeps drains and the connections of who stays."""
    net = make_net(servers=2, web=False, echo=True)
    service, (first, second) = net.service(7), (f"{server.v4}:7" for server in net.servers)
    file = net.director.folder / "nfqlb.toml"
    text = f'[[service]]\nvip = "{service}"\nscheduler = "rr"\n'
    file.write_text(f'{text}real = [{{ address = "{first}" }}, {{ address = "{second}" }}]\n')
    net.director.nfqlb("--config", str(file))
    old = net.director.director_pid()
    held = load.Held(net.client, net.vip(), 4)
    net.director.cli("drain", service, second, "--timeout", "60s", "--keep", "--no-wait")
    for args, words in (
        (["--config", str(file), "--connections", "1000"], "connections '1000': is 262144 in the director that runs"),
        (["--config", str(file), "--vip-dev", "nowhere0"], "is not an interface"),
    ):
        refused = net.director.refused(*args, "--takeover")
        assert refused.returncode == 2
        assert words in refused.stderr
    assert net.director.director_pid() == old
    assert net.director.show("daemon")["restarts"] == 0
    file.write_text(
        f'{text}real = [{{ address = "{first}", weight = 5 }}, {{ address = "{second}", weight = 0 }}]\n'
        f'[[service]]\nvip = "{net.service(81)}"\nreal = [{{ address = "{first}" }}]\n'
    )
    net.director.take_over("--config", str(file))
    shown = net.director.show("services")
    assert [[real["weight"] for real in one["reals"]] for one in shown["services"]] == [[5, 0], [1]]
    assert shown["revision"] == 3  # the drain was the second
    client = Client(str(net.director.run_folder / net.director.instance / "api.sock"))
    assert [(one["real"], one["phase"]) for one in client.drains()["drains"]] == [(second, "draining")]
    assert held.alive() == 4


@pytest.mark.parametrize("how", ["restart", "crash"])
def test_a_restart_by_systemd_loses_nothing(make_net: Callable[..., Net], how: str) -> None:
    """By a stand-in that keeps descriptors; a crash loses what the dead director had taken, and no connection."""
    net = make_net(servers=2, echo=True)
    folders = {"NFQLB_API": str(net.director.run_folder / net.director.instance / "api.sock")}
    run = [NFQLB, "run", "--name", net.director.instance, *services(net), *servers(net)]
    notify = str(net.director.folder / "notify")
    systemd = net.director.spawn([sys.executable, "-m", "netns.systemd", notify, *run], env=folders, log="systemd.log")
    systemd.says("READY=1", 20)
    queues = [queue["number"] for queue in net.director.show("daemon")["queues"]]
    held = load.Held(net.client, net.vip(), sizes.HELD)
    stream = Stream(net, sizes.RATE // 2, SECONDS)
    systemd.tell(how)
    systemd.says("exit 0" if how == "restart" else "exit -9", 10)
    arrived = stream.end()
    assert held.alive() == sizes.HELD
    if how == "restart":
        assert (arrived.lost_there, arrived.lost_back, arrived.late_there, arrived.late_back) == (0, 0, 0, 0)
    daemon = net.director.show("daemon")
    assert [queue["number"] for queue in daemon["queues"]] == queues
    assert daemon["table"]["adopted"] >= sizes.HELD
    systemd.tell("stop")
    assert systemd.wait(15) == 0
