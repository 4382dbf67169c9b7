"""Three directors that all take packets: BGP leads flows to those that are ready, and a flow may change directors."""

from __future__ import annotations

from netns import load
from netns.active import OPTIONS, SLOPPY, Active
from netns.director import Director
from netns.host import until
from netns.pair import SECONDS
from tests import sizes

PORTS = 'flags = ["mh-port"]\n'
QUORUM = 'quorum = { announce = "quorum" }\nhealth = { type = "tcp", interval = 0.2, timeout = 1 }\n'
SLOWLY = 4  # seconds that a download takes


def sync(net: Active, director: Director) -> str:
    peers = ", ".join(f'"{other.v4}"' for other in net.directors if other is not director)
    return f"[sync]\nid = 7\npeers = [{peers}]\n"


def spread(held: load.Held) -> bool:
    return {server for server, _ in held.opened} == {"s1", "s2", "s3"}


def test_connections_go_on_when_directors_come_and_go_and_sync_tells_of_them() -> None:
    """Silent ones and a download, as a machine dies, is back, is killed in its processes, and is stopped."""
    with Active(mode="dr", echo=True) as net:
        whole = net.storage.fill("whole", sizes.TRANSFER)
        services = net.services(80, "mh", PORTS + QUORUM) + net.services(7, "mh", PORTS)
        net.start_all(lambda director: OPTIONS + sync(net, director) + services)
        held = load.Held(net.client, net.vip(), sizes.HELD)
        assert spread(held)
        download = load.slow_download(net.client, net.url("/whole"), sizes.TRANSFER // SLOWLY)

        def knows_all(director: Director) -> bool:
            states = [one["state"] for one in director.show("connections")["connections"]]
            return states.count("ESTABLISHED") >= sizes.HELD < len(states)  # the download may be over by then

        until(lambda: all(map(knows_all, net.directors)), SECONDS, lambda: "not all were told")
        first, second, third = net.directors
        net.destroy(third)
        net.announced(first, second)
        assert held.alive() == sizes.HELD
        net.revive(third)
        net.start_one(third, OPTIONS + sync(net, third) + services)
        net.announced(*net.directors)
        assert held.alive() == sizes.HELD
        assert download.wait(60) == 0
        assert download.text.split()[0] == whole

        reals = [f"{server.v4}:80" for server in net.servers]
        for real in reals:
            second.cli("real", "maint", net.service(), real)
        net.announced(first, third, families=(4,))
        for real in reals:
            second.cli("real", "ready", net.service(), real)
        net.announced(*net.directors)
        second.kill_both()
        net.announced(first, third)
        assert first.stop() == 0
        net.announced(third)
        assert held.alive() == sizes.HELD


def test_without_sync_the_others_choose_the_same_servers_in_mid_stream() -> None:
    with Active(mode="tun", echo=True) as net:
        text = OPTIONS + SLOPPY + net.services(80, "mh", PORTS) + net.services(7, "mh", PORTS)
        net.start_all(lambda _: text)
        held = [load.Held(net.client, net.vip(family), sizes.HELD) for family in (4, 6)]
        assert all(map(spread, held))
        net.destroy(net.director)
        net.announced(*net.directors[1:])
        assert [one.alive() for one in held] == [sizes.HELD, sizes.HELD]
