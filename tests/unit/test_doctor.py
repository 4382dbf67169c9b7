"""What doctor says of a machine, as pure functions of a reading."""

from __future__ import annotations

import socket

import pytest

from nfqlb.kernel.announce import checksum, frames
from nfqlb.kernel.doctor import Machine, Queue, Served, Service, examine, wire
from nfqlb.kernel.doctor.reading import Way

VIP, SERVER = "10.2.0.100", "10.2.0.11"
WEB = Service(f"{VIP}:80/tcp", VIP, 0, "nat", (SERVER,))
SERVED = Served(True, services=(WEB,), queues=(Queue(4096, 0, 8 << 20),), diverter="nft", firewall="accept")
SOUND = Machine(
    sysctls={"net/ipv4/ip_forward": "1", "net/ipv4/conf/eth0/forwarding": "1"},
    holders={VIP: "eth0"},
    ways={VIP: Way(True, "lo", ""), SERVER: Way(False, "eth0", "", 1500, "10.2.0.1")},
    listeners={4096: None},  # type: ignore[dict-item]
)


def found(served: Served = SERVED, **machine: object) -> list[tuple[str, str, str]]:
    return [(one.id, one.severity, one.fix) for one in examine(served, SOUND._replace(**machine))]


def test_a_sound_machine_has_nothing() -> None:
    assert found() == []


@pytest.mark.parametrize(
    ("machine", "findings"),
    [
        ({"listeners": {}}, [("queue", "error", "stop the director and start it again")]),
        ({"tracked": (95, 100)}, [("conntrack", "warning", "sysctl -w net.netfilter.nf_conntrack_max=200")]),
        ({"tracked": (89, 100)}, []),
        (
            {"ways": {VIP: SOUND.ways[VIP], SERVER: Way(False, "eth1", "10.9.0.1", 1500)}, "echoes": {SERVER: 1400}},
            [("mtu", "error", "ip route replace 10.2.0.11/32 via 10.9.0.1 dev eth1 mtu 1400")],
        ),
        ({"echoes": {SERVER: 1500}}, []),
        ({"holders": {}, "ways": {SERVER: SOUND.ways[SERVER]}}, [("vip", "error", "let the routers send it here")]),
        ({"martians": 9, "sysctls": {**SOUND.sysctls, "net/ipv4/conf/eth0/rp_filter": "2"}}, []),
        ({"martians": 0, "sysctls": {**SOUND.sysctls, "net/ipv4/conf/all/rp_filter": "1"}}, []),
        (
            {"claims": {VIP: {b"\2\0\0\0\0\1"}}, "macs": {b"\2\0\0\0\0\1": SERVER}},
            [("arp", "error", "take the VIP from it")],
        ),
    ],
)
def test_a_reading_means(machine: dict[str, object], findings: list[tuple[str, str, str]]) -> None:
    assert found(**machine) == findings


def test_a_backup_has_no_vip_and_another_machine_has() -> None:
    machine = {"holders": {}, "ways": {SERVER: SOUND.ways[SERVER]}, "claims": {VIP: {b"\2\0\0\0\0\1"}}}
    assert found(SERVED._replace(role="backup"), **machine) == []
    assert [one for one, *_ in found(SERVED._replace(role="master"), **machine)] == ["vip", "arp"]


@pytest.mark.parametrize(
    ("service", "gro", "ids"),
    [
        (WEB._replace(inpkts=2000, inbytes=2000 * 1400, outpkts=9), {"eth0": False}, ["gro"]),
        (WEB._replace(inpkts=2000, inbytes=2000 * 1400, outpkts=9), {"eth0": True}, []),
        (WEB._replace(inpkts=2000, inbytes=2000 * 14000, outpkts=9), {"eth0": False}, []),  # super-packets come anyway
        (WEB._replace(inpkts=2000, inbytes=2000 * 100, outpkts=9), {"eth0": False}, []),
        (WEB._replace(inpkts=3), {}, ["answers"]),
        (WEB._replace(inpkts=3, mode="dr"), {}, []),
        (WEB._replace(serves=False), {}, ["weights"]),
    ],
)
def test_what_was_counted_means(service: Service, gro: dict[str, bool], ids: list[str]) -> None:
    assert [one for one, _, _ in found(SERVED._replace(services=(service,)), gro=gro)] == ids


def test_counts_of_the_data_path_are_told_with_what_to_do() -> None:
    reasons = {"table_full": 7, "truncated": 1, "fragment": 2, "forwarded": 99}
    served = SERVED._replace(reasons=reasons, queues=(Queue(4096, 3, 212_992),))
    assert [one for one, _, _ in found(served)] == ["drops", "buffers", "table_full", "truncated", "fragment"]
    assert "sysctl -w net.core.rmem_max=8388608" in found(served)[1][2]


def test_a_director_of_another_namespace_is_not_judged_by_this_one() -> None:
    served = SERVED._replace(elsewhere=42)
    assert found(served, sysctls={}, holders={}, ways={}) == [
        ("namespace", "error", "nsenter --net --target 42 nfqlb doctor")
    ]


def test_answers_are_read_from_arp_and_neighbour_discovery() -> None:
    mac = bytes.fromhex("020000000001")
    request, reply = frames(mac, VIP)
    assert (wire._answer(request), wire._answer(reply)) == (None, (VIP, mac))
    [advertisement] = frames(mac, "2001:db8::1")
    assert wire._answer(advertisement) == ("2001:db8::1", mac)


def test_questions_name_no_sender() -> None:
    mac = bytes.fromhex("020000000001")
    assert wire._question(mac, VIP) == bytes.fromhex(
        "ffffffffffff 020000000001 0806 0001 0800 06 04 0001 020000000001 00000000 000000000000 0a020064"
    )
    assert wire._question(mac, "2001:db8::1") == bytes.fromhex(
        "3333ff000001 020000000001 86dd 60000000 0018 3a ff" + "00" * 16 + "ff0200000000000000000001ff000001"
        "87 00 4ced 00000000 20010db8000000000000000000000001"
    )


def test_an_echo_request_has_its_whole_length_and_says_it() -> None:
    packet = wire._echo(4, 1500, 7)
    assert len(packet) == 1480
    assert checksum(packet) == 0
    header = bytes([0x45]) + bytes(19)
    assert wire._reply(socket.AF_INET, header + bytes([0]) + packet[1:], 7) == 1500
    assert wire._reply(socket.AF_INET, header + bytes([0]) + packet[1:], 8) == 0
    assert wire._reply(socket.AF_INET, header + packet, 7) == 0
