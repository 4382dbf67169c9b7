"""What a table does when it defends itself, seen from the client: drop_packet, secure_tcp and drop_entry, always up."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from netns import load
from netns.host import until
from netns.topology import Net

TALKER = """
import socket, sys
connection = socket.create_connection((sys.argv[1], 7), 5)
print("connected", flush=True)
input()
connection.sendall(b"hello\\n")
connection.recv(100)
print("answered", flush=True)
input()
"""
SILENT = 9  # a port whose SYNs the real servers drop


def defend(net: Net, name: str, up: int, *options: str) -> None:
    """Set it, and wait until it is up; the director looks once a second."""
    net.director.cli("set", f"options.{name}=3", *options)
    until(lambda: defences(net)[name] == up, 20, lambda: f"{name} is not up: {defences(net)}")


def defences(net: Net) -> Any:
    return net.director.show("daemon")["defences"]


def states(net: Net) -> list[str]:
    return [row["state"] for row in net.director.show("connections")["connections"] if row["protocol"] == "tcp"]


def test_defences_that_are_up(make_net: Callable[..., Net]) -> None:
    net = make_net(servers=2, echo=True)
    vips = [net.service(7), f"{net.service(7)}/udp", net.service(SILENT)]
    words = [word for vip in vips for word in ("--vip", vip)]
    reals = [word for server in net.servers for word in ("--real", server.v4)]
    net.director.nfqlb(*words, *reals)

    # half a handshake: its connection goes long before its 60 s are over
    for server in net.servers:
        server.run(["iptables", "-A", "INPUT", "-p", "tcp", "--dport", str(SILENT), "-j", "DROP"])
    net.client.run(["curl", "-s", "-m", "0.2", f"http://{net.service(SILENT)}/"], check=False)
    assert states(net) == ["SYN_RECV"]
    defend(net, "drop_entry", 1)
    until(lambda: states(net) == [], 20, lambda: f"it is there still: {states(net)}")
    assert defences(net)["evicted"] == 1
    net.director.cli("set", "options.drop_entry=0")

    # a client alone establishes nothing
    defend(net, "secure_tcp", 1)
    talker = net.client.spawn([sys.executable, "-c", TALKER, net.vip()])
    talker.says("connected")
    until(lambda: states(net) == ["SYNACK"], 20, lambda: f"it is {states(net)}")
    talker.tell("")
    talker.says("answered")
    assert states(net) == ["ESTABLISHED"]
    net.director.cli("set", "options.secure_tcp=0")

    # of first packets the first, the sixth and so on; those that follow pass
    defend(net, "drop_packet", 5, "options.am_droprate=5")
    answers = load.udp(net.client, net.vip(), 10, 100)
    assert [answer is None for answer in answers] == [at % 5 == 0 for at in range(10)]
    assert net.director.show("reasons")["reasons"]["drop_packet"] == 2
