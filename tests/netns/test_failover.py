"""Two directors by VRRP: who has the VIP, and who gets it when one of them is gone."""

from __future__ import annotations

from pathlib import Path

import pytest

from netns import load
from netns.director import Director
from netns.host import until
from netns.pair import SECONDS, Pair
from nfqlb.model import MODES
from tests import sizes


def serves(net: Pair) -> None:
    """New connections of both families reach both real servers."""
    for family in (4, 6):
        assert {*load.split(load.whoami(net.client, net.url(family=family), 4))} == {"s1", "s2"}


def has_alone(net: Pair, master: str) -> None:
    until(
        lambda: {one.name for one in net.directors if net.has_vip(one)} == {master},
        SECONDS,
        lambda: f"not {master} alone has the VIPs",
    )


@pytest.mark.parametrize("mode", MODES)
def test_the_master_is_cut_off_and_comes_back(mode: str) -> None:
    with Pair(mode=mode) as net:
        net.start_pair(net.services())
        has_alone(net, "d")
        serves(net)
        net.cut(net.director)
        net.role(net.director, "fault")
        net.role(net.second, "master")
        has_alone(net, "d2")
        serves(net)
        net.mend(net.director)
        net.role(net.director, "master")
        net.role(net.second, "backup")
        has_alone(net, "d")
        serves(net)
        assert [net.director.stop(), net.second.stop()] == [0, 0]
        assert not any(net.has_vip(one) for one in net.directors)


SYNC = '[sync]\nrole = "both"\ninterface = "eth0"\nid = 7\n'
SLOWLY = 4  # seconds that a download takes


def established(director: Director) -> int:
    return sum(one["state"] == "ESTABLISHED" for one in director.show("connections")["connections"])


@pytest.mark.parametrize("mode", MODES)
def test_connections_go_on_when_the_masters_machine_dies_and_when_it_is_back(mode: str, tmp_path: Path) -> None:
    """Silent ones, and one with a transfer on it; who comes back has all of them before it is master. In one of the
    modes the directors have a key.
    """
    key = tmp_path / "key"
    key.write_text("0123456789abcdef0123456789abcdef\n")
    key.chmod(0o600)
    sealed = f'key_file = "{key}"\n' if mode == "tun" else ""
    with Pair(mode=mode, echo=True) as net:
        whole = net.storage.fill("whole", sizes.TRANSFER)
        services = SYNC + sealed + net.services(80) + net.services(7)
        net.start_pair(services)
        held = load.Held(net.client, net.vip(), sizes.HELD)

        download = load.slow_download(net.client, net.url("/whole"), sizes.TRANSFER // SLOWLY)
        everywhere(net, sizes.HELD + 1)
        net.destroy(net.director)
        net.role(net.second, "master")
        assert held.alive() == sizes.HELD
        assert download.wait(60) == 0
        assert download.text.split()[0] == whole

        download = load.slow_download(net.client, net.url("/whole", 6), sizes.TRANSFER // SLOWLY)
        net.revive(net.director)
        net.start_one(net.director, services, priority="150")
        net.role(net.director, "master")
        net.role(net.second, "backup")
        assert held.alive() == sizes.HELD
        assert download.wait(60) == 0
        assert download.text.split()[0] == whole
        peers = [director.cli("sync", "status").stdout for director in net.directors]
        assert all("has the whole table" in said or "no peer" in said for said in peers), peers
        assert all((" sealed" in said and "not sealed" not in said) == bool(sealed) for said in peers), peers


def everywhere(net: Pair, count: int) -> None:
    """Both directors know so many connections."""
    until(lambda: all(established(one) >= count for one in net.directors), SECONDS, lambda: "not all were told")


def test_a_director_dies_and_is_back_in_time_or_is_not() -> None:
    with Pair() as net:
        first, second = net.directors
        net.start_one(first, net.services(), priority="150", patience="20")
        net.start_one(second, net.services(), patience="0.3")
        net.role(first, "master")
        net.role(second, "backup")
        as_it_was = second.show("daemon")["ha"]["changes"]
        first.kill_director()
        until(lambda: first.show("daemon")["restarts"] == 1, SECONDS, lambda: "it was not started again")
        net.role(first, "master")
        assert second.show("daemon")["ha"]["changes"] == as_it_was
        has_alone(net, "d")

        first.cli("service", "add", "10.2.0.101:80")
        until(lambda: " 10.2.0.101/" in first.addresses(), SECONDS, lambda: "the VIP of a new service is not there")
        assert " 10.2.0.101/" not in second.addresses()
        first.cli("service", "delete", "10.2.0.101:80")
        until(lambda: " 10.2.0.101/" not in first.addresses(), SECONDS, lambda: "its VIP did not go with it")

        assert first.stop() == 0
        net.role(second, "master")
        has_alone(net, "d2")
        serves(net)
        net.start_one(first, net.services(), priority="150", preempt="false")
        net.role(first, "backup")
        has_alone(net, "d2")
        second.kill_both()
        net.role(first, "master")
        has_alone(net, "d")
        serves(net)
        told = [line.partition("failover: ")[2] for line in first.cli("events").stdout.splitlines()]
        assert [one for one in told if one] == ["this director is backup", "this director is master"]
