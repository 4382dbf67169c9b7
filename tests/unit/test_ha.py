"""The file that keepalived gets, and what it is made from."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from nfqlb.config.toml import Loaded, dumps, loads
from nfqlb.errors import ConfigErrors, MissingError
from nfqlb.ha.failover import Failover
from nfqlb.ha.keepalived import configuration
from nfqlb.ha.keeper import CONFIGURATION, SOCKET
from nfqlb.model import Intent
from nfqlb.runconfig import Ha, RunConfig, decode, encode

FOLDER = Path("/run/nfqlb/main/ha")
PLAIN = Ha(interface="eth0", vrid=51)


def told(ha: Ha, *addresses: str) -> str:
    return configuration(ha, "main", addresses, FOLDER)


def block(text: str, name: str) -> list[str]:
    """The lines of a block of the instance."""
    lines = [line.strip() for line in text.splitlines()]
    start = lines.index(f"{name} {{") if f"{name} {{" in lines else None
    return [] if start is None else lines[start + 1 : lines.index("}", start)]


def test_the_whole_file_of_a_group_on_multicast() -> None:
    assert told(PLAIN, "203.0.113.10", "2001:db8::10") == (
        """\
# Written by the director 'main' of nfqlb, which writes it again.
global_defs {
    router_id nfqlb-main
    vrrp_version 3
    vrrp_notify_fifo /run/nfqlb/main/ha/states
    fifo_write_vrrp_states_on_reload
}
track_file nfqlb-main {
    file /run/nfqlb/main/ha/ready
    weight 0
}
vrrp_instance nfqlb-main {
    state BACKUP
    interface eth0
    version 3
    virtual_router_id 51
    priority 100
    advert_int 1.00
    track_file {
        nfqlb-main
    }
    virtual_ipaddress {
        127.0.112.51/32 dev lo
    }
    virtual_ipaddress_excluded {
        2001:db8::10/128 dev eth0 preferred_lft 0
        203.0.113.10/32 dev eth0
    }
}
"""
    )


def test_the_adverts_are_the_same_whatever_the_services_are() -> None:
    one, other = told(PLAIN, "203.0.113.10"), told(PLAIN)
    assert block(one, "virtual_ipaddress") == block(other, "virtual_ipaddress") == ["127.0.112.51/32 dev lo"]
    assert block(other, "virtual_ipaddress_excluded") == []


def test_the_order_of_addresses_does_not_matter() -> None:
    assert told(PLAIN, "10.0.0.1", "10.0.0.2") == told(PLAIN, "10.0.0.2", "10.0.0.1")


def test_unicast_in_ipv6_that_does_not_take_over() -> None:
    text = told(Ha(interface="eth0", vrid=7, peers=("2001:DB8::2",), source="2001:db8::1", preempt=False, interval=0.1))
    assert block(text, "unicast_peer") == ["2001:db8::2"]
    lines = [line.strip() for line in text.splitlines()]
    assert {"native_ipv6", "nopreempt", "unicast_src_ip 2001:db8::1", "advert_int 0.10"} <= {*lines}
    assert block(text, "virtual_ipaddress") == ["fe80::112:7/128 dev lo"]


def test_a_source_without_peers_is_that_of_the_group() -> None:
    assert "    mcast_src_ip 10.0.0.1\n" in told(Ha(interface="eth0", vrid=7, source="10.0.0.1"))


def test_gateways_move_along_and_their_devices_are_watched() -> None:
    ha = Ha(interface="eth0", vrid=7, device="eth2", gateways=("10.2.0.3%eth1", "10.3.0.3"), preempt_delay=30)
    text = told(ha, "203.0.113.10")
    assert block(text, "virtual_ipaddress_excluded") == [
        "203.0.113.10/32 dev eth2",
        "10.2.0.3/32 dev eth1",
        "10.3.0.3/32 dev eth0",
    ]
    assert block(text, "track_interface") == ["eth1", "eth2"]
    assert "    preempt_delay 30\n" in text


def test_who_joins_a_keepalived_does_not_name_its_router() -> None:
    assert "\n    router_id" not in told(Ha(interface="eth0", vrid=7, keepalived="join"))


WHOLE = """\
[director]
workers = 2

