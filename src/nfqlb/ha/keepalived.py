"""The configuration of keepalived, from ours: values in, text out.

Strategy: one VRRP instance has all addresses, so that those of both families move together. keepalived compares the
addresses in a master's adverts with its own, and does not heed a master that has others; two directors whose services
differ, if only while a change is on its way, would both be master. So the adverts name one address alone that follows
from the group's number: a loopback address, which every machine takes for its own in any case, or for IPv6 one of the
link that stands on the loopback device, as the first one has to be (RFC 9568, 5.2.9). The VIPs are "excluded": they
move with the instance, and are announced, but are in no advert (keepalived.conf(5), virtual_ipaddress_excluded).

Whether this director is ready stands in a file: 0 where it is. Anything else is a fault, and a fault is no master.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from nfqlb.ha.keeper import FIFO, READY
from nfqlb.model import family
from nfqlb.runconfig import Ha


def configuration(ha: Ha, name: str, addresses: Iterable[str], folder: Path) -> str:
    """The file for the director called `name`, whose files are in `folder`; the same values are the same text."""
    return "\n".join(_lines(ha, name, sorted(addresses), folder)) + "\n"


def instance(name: str) -> str:
    """What the VRRP instance of a director is called."""
    return f"nfqlb-{name}"


def _lines(ha: Ha, name: str, addresses: list[str], folder: Path) -> Iterator[str]:
    own = instance(name)
    device = ha.device or ha.interface
    yield f"# Written by the director {name!r} of nfqlb, which writes it again."
    yield "global_defs {"
    if ha.keepalived == "start":
        yield f"    router_id {own}"
    yield "    vrrp_version 3"
    yield f"    vrrp_notify_fifo {folder / FIFO}"
    yield "    fifo_write_vrrp_states_on_reload"
    yield "}"
    yield f"track_file {own} {{"
    yield f"    file {folder / READY}"
    yield "    weight 0"
    yield "}"
    yield f"vrrp_instance {own} {{"
    yield "    state BACKUP"
    yield f"    interface {ha.interface}"
    yield "    version 3"
    yield f"    virtual_router_id {ha.vrid}"
    yield f"    priority {ha.priority}"
    yield f"    advert_int {ha.interval:.2f}"
    if ha.family == 6:
        yield "    native_ipv6"
    if not ha.preempt:
        yield "    nopreempt"
    elif ha.preempt_delay:
        yield f"    preempt_delay {ha.preempt_delay}"
    if ha.source:
        yield f"    {'unicast' if ha.peers else 'mcast'}_src_ip {ha.source}"
    if ha.peers:
        yield from _block("unicast_peer", ha.peers)
    yield from _block("track_file", [own])
    ways = [one.partition("%")[::2] for one in ha.gateways]
    moved = [(one, device) for one in addresses] + [(one, other or ha.interface) for one, other in ways]
    if others := sorted({other for _, other in moved} - {ha.interface}):
        yield from _block("track_interface", others)
    yield from _block("virtual_ipaddress", [advertised(ha)])
    if moved:
        yield from _block("virtual_ipaddress_excluded", [_address(*one) for one in moved])
    yield "}"


def advertised(ha: Ha) -> str:
    """The one address that adverts name."""
    return f"127.0.112.{ha.vrid}/32 dev lo" if ha.family == 4 else f"fe80::112:{ha.vrid:x}/128 dev lo"


def _address(address: str, device: str) -> str:
    """A host address; one of IPv6 is deprecated from the start, so that it is no source (kernel/addresses.py)."""
    return f"{address}/32 dev {device}" if family(address) == 4 else f"{address}/128 dev {device} preferred_lft 0"


def _block(name: str, lines: Iterable[str]) -> Iterator[str]:
    yield f"    {name} {{"
    yield from (f"        {line}" for line in lines)
    yield "    }"
