"""`nfqlb doctor`: a thing is broken, the finding names it, the fix is done, traffic passes and the finding is gone.

The director of most tests runs where it cannot change sysctls, else it would mend them itself within two seconds.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from netns import load
from netns.director import NFQLB
from netns.host import Host
from netns.topology import Net
from tests import sizes
from tests.netns.test_surroundings import FROZEN, check_traffic, inside, start

SYSCTLS = ["net.ipv4.ip_forward=1", "net.ipv4.conf.all.send_redirects=0", "net.ipv4.conf.eth0.send_redirects=0"]
FLOOD = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
    for number in range(int(sys.argv[2])):
        out.sendto(b"x", (sys.argv[1], 7))
"""
# COUNT tracked UDP flows by ctnetlink (IPCTNL_MSG_CT_NEW), a port of 10.9.0.x each
TRACKED = """
import struct, sys
from nfqlb.kernel import netlink as nl
def ends(kind, source, sport, target, dport):
    ip = nl.nested(1, nl.attribute(1, source), nl.attribute(2, target))
    ports = nl.attribute(1, bytes([17])), nl.attribute(2, sport), nl.attribute(3, dport)
    return nl.nested(kind, ip, nl.nested(2, *ports))
here, dns, timeout = bytes([10, 2, 0, 1]), b"\\0\\x35", nl.number(7, 60)
count = int(sys.argv[1])
with nl._open(1 << 20) as sock:
    for block in range(0, count, 4096):
        there, port = bytes([10, 9, 0, block >> 16]), bytes([0xAB, 0xCD])
        body = ends(1, here, port, there, dns) + ends(2, there, dns, here, port) + timeout
        pieces = nl.pack(1 << 8, 0x401, 1, struct.pack("!BBH", 2, 0, 0) + body).split(port)
        ports = range(block, min(block + 4096, count))
        sock.send(b"".join(struct.pack("!H", number & 65535).join(pieces) for number in ports))
    assert not list(nl.received(sock))
"""


@pytest.fixture(scope="module")
def net() -> Iterator[Net]:
    """Services on TCP 80 and UDP 7."""
    with Net(servers=2, echo=True) as net:
        net.director.sysctl(*SYSCTLS, "net.ipv4.conf.lo.send_redirects=0")
        start(net, wrapper=inside(FROZEN))
        net.director.cli("service", "add", net.service(7) + "/udp", *net.reals(port=7), "--scheduler", "rr")
        check_traffic(net)
        yield net


def doctor(net: Net, *args: str, wrapper: list[str] | None = None) -> list[dict[str, Any]]:
    """Its findings; the exit code agrees with them."""
    done = net.director.run([*(wrapper or []), NFQLB, "doctor", "--json", *args], check=False, env=named(net))
    assert done.stderr == ""
    findings: list[dict[str, Any]] = json.loads(done.stdout)["findings"]
    assert done.returncode == (1 if any(not finding["fixed"] for finding in findings) else 0)
    return findings


def folders(net: Net) -> dict[str, str]:
    return {key: value for key, value in net.director.env().items() if key.startswith("NFQLB_")}


def named(net: Net) -> dict[str, str]:
    return {"NFQLB_NAME": net.director.instance}


def finds(net: Net, kind: str, *words: str) -> dict[str, Any]:
    """Nothing else is found: what was broken before is whole again. The sentence has these words."""
    found = doctor(net)
    assert {finding["id"] for finding in found} == {kind}, found
    matching = [finding for finding in found if all(word in finding["sentence"] for word in words)]
    assert matching, found
    return matching[0]


def mends(net: Net) -> None:
    """--fix does it, and traffic passes."""
    fixed = doctor(net, "--fix")
    assert fixed
    assert all(finding["fixed"] for finding in fixed), fixed
    check_traffic(net)


def type_fix(net: Net, finding: dict[str, Any], host: Host | None = None) -> None:
    """Do what the fix says, to the letter; what stands behind three spaces is another way."""
    assert not finding["fixable"]
    command = finding["fix"].partition("   (")[0]
    (host or net.director).run(["bash", "-c", command])


def answers(net: Net) -> bool:
    """Whether one request is answered within half a second."""
    argv = ["curl", "-fsS", "-o", "/dev/null", "--max-time", "0.5", net.url()]
    return net.client.run(argv, check=False).returncode == 0


