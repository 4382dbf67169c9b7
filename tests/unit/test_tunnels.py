"""Who takes packets out of a real server's tunnel: the kernel's device where it can be made, else BPF."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pyroute2.netlink.exceptions import NetlinkError  # type: ignore[import-untyped]

from nfqlb.errors import KernelError, MissingError
from nfqlb.kernel import sysctl, tunnels

VIP, VIP6 = "203.0.113.10", "2001:db8::10"
BOTH = (VIP, VIP6)
KERNEL4, KERNEL6 = "nfqlb-tun4", "nfqlb-tun6"


class FakeIp:
    """The links of a machine that makes devices of some kinds; a new one checks sources as strictly as conf/all."""

    def __init__(self, root: Path, *kinds: str) -> None:
        self.root, self.kinds = root, kinds
        self.states: dict[str, str] = {"eth0": "up"}
        self.added: list[tuple[str, str, bool]] = []
        self.addresses: dict[str, str] = {}

    def link_lookup(self, ifname: str) -> list[int]:
        return [list(self.states).index(ifname)] if ifname in self.states else []

    def get_links(self, ifname: str) -> list[dict[str, str]]:
        return [{"state": self.states[ifname]}]

    def link(self, verb: str, index: int = 0, ifname: str = "", kind: str = "", state: str = "", **data: int) -> None:
        if verb == "add":
            if kind not in self.kinds:
                raise NetlinkError(errno.EOPNOTSUPP, "Unknown device type")
            self.added.append((ifname, kind, bool(data[f"{kind}_collect_metadata"])))
            assert kind == "ipip" or data["ip6tnl_flags"] == 0x40
            self.states[ifname] = "down"
            write(self.root, ifname, "1")
        elif verb == "set":
            self.states[list(self.states)[index]] = state
        else:
            name = list(self.states)[index]
            del self.states[name]
            self.addresses.pop(name, None)

    def addr(self, verb: str, index: int, address: str, prefixlen: int, flags: int) -> None:
        name = list(self.states)[index]
        if verb != "add" or prefixlen != 32 or name in self.addresses:
            raise NetlinkError(errno.EEXIST, "exists")
        self.addresses[name] = address


class FakeBpf:
    def __init__(self) -> None:
        self.vips: list[str] = []

    def attach(self, vips: Sequence[str], devices: Sequence[str]) -> None:
        self.vips = list(vips) if devices else []

    def detach(self) -> None:
        self.vips = []

    def attached(self) -> list[str]:
        return ["eth0"] if self.vips else []


def write(root: Path, device: str, value: str) -> None:
    file = root / "net/ipv4/conf" / device / "rp_filter"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(value)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sysctl, "ROOT", tmp_path)
    write(tmp_path, "all", "1")
    return tmp_path


@pytest.mark.parametrize(
    ("kinds", "vips", "by", "devices", "left_to_bpf"),
    [
        (("ipip", "ip6tnl"), BOTH, "auto", {KERNEL4, KERNEL6}, []),
        (("ipip", "ip6tnl"), BOTH, "kernel", {KERNEL4, KERNEL6}, []),
        (("ipip", "ip6tnl"), (VIP,), "auto", {KERNEL4}, []),
        (("ipip",), BOTH, "auto", {KERNEL4}, [VIP6]),
        (("ip6tnl",), BOTH, "auto", {KERNEL6}, [VIP]),
        ((), BOTH, "auto", set(), [*BOTH]),
        (("ipip", "ip6tnl"), BOTH, "bpf", set(), [*BOTH]),
    ],
)
def test_each_family_goes_by_what_the_kernel_has(
    root: Path, kinds: tuple[str, ...], vips: tuple[str, ...], by: str, devices: set[str], left_to_bpf: list[str]
) -> None:
    ip, bpf = FakeIp(root, *kinds), FakeBpf()
    for _ in range(2):
        tunnels.take_out(ip, vips, ["eth0"], by, bpf)
        assert ip.states == {"eth0": "up"} | dict.fromkeys(devices, "up")
        assert bpf.vips == left_to_bpf
        assert tunnels.missing(ip, vips, "set it up", bpf) == []
    assert {name for name, _, without_ends in ip.added if without_ends} == devices, "made once"
    tunnels.leave(ip, bpf)
    assert (ip.states, bpf.vips) == ({"eth0": "up"}, [])


def test_another_choice_takes_the_first_ones_place(root: Path) -> None:
    ip, bpf = FakeIp(root, "ipip"), FakeBpf()
    tunnels.take_out(ip, [VIP], ["eth0"], "bpf", bpf)
    tunnels.take_out(ip, [VIP], ["eth0"], "kernel", bpf)
    assert (set(ip.states), bpf.vips) == ({"eth0", KERNEL4}, [])
    tunnels.take_out(ip, [VIP], ["eth0"], "bpf", bpf)
    assert (set(ip.states), bpf.vips) == ({"eth0"}, [VIP])


def test_the_device_checks_sources_loosely_whatever_the_machine_does(root: Path) -> None:
    ip = FakeIp(root, "ipip")
    tunnels.take_out(ip, [VIP, "203.0.113.11"], ["eth0"], "auto", FakeBpf())
    assert (root / "net/ipv4/conf" / KERNEL4 / "rp_filter").read_text() == "2"
    assert ip.addresses == {KERNEL4: VIP}, "without an address every source fails"


def test_without_the_module_the_kernel_cannot_be_asked_for(root: Path) -> None:
    with pytest.raises(MissingError) as error:
        tunnels.take_out(FakeIp(root), [VIP6], ["eth0"], "kernel", FakeBpf())
    assert str(error.value) == (
        "the kernel makes no tunnel device of kind ip6tnl (Operation not supported): "
        "load the module ip6_tunnel, or use --by bpf"
    )


def test_what_is_missing_is_named(root: Path) -> None:
    ip, bpf = FakeIp(root, "ipip"), FakeBpf()
    closed = ["nothing takes packets out of their tunnel: set it up"]
    assert tunnels.missing(ip, BOTH, "set it up", bpf) == closed
    tunnels.take_out(ip, [VIP], ["eth0"], "auto", bpf)
    assert tunnels.missing(ip, BOTH, "set it up", bpf) == closed, "of the other family"
    ip.states[KERNEL4] = "down"
    assert tunnels.missing(ip, [VIP], "set it up", bpf) == closed
    ip.states[KERNEL4] = "up"
    write(root, KERNEL4, "1")
    strict = f"sysctl net.ipv4.conf.{KERNEL4}.rp_filter drops what comes out of the tunnel: set it to 2"
    assert tunnels.missing(ip, [VIP], "set it up", bpf) == [strict]


def test_another_failure_of_the_kernel_is_not_taken_for_a_missing_device(root: Path) -> None:
    class Stubborn(FakeIp):
        def link(self, verb: str, *args: Any, **named: Any) -> None:
            if verb == "set":
                raise NetlinkError(errno.EPERM, "no")
            super().link(verb, *args, **named)

    with pytest.raises(KernelError, match=f"the device {KERNEL4} cannot be set up: Operation not permitted"):
        tunnels.take_out(Stubborn(root, "ipip"), [VIP], ["eth0"], "auto", FakeBpf())
