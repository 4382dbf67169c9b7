"""What direct routing and tunnelling need on a real server: the VIPs without ARP, packets out of their tunnel, and
clients that send none that would not fit into it.

Strategy: the same as on a director. Originals are on disk before anything is changed (kernel.saved), so `undo` puts
back what was there before the first set-up, and a set-up can be repeated. IPv6 needs no sysctl: neighbour discovery
answers on the interface that has the address, and nobody asks on `lo`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pyroute2 import IPRoute  # type: ignore[import-untyped]

from nfqlb.errors import ConfigError
from nfqlb.kernel import addresses, segments, sysctl, tunnels
from nfqlb.kernel.saved import Saved
from nfqlb.model import check_choice, family

LOOPBACK = "lo"
LEAST_MTU = 1280  # where no interface is up yet: what IPv6 asks of every link
SILENT = {"net/ipv4/conf/all/arp_ignore": "1", "net/ipv4/conf/all/arp_announce": "2"}


class RealServer:
    """This machine as a real server; `saved` is the file that keeps the originals."""

    def __init__(self, saved: Path) -> None:
        self._saved = Saved(saved)

    def setup(
        self, mode: str, vips: Sequence[str], devices: Sequence[str], by: str = "auto", mss: int | None = None
    ) -> None:
        """Serve these VIPs with `mode` dr or tun; packets of a tunnel come in on `devices`, on all if none is named.

        `by` says who takes them out of it (tunnels.BY), `mss` what the server's SYN/ACKs announce at most: 0 for
        anything, None for what fits into the tunnel. VIPs of earlier set-ups stay, and come out of tunnels, too.
        """
        check_choice("--by", by, tunnels.BY)
        with IPRoute() as ip:
            index = addresses.index_of(ip, LOOPBACK)
            there = addresses.present(ip, index)
            missing = [vip for vip in vips if vip not in there]
            chosen = _chosen(ip, devices)
            self._saved.addresses += [
                [LOOPBACK, vip] for vip in missing if [LOOPBACK, vip] not in self._saved.addresses
            ]
            for name, value in _silent(vips):
                now = sysctl.read(name)
                if now is not None and now != value:
                    self._saved.sysctls.setdefault(name, now)
            self._saved.write()
            tunnelled = sorted({*vips, *(vip for device, vip in self._saved.addresses if device == LOOPBACK)})
            for name, value in _silent(vips):
                if sysctl.read(name) != value:
                    sysctl.write(name, value)
            if mode == "tun":
                tunnels.take_out(ip, tunnelled, list(chosen), by)
            if _lowers(mode, mss):
                segments.announce(tunnelled, min(chosen.values(), default=LEAST_MTU), mss)
            else:
                segments.leave()
            for vip in missing:
                addresses.add(ip, index, LOOPBACK, vip)

    def check(self, mode: str, vips: Sequence[str], mss: int | None = None) -> list[str]:
        """What is missing, a sentence each with its fix."""
        found = []
        with IPRoute() as ip:
            there = addresses.present(ip, addresses.index_of(ip, LOOPBACK))
            found += [
                f"the VIP {vip} is not an address of {LOOPBACK}: {_fix(mode, vips)}" for vip in vips if vip not in there
            ]
            exposed = _elsewhere(ip).intersection(vips)
            shut = tunnels.missing(ip, vips, _fix(mode, vips)) if mode == "tun" else []
        found += [
            f"the VIP {vip} is an address of another interface than {LOOPBACK}, which tells everybody: remove it there"
            for vip in sorted(exposed)
        ]
        for name, value in _silent(vips):
            now = sysctl.read(name)
            if now is not None and int(now) < int(value):
                found.append(
                    f"sysctl {sysctl.title(name)} is {now}, so this machine answers ARP for VIPs: set it to {value}"
                )
        found += shut
        if _lowers(mode, mss) and not all(segments.attached(family(vip)) for vip in vips):
            found.append(f"nothing keeps clients from segments that are too long for a tunnel: {_fix(mode, vips)}")
        return found

    def undo(self) -> None:
        """Put everything back as it was before the first set-up."""
        shared = self._saved.others()
        with IPRoute() as ip:
            for device, vip in self._saved.addresses:
                addresses.remove(ip, device, vip)
            tunnels.leave(ip)
        segments.leave()
        for name, value in self._saved.sysctls.items():
            if name not in shared.sysctls and sysctl.read(name) is not None:
                sysctl.write(name, value)
        self._saved.clear()


def _silent(vips: Sequence[str]) -> Iterator[tuple[str, str]]:
    if any(family(vip) == 4 for vip in vips):
        yield from SILENT.items()


def _lowers(mode: str, mss: int | None) -> bool:
    return mode == "tun" if mss is None else mss > 0


def _chosen(ip: IPRoute, devices: Sequence[str]) -> dict[str, int]:
    """The devices that are named, or every one that is up and has link-layer addresses, and the MTU of each."""
    links = {str(link.get("ifname")): link for link in ip.get_links()}
    for device in devices:
        if device not in links:
            raise ConfigError("--dev", device, "is not an interface", "see `ip link` for their names")
    up = [name for name, link in links.items() if name != LOOPBACK and link.get("operstate") == "UP"]
    return {name: int(links[name].get("mtu")) for name in devices or up}


def _elsewhere(ip: IPRoute) -> set[str]:
    """The addresses of all interfaces but the loopback one and our tunnels', on which nobody asks."""
    silent = (LOOPBACK, *tunnels.NAMES.values())
    links = [int(link["index"]) for link in ip.get_links() if link.get("ifname") not in silent]
    return set().union(*(addresses.present(ip, index) for index in links))


def _fix(mode: str, vips: Sequence[str]) -> str:
    return f"`nfqlb real-server setup --mode {mode} {' '.join(f'--vip {vip}' for vip in vips)}`"