def test_a_sound_director_has_no_findings(net: Net) -> None:
    assert doctor(net) == []
    done = net.director.run([NFQLB, "doctor"], env=named(net))
    assert done.stdout == "nothing found\n"


@pytest.mark.parametrize("setting", ["net.ipv4.ip_forward", "net.ipv4.conf.eth0.forwarding"])
def test_forwarding_is_off(net: Net, setting: str) -> None:
    net.director.sysctl(f"{setting}=0")
    assert not answers(net)
    finds(net, "ip_forward", f"{setting} is 0")
    mends(net)


def test_redirects_are_sent(net: Net) -> None:
    net.director.sysctl("net.ipv4.conf.all.send_redirects=1")
    finds(net, "redirects", "net.ipv4.conf.all.send_redirects")
    mends(net)


def test_answers_go_another_way_than_requests_come_and_rp_filter_is_strict(net: Net) -> None:
    director = net.director
    director.run(["iptables", "-t", "mangle", "-A", "PREROUTING", "-s", "10.2.0.0/24", "-j", "MARK", "--set-mark", "9"])
    director.ip("link add x0 type veth peer name x1", "link set x0 up", "link set x1 up")
    director.ip("rule add fwmark 9 lookup 100", "route add 10.1.1.0/24 via 10.2.0.254 table 100")
    director.ip("route add 10.1.1.0/24 dev x0")
    try:
        check_traffic(net)
        director.sysctl("net.ipv4.conf.eth0.rp_filter=1")
        assert not answers(net)
        finds(net, "rp_filter", "net.ipv4.conf.eth0.rp_filter is strict")
        mends(net)
    finally:
        director.ip("rule del fwmark 9 lookup 100", "link del x0")
        director.run(["iptables", "-t", "mangle", "-F", "PREROUTING"])


def test_the_vip_is_gone(net: Net) -> None:
    net.director.ip("address del 10.2.0.100/32 dev eth0")
    net.router.ip("neigh flush dev eth0")
    assert not answers(net)
    type_fix(net, finds(net, "vip", "10.2.0.100", "no address of this machine"))
    net.router.ip("neigh flush dev eth0")
    check_traffic(net)


def test_the_vip_is_kept_secret(net: Net) -> None:
    net.director.ip("address del 10.2.0.100/32 dev eth0", "address add 10.2.0.100/32 dev lo")
    net.director.sysctl("net.ipv4.conf.all.arp_ignore=1")
    net.router.ip("neigh flush dev eth0")
    assert not answers(net)
    finds(net, "vip_silent", "net.ipv4.conf.all.arp_ignore is 1", "10.2.0.100")
    mends(net)
    net.director.ip("address del 10.2.0.100/32 dev lo", "address add 10.2.0.100/32 dev eth0")


def test_a_real_server_has_no_route(net: Net) -> None:
    net.director.ip("route add unreachable 10.2.0.11/32")
    finding = finds(net, "route", "10.2.0.11")
    assert finding["fix"] == "ip route add 10.2.0.11/32 via GATEWAY"
    net.director.ip("route del unreachable 10.2.0.11/32")
    check_traffic(net)


def test_a_real_server_says_nothing(net: Net) -> None:
    net.servers[0].ip("link set eth0 down")
    net.director.ip("neigh flush dev eth0")
    finds(net, "neighbour", "10.2.0.11")
    net.servers[0].ip("link set eth0 up", "route add default via 10.2.0.1")
    check_traffic(net)


def test_a_routing_rule_for_the_mark_of_a_service_leads_nowhere(net: Net) -> None:
    director = net.director
    director.run(
        [
            "iptables",
            "-t",
            "mangle",
            "-A",
            "PREROUTING",
            "-d",
            "10.2.0.100",
            "-p",
            "tcp",
            "--dport",
            "81",
            "-j",
            "MARK",
            "--set-mark",
            "7",
        ]
    )
    director.cli("service", "add", "fwmark:7", "--real", "10.2.0.11:80")
    director.ip("rule add fwmark 7 lookup 107", "route add blackhole default table 107")
    request = ["curl", "-fsS", "--max-time", "0.5", "http://10.2.0.100:81/whoami"]
    assert net.client.run(request, check=False).returncode == 28
    type_fix(net, finds(net, "marks", "mark 7", "10.2.0.11", "nowhere"))
    assert net.client.run([*request, "--max-time", "5"]).stdout.split() == ["s1", "10.1.1.2"]
    director.cli("service", "delete", "fwmark:7")
    director.run(["iptables", "-t", "mangle", "-F", "PREROUTING"])