[ha]
interface = "eth0"
vrid = 51
priority = 150
interval = 0.1
peers = ["10.2.0.2", "10.2.0.5"]
source = "10.2.0.1"
preempt_delay = 5
patience = 0.5
addresses = ["203.0.113.10"]
gateways = ["10.2.0.3%eth1"]
keepalived = "join"
"""


def test_the_file_is_read_and_written_as_the_same() -> None:
    director, intent = loads(WHOLE, "f.toml")
    ha = director["ha"]
    assert (ha.priority, ha.peers, ha.gateways) == (150, ("10.2.0.2", "10.2.0.5"), ("10.2.0.3%eth1",))
    assert loads(dumps(Loaded(director, intent)), "f.toml") == (director, intent)
    config = RunConfig(api="/run/api", **director)
    assert decode(encode(config)) == config


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("vrid = 51", "f.toml:1: ha.interface '': is not there; every director of the group says it"),
        ('interface = "eth0"', "f.toml:1: ha.vrid '': is not there; every director of the group says it"),
        ('interface = "eth 0"\nvrid = 51', "f.toml:2: ha.interface 'eth 0': is not the name of a network device; see"),
        ('interface = "eth0"\nvrid = 256', "f.toml:3: ha.vrid '256': out of range; use 1 to 255"),
        ('interface = "eth0"\nvrid = 1\npriority = 255', "f.toml:4: ha.priority '255': out of range; use 1 to 254"),
        ('interface = "eth0"\nvrid = 1\ninterval = 0', "f.toml:4: ha.interval '0': out of range; use 0.01 to 40.95 s"),
        ('interface = "eth0"\nvrid = 1\npatience = -1', "f.toml:4: ha.patience '-1': out of range; use 0 to 60 s"),
        ('interface = "eth0"\nvrid = 1\npeers = "10.0.0.2"', "f.toml:4: ha.peers '10.0.0.2': is not a list"),
        ('interface = "eth0"\nvrid = 1\npeers = [2]', "f.toml:4: ha.peers '[2]': is not a list of strings"),
        ('interface = "eth0"\nvrid = 1\npeers = ["one"]', "f.toml:4: ha.peers 'one': is not an IP address"),
        (
            'interface = "eth0"\nvrid = 1\npeers = ["10.0.0.2", "2001:db8::2"]',
            "f.toml:4: ha.peers '2001:db8::2': is not of the family of 10.0.0.2; VRRP speaks one of them",
        ),
        (
            'interface = "eth0"\nvrid = 1\npeers = ["10.0.0.2"]\nsource = "10.0.0.2"',
            "f.toml:4: ha.peers '10.0.0.2': is this director's own source; name the others only",
        ),
        (
            'interface = "eth0"\nvrid = 1\npreempt = false\npreempt_delay = 5',
            "f.toml:5: ha.preempt_delay '5': is there without preempt; leave out one of them",
        ),
        ('interface = "eth0"\nvrid = 1\ngateways = ["10.0.0.3%"]', "f.toml:4: ha.gateways '10.0.0.3%': does not end"),
        ('interface = "eth0"\nvrid = 1\nkeepalived = "no"', "f.toml:4: ha.keepalived 'no': is not known; choose from"),
        ('interface = "eth0"\nvrid = 1\npid_file = "k"', "f.toml:4: ha.pid_file 'k': is not an absolute path; write"),
        (
            'interface = "eth0"\nvrid = 1\nauth = "x"',
            "f.toml:4: ha.auth 'x': is not known here; the keys are interface",
        ),
        (
            'interface = "eth0"\nvrid = 1\n[director]\nvip_dev = "eth0"',
            "f.toml:5: director.vip_dev 'eth0': is there with [ha]; keepalived adds the VIPs on the master alone",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_line_and_the_fix(text: str, error: str) -> None:
    with pytest.raises(ConfigErrors) as raised:
        loads(f"[ha]\n{text}\n", "f.toml")
    [found] = raised.value.errors
    assert str(found).startswith(error)


def test_where_keepalived_is_missing_it_says_so_with_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingError) as raised:
        Failover(PLAIN, "main", tmp_path, "text", lambda role: None).require()
    assert str(raised.value) == (
        "[ha] needs keepalived, which is not there: apt install keepalived; no VIP is on this machine until then"
    )
    Failover(Ha(interface="eth0", vrid=7, keepalived="join"), "main", tmp_path, "text", lambda role: None).require()


@pytest.mark.slow
def test_a_folder_that_is_full_costs_the_new_configuration_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A directory stands where the file would be written; the keeper knows its state, and hears all other words."""
    roles: list[str] = []
    words: asyncio.Queue[bytes] = asyncio.Queue()

    async def keeper(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"MASTER\n")
        async for word in reader:
            words.put_nowait(word)
        writer.close()
        await writer.wait_closed()
        words.put_nowait(b"")

    async def live() -> None:
        failover = Failover(PLAIN, "main", tmp_path, "text", roles.append)
        async with await asyncio.start_unix_server(keeper, tmp_path / SOCKET), asyncio.timeout(30):
            minding = asyncio.create_task(failover.mind())
            assert await words.get() == b"ready\n"
            failover.hold("why")
            assert await words.get() == b"held\n"  # after a second try
            (tmp_path / "keepalived.new").rmdir()
            assert await words.get() == b"reload\n"
            minding.cancel()
            assert await words.get() == b""

    (tmp_path / "keepalived.new").mkdir()
    asyncio.run(live())
    assert roles == ["master"]
    [said] = caplog.messages
    assert "is not told of its new configuration: [Errno 21] Is a directory" in said
    assert (tmp_path / CONFIGURATION).read_text() == configuration(PLAIN, "main", (), tmp_path)


def test_without_the_section_there_is_no_failover() -> None:
    found: tuple[dict[str, Any], Intent] = loads("", "f.toml")
    assert "ha" not in found[0]
