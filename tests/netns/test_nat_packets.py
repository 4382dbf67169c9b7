"""What a client hears that no real server gets."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import pytest

from netns import load
from netns.host import Host
from netns.topology import Net
from netns.wiring import endpoint
from tests.netns.conftest import How

# how a connection or a datagram ends, and after how many seconds
TRY = """
import errno, json, socket, sys, time
kind, host, port = sys.argv[1:]
sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, getattr(socket, kind))
sock.settimeout(2)
began = time.monotonic()
try:
    sock.connect((host, int(port)))
    sock.send(b"x")
    sock.recv(100)
    how = "answered"
except OSError as error:
    how = errno.errorcode.get(error.errno, "timeout")
print(json.dumps([how, time.monotonic() - began]))
"""


def attempt(client: Host, kind: str, address: str, port: int) -> str:
    """How it ends: "answered" or the name of an error; an answer that takes a second is none."""
    how, seconds = json.loads(client.run([sys.executable, "-c", TRY, kind, address, str(port)]).stdout)
    return str(how) if seconds < 1 else f"{how} after {seconds:.1f} s"


@pytest.mark.parametrize("vip", ["local", "routed"])
@pytest.mark.parametrize("family", [4, 6])
def test_without_a_server_the_client_hears_it_at_once(
    make_net: Callable[..., Net], how: How, family: int, vip: str
) -> None:
    net = make_net(servers=1, vip=vip)
    reals = ["--real", f"{endpoint(net.servers[0].address(family), 80)},weight=0"]
    services = ["--vip", net.service(family=family), "--vip", f"{net.service(53, family)}/udp"]
    net.director.nfqlb(*services, *reals, *how.args)
    assert attempt(net.client, "SOCK_STREAM", net.vip(family), 80) == "ECONNREFUSED"
    assert attempt(net.client, "SOCK_DGRAM", net.vip(family), 53) == "ECONNREFUSED"
    assert attempt(net.director, "SOCK_STREAM", net.vip(family), 80) == "ECONNREFUSED"


@pytest.mark.parametrize("family", [4, 6])
def test_what_no_server_gets_is_reset_or_dropped_as_asked(make_net: Callable[..., Net], how: How, family: int) -> None:
    net = make_net(servers=1, web=False, echo=True)
    service, vip = net.service(7, family), net.vip(family)
    real = ["--real", endpoint(net.servers[0].address(family), 7)]
    net.director.nfqlb("--vip", service, *real, "--no-server", "reset", "--no-connection", "reset", *how.args)
    held = load.Held(net.client, vip, 3)
    assert held.alive() == 3
    net.director.cli("service", "delete", service)
    net.director.cli("service", "add", service)  # with no real server
    with net.client.capture(f"tcp and src host {vip}") as pcap:
        assert attempt(net.client, "SOCK_STREAM", vip, 7) == "ECONNREFUSED"
    resets = net.client.run(["tcpdump", "-nr", str(pcap), "tcp[13] & 4 != 0" if family == 4 else "ip6[53] & 4 != 0"])
    assert len(resets.stdout.splitlines()) == 1
    assert net.director.show("reasons")["reasons"]["no_server"] == 1
