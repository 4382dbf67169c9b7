"""Two directors by VRRP: who has the VIP, and who gets it when one of them is gone."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from scapy.utils import rdpcap

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
BOTH = 40  # connections to two directors
SLOWLY = 8  # seconds that a download takes


DELAY = 2  # seconds that who comes back leaves the VIPs where they are
UNHURRIED = "0.5"  # seconds between adverts: a machine that pauses for one is not taken for dead


def link_local(director: Director) -> str:
    """What VRRP of IPv6 has as its source (RFC 9568, 5.1.2.1)."""
    found = director.run(["ip", "-j", "-6", "address", "show", "dev", "eth0", "scope", "link"]).stdout
    return str(next(one["local"] for link in json.loads(found) for one in link.get("addr_info", ()) if "local" in one))


def turns(director: Director) -> list[tuple[float, str]]:
    """When it took which role."""
    events = [json.loads(line) for line in director.cli("events", "--json").stdout.splitlines()]
    return [(one["time"], one["message"].split()[-1]) for one in events if one["kind"] == "failover"]


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
        everywhere(net, sizes.HELD)

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
        net.start_one(first, net.services(), priority="150", interval=UNHURRIED, patience="20")
        net.start_one(second, net.services(), interval=UNHURRIED, patience="0.3")
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
        keepalived = Path(second.run_folder, second.instance, "ha", "keepalived.pid")
        kept = keepalived.read_text()
        second.renew()
        net.role(second, "master")
        second.take_over("--config", str(second.folder / "director.toml"))
        net.role(second, "master")
        assert keepalived.read_text() == kept, "the VIPs went with the director that handed over"
        has_alone(net, "d2")
        serves(net)
        net.start_one(first, net.services(), priority="150", interval=UNHURRIED, preempt="false")
        net.role(first, "backup")
        has_alone(net, "d2")
        second.kill_both()
        net.role(first, "master")
        has_alone(net, "d")
        serves(net)
        told = [line.partition("failover: ")[2] for line in first.cli("events").stdout.splitlines()]
        assert [one for one in told if one] == ["this director is backup", "this director is master"]


@pytest.mark.parametrize("family", [4, 6])
def test_without_named_peers_one_joins_its_machines_keepalived_and_who_is_back_waits(family: int) -> None:
    """VRRP by multicast, of either family; the VIPs are of both."""
    with Pair() as net:
        first, second = net.directors
        more = {"peers": "[]"}
        sources = [f'"{link_local(one) if family == 6 else one.v4}"' for one in net.directors]
        own = Path(second.folder, "own.conf")
        own.write_text(f"global_defs {{\n    router_id own\n}}\ninclude {second.run_folder}/*/ha/keepalived.conf\n")
        pid_file = f"{second.folder}/own.pid"
        more["source"] = sources[0]
        net.start_one(first, net.services(), priority="150", preempt_delay=str(DELAY), **more)
        net.role(first, "master")
        more["source"] = sources[1]
        net.start_one(second, net.services(), keepalived='"join"', pid_file=f'"{pid_file}"', **more)
        second.spawn(["keepalived", "-n", "-P", "-f", str(own), "-p", pid_file, "-r", f"{second.folder}/vrrp.pid"])
        net.role(second, "backup")
        has_alone(net, "d")

        net.cut(first)
        net.role(second, "master")
        has_alone(net, "d2")
        serves(net)
        second.cli("service", "add", "10.2.0.101:80")
        until(lambda: " 10.2.0.101/" in second.addresses(), SECONDS, lambda: "its keepalived was not told")
        net.mend(first)
        net.role(first, "master")
        has_alone(net, "d")
        serves(net)
        back, master = [at for at, what in turns(first) if what != "fault"][-2:]
        assert master - back > DELAY - 0.5, "at once, but for when each was heard of"

        assert second.stop() == 0
        assert not net.has_vip(second)


def test_directors_that_are_the_real_servers_leave_packets_to_their_services_while_they_are_backup() -> None:
    """No packet is sent on twice, and each connection goes on as the VIP moves there and back."""
    with Pair(mode="dr", servers=0, web=False) as net:
        ends = "".join(f'[[service.real]]\naddress = "{one.v4}:7"\n' for one in net.directors)
        service = f'[[service]]\nvip = "{net.service(7)}"\nmode = "dr"\nscheduler = "rr"\n{ends}'
        services = f"{SYNC}[options]\nbackup_only = true\n{service}"
        for director in net.directors:
            net.real_server(director, "setup", *net.serves)
            director.start_echo()
        net.start_pair(services)
        first, second = net.directors

        def held() -> load.Held:
            one = load.Held(net.client, net.vip(), BOTH)
            assert Counter(server for server, _ in one.opened) == {"d": BOTH // 2, "d2": BOTH // 2}
            return one

        # one hop younger than from the router it may be, which is 62
        with first.capture(f"dst host {net.vip()} and ip[8] < 62", "eth0") as again:
            before = held()
            until(lambda: all(established(one) >= BOTH for one in net.directors), SECONDS, lambda: "not all were told")
            assert first.stop() == 0
            net.role(second, "master")
            after = held()
            assert [before.alive(), after.alive()] == [BOTH, BOTH]
            net.start_one(first, services, priority="150")
            net.role(first, "master")
            net.role(second, "backup")
            last = held()
            assert [one.alive() for one in (before, after, last)] == [BOTH] * 3
        assert len(rdpcap(str(again))) == 0
        passed = second.show("reasons")["reasons"]
        assert passed["standby"] > 0