def test_long_packets_do_not_reach_a_real_server(net: Net) -> None:
    net.servers[0].ip("link set eth0 mtu 1400")
    assert load.udp(net.client, net.vip(), 2, 1450).count(None) == 1
    type_fix(net, finds(net, "mtu", "packets of 1500 bytes", "10.2.0.11", "those of 1400 do"))
    load.udp(net.client, net.vip(), 2, 1450)  # the client is told to send shorter ones
    assert load.udp(net.client, net.vip(), 2, 1450).count(None) == 0
    net.servers[0].ip("link set eth0 mtu 1500")
    net.director.ip("route del 10.2.0.11/32")


def test_answers_do_not_come_back_through_the_director(net: Net) -> None:
    for server in net.servers:
        server.ip("route replace default via 10.2.0.254")
    net.director.cli("service", "add", net.service(81), *net.reals())  # which has not been answered yet
    request = ["curl", "-fsS", "--max-time", "0.5", "http://10.2.0.100:81/whoami"]
    for _ in range(3):
        assert net.client.run(request, check=False).returncode == 28
    finding = finds(net, "answers", "10.2.0.100:81/tcp")
    where, _, command = finding["fix"].partition(": ")
    assert where == "on the real servers"
    for server in net.servers:
        type_fix(net, {**finding, "fix": command}, server)
    assert net.client.run([*request, "--max-time", "5"]).stdout.split()[1] == "10.1.1.2"
    net.director.cli("service", "delete", net.service(81))
    check_traffic(net)


def test_a_chain_of_others_drops_what_is_forwarded(net: Net) -> None:
    chain = "add chain inet castle gate { type filter hook forward priority 10 ; policy drop ; }"
    for line in ("add table inet castle", chain):
        net.director.run(["nft", *line.split()])
    assert not answers(net)
    type_fix(net, finds(net, "firewall", "chain gate", "inet castle"))
    check_traffic(net)
    assert doctor(net) == []
    net.director.run(["nft", "delete", "table", "inet", "castle"])


def test_every_real_server_has_weight_0(net: Net) -> None:
    for server in net.servers:
        net.director.cli("real", "edit", net.service(), f"{server.v4}:80", "--weight", "0")
    assert not answers(net)
    finds(net, "weights", "10.2.0.100:80/tcp")
    for server in net.servers:
        net.director.cli("real", "edit", net.service(), f"{server.v4}:80", "--weight", "1")
    check_traffic(net)


def test_segments_come_one_by_one(net: Net) -> None:
    net.offload(False)
    net.storage.fill("bulk", 8 * sizes.MIB)
    load.download(net.client, net.url("/bulk"))
    try:
        finds(net, "gro", "GRO is off on eth0")
        mends(net)
        features = net.director.run(["ethtool", "-k", "eth0"]).stdout
        assert "generic-receive-offload: on" in features
    finally:
        net.offload(True)


