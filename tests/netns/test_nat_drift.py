"""Others flush rules, destroy sets, reset sysctls and delete the VIP under load: within 3 s all is as before."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest

from netns import kernelstate, load
from netns.host import CommandError, until
from netns.topology import Net

BACK_WITHIN = 3.0
WATCHED = 1.0


def flush_iptables(net: Net) -> None:
    for program in ("iptables", "ip6tables"):
        for table in ("raw", "mangle", "nat", "filter"):
            net.director.run([program, "-t", table, "-F"])
            net.director.run([program, "-t", table, "-X"])


def flush_nft(net: Net) -> None:
    net.director.run(["nft", "flush", "ruleset"])


def empty_sets(net: Net) -> None:
    listing = json.loads(net.director.run(["nft", "-j", "list", "sets"]).stdout)["nftables"]
    for found in (entry["set"] for entry in listing if "set" in entry):
        net.director.run(["nft", "flush", "set", found["family"], found["table"], found["name"]])
    net.director.run(["ipset", "flush"])


def destroy_sets(net: Net) -> None:
    """Rules first, for a set in use can't be destroyed; again where the director was quicker to put its rules back."""
    for left in reversed(range(20)):
        flush_iptables(net)
        flush_nft(net)
        try:
            net.director.run(["ipset", "destroy"])
            return
        except CommandError:
            if not left:
                raise


def reset_forwarding(net: Net) -> None:
    net.director.sysctl("net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0")


def delete_vip(net: Net) -> None:
    net.director.ip(f"address delete {net.vip()}/32 dev {net.uplink}")


def start(net: Net, args: list[str]) -> load.Probe:
    """nfqlb under load, and a probe that saw no failure yet."""
    net.director.nfqlb("--vip", net.service(), *net.reals(), "--vip-dev", net.uplink, *args)
    load.Wrk(net.client, net.url(), connections=5, seconds=8, keepalive=False)
    probe = load.Probe(net.client, net.url(), patience=load.Probe.PATIENCE)
    probe.wait()
    assert all(ok for _, ok in probe.results()), "traffic failed before anything was broken"
    return probe


def check_traffic(probe: load.Probe, since: float) -> None:
    """Every request from `since` on, for a second and ten of them, was answered."""

    def watched() -> list[bool]:
        return [ok for when, ok in probe.results() if when > since]

    time.sleep(max(0.0, since + WATCHED - time.monotonic()))
    until(lambda: len(watched()) >= 10, 10, lambda: f"{len(watched())} requests")
    probe.end()
    assert all(watched()), f"{watched().count(False)} of {len(watched())} requests failed"


def wait_until_as_before(net: Net, before: dict[str, str], deadline: float) -> None:
    """A look that begins before the deadline, and takes long, may miss what is there then."""
    begun = time.monotonic()
    while difference := kernelstate.difference(before, net.director.state()):
        assert begun < deadline, f"{BACK_WITHIN} s after the break:\n{difference}"
        begun = time.monotonic()


@pytest.mark.parametrize(
    "break_it",
    [flush_iptables, flush_nft, empty_sets, destroy_sets, reset_forwarding, delete_vip],
    ids=lambda function: function.__name__,
)
def test_all_is_as_before_within_3_seconds(
    make_net: Callable[..., Net], diverter: list[str], break_it: Callable[[Net], None]
) -> None:
    net = make_net(servers=2, vip="free")
    if break_it is flush_iptables:  # else there is nothing of ours in iptables with the nft diverter
        for program in ("iptables", "ip6tables"):
            net.director.run([program, "-P", "FORWARD", "DROP"])
    found = net.director.state()
    probe = start(net, diverter)
    before, repairs = net.director.state(), net.director.show("daemon")["repairs"]
    break_it(net)
    broken = begun = time.monotonic()
    while net.director.show("daemon")["repairs"] == repairs:
        assert begun < broken + BACK_WITHIN, "nothing was found broken"
        begun = time.monotonic()
    wait_until_as_before(net, before, broken + BACK_WITHIN)
    check_traffic(probe, time.monotonic())
    net.director.stop()
    assert kernelstate.difference(found, net.director.state()) == ""


@pytest.mark.parametrize("arms", [1, 2])
def test_strict_reverse_path_filter_set_by_others_stops_nothing(
    make_net: Callable[..., Net], diverter: list[str], arms: int
) -> None:
    net = make_net(servers=2, arms=arms, vip="free")
    probe = start(net, diverter)
    devices = ["all", "default", *net.director.devices]
    net.director.sysctl(*(f"net.ipv4.conf.{device}.rp_filter=1" for device in devices))
    check_traffic(probe, time.monotonic() + BACK_WITHIN)