def test_connection_tracking_is_full(net: Net) -> None:
    """As many as the whole machine may have, of this network namespace, which is counted apart."""
    director = net.director
    limit = int(director.run(["cat", "/proc/sys/net/netfilter/nf_conntrack_max"]).stdout)
    director.run(["iptables", "-A", "OUTPUT", "-m", "conntrack", "--ctstate", "NEW", "-j", "ACCEPT"])
    director.run([sys.executable, "-c", TRACKED, str(limit * 95 // 100)])
    finding = finds(net, "conntrack", f"of {limit} tracked")
    assert finding["fix"] == f"sysctl -w net.netfilter.nf_conntrack_max={2 * limit}"  # the machine's: not for a test
    check_traffic(net)
    director.run(["conntrack", "-F"])
    director.run(["iptables", "-F", "OUTPUT"])


def test_the_kernel_dropped_packets(net: Net) -> None:
    """Last of its kind: the counts stay as long as the director does."""
    pid = net.director.director_pid()
    net.director.run(["kill", "-STOP", str(pid)])
    try:
        net.client.run([sys.executable, "-c", FLOOD, net.vip(), "20000"])
    finally:
        net.director.run(["kill", "-CONT", str(pid)])
    finding = finds(net, "drops", "the kernel dropped")
    assert "--workers" in finding["fix"]
    check_traffic(net)


def test_a_director_died_with_its_rules_in_place(net: Net) -> None:
    net.director.kill_both()
    assert not answers(net)
    finding = finds(net, "director", net.director.instance, "without cleaning up")
    assert finding["fix"].startswith(f"nfqlb run --name {net.director.instance}")
    start(net)
    check_traffic(net)
    assert doctor(net) == []


def test_the_director_lives_elsewhere(net: Net) -> None:
    done = net.client.run([NFQLB, "doctor", "--json"], check=False, env={**named(net), **folders(net)})
    [finding] = json.loads(done.stdout)["findings"]
    assert finding["id"] == "namespace"
    command = finding["fix"].replace("nfqlb doctor", f"{NFQLB} doctor --json")
    there = net.client.run(["bash", "-c", command], check=False, env={**named(net), **folders(net)})
    assert json.loads(there.stdout)["findings"] == []


@pytest.fixture
def bare(net: Net) -> Net:
    """The same, where the director was stopped."""
    assert net.director.process
    if net.director.process.running:
        net.director.stop()
    return net


def test_a_machine_that_can_run_a_director(bare: Net) -> None:
    done = bare.director.run([NFQLB, "doctor"], env=named(bare))
    assert done.stdout == f"no director {bare.director.instance} runs; the machine can run one\n"


@pytest.mark.parametrize("name", ["net_admin", "net_raw"])
def test_a_capability_is_missing(bare: Net, name: str) -> None:
    found = doctor(bare, wrapper=["setpriv", f"--bounding-set=-{name}", f"--inh-caps=-{name}"])
    [finding] = found
    assert (finding["id"], finding["fixable"]) == ("capabilities", False)
    assert finding["sentence"].startswith(f"CAP_{name.upper()} is missing")
    assert f"--cap-add {name.upper()}" in finding["fix"]


def test_a_program_is_missing(bare: Net) -> None:
    [finding] = doctor(bare, wrapper=inside("mount --bind /dev/null $(readlink -f $(command -v ipset))"))
    assert (finding["id"], finding["fix"]) == ("programs", "apt install iptables ipset")
    assert "ipset" in finding["sentence"]


def test_sysctls_cannot_be_changed(bare: Net) -> None:
    bare.director.sysctl("net.ipv4.ip_forward=0")
    [finding] = doctor(bare, wrapper=inside(FROZEN))
    assert finding["id"] == "sysctls"
    type_fix(bare, {**finding, "fix": finding["fix"].partition(": ")[2]})
    assert doctor(bare, wrapper=inside(FROZEN)) == []


def test_a_rule_accepts_before_the_iptables_diverter(bare: Net) -> None:
    start(bare, "--diverter", "iptables")
    bare.director.run(["iptables", "-t", "mangle", "-I", "PREROUTING", "-i", "eth0", "-j", "ACCEPT"])
    assert not answers(bare)
    type_fix(bare, finds(bare, "order", "PREROUTING -i eth0 -j ACCEPT"))
    check_traffic(bare)
    assert doctor(bare) == []
    assert bare.director.stop() == 0


# --- direct routing


def test_a_real_server_answers_arp_for_the_vip(make_net: Callable[..., Net]) -> None:
    net = make_net(servers=2, mode="dr")
    start(net, "--mode", "dr")
    check_traffic(net)
    assert doctor(net) == []
    bad = net.servers[0]
    net.real_server(bad, "undo")
    bad.ip("address add 10.2.0.100/32 dev lo")
    finding = finds(net, "arp", "the real server 10.2.0.11", "ARP for the VIP 10.2.0.100")
    where, _, command = finding["fix"].partition(": ")
    assert where == "on 10.2.0.11"
    type_fix(net, {**finding, "fix": command.replace("nfqlb", NFQLB, 1)}, bad)
    assert doctor(net) == []
    net.router.ip("neigh flush dev eth0")
    check_traffic(net)
    assert net.director.stop() == 0


def test_another_machine_has_the_vip_over_ipv6(make_net: Callable[..., Net]) -> None:
    net = make_net(servers=1)
    net.director.nfqlb("--vip", net.service(80, 6), *net.reals(family=6))
    net.storage.ip("address add 2001:db8:2::64/128 dev eth0 nodad")
    finds(net, "arp", "another machine", "ND for the VIP 2001:db8:2::64")
    net.storage.ip("address del 2001:db8:2::64/128 dev eth0")
    assert doctor(net) == []
    assert load.whoami(net.client, net.url(family=6), 2) == [("s1", "2001:db8:1:1::2")] * 2
