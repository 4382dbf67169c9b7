"""One function per finding: what is wrong, in a sentence, and the fix; pure, over a reading of the machine.

A repair does what the fix says, and is there only where it can make nothing worse for others: sysctls that nfqlb sets
itself or that only loosen a check, and offloads. Addresses, routes, firewalls and other machines are the operator's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from nfqlb.kernel import programs, sysctl
from nfqlb.kernel.doctor import reading
from nfqlb.kernel.doctor.reading import Machine, Served, Service, Way
from nfqlb.kernel.queues import RECEIVE_BUFFER
from nfqlb.model import family

ENOUGH = 3  # packets of clients after which an answer should have come by
BULK = 1000  # packets from which their mean size says something
NEARLY_FULL = 0.9
REASONS = {  # reason -> what it means, what to do
    "table_full": ("found no room in the connection table", "`nfqlb run` with a larger --connections"),
    "truncated": ("were longer than the 65,531 bytes that can be rewritten", "a smaller datagram or MTU"),
    "shed": ("were new while more came than could be taken", "more --workers, or --offload auto"),
    "fragment": (
        "were fragments that this kernel does not reassemble",
        "modprobe -a nft_compat xt_socket, start again",
    ),
}


class Finding(NamedTuple):
    """`id` is stable; severity is "error" where packets are lost, else "warning"; `fix` is a command or what to do."""

    id: str
    severity: str
    sentence: str
    fix: str
    repair: Callable[[], object] | None = None


Check = Callable[[Served, Machine], Iterator[Finding]]


def capabilities(_: Served, machine: Machine) -> Iterator[Finding]:
    for name in machine.missing:
        option = name.removeprefix("CAP_")
        fix = f"run it as root, in a container with --cap-add {option}"
        yield Finding("capabilities", "error", f"{name} is missing: packets cannot be diverted without it", fix)


def programs_there(_: Served, machine: Machine) -> Iterator[Finding]:
    if machine.programs:
        absent = ", ".join(machine.programs)
        yield Finding("programs", "error", f"programs are not there: {absent}", programs.APT)
    if machine.unable:
        yield Finding("kernel", "error", machine.unable, "modprobe -a nf_tables nft_compat xt_NFQUEUE")


def director(served: Served, _: Machine) -> Iterator[Finding]:
    start = f"nfqlb run --name {served.name} ..., as before: it goes on with connections and services, or --restore"
    if served.left:
        text = f"the director {served.name} ended without cleaning up: packets for its VIPs are dropped"
        yield Finding("director", "error", text, start)
    if served.elsewhere:
        text = f"the director {served.name} lives in another network namespace: this one was not looked at"
        yield Finding("namespace", "error", text, f"nsenter --net --target {served.elsewhere} nfqlb doctor")


def forwarding(served: Served, machine: Machine) -> Iterator[Finding]:
    """The switches, and each device's own: one that is off drops what comes in there."""
    names = [sysctl.SWITCH[4]] if 4 in served.families else []
    for number in sorted(served.families):
        names += [f"net/ipv{number}/conf/{device}/forwarding" for device in ("all", *sorted(machine.devices))]
    for name in dict.fromkeys(names):
        if machine.sysctls.get(name) == "0":
            where = f"what comes in by {name.split('/')[3]}" if "conf" in name and "/all/" not in name else "nothing"
            verb = "is not forwarded" if where != "nothing" else "is forwarded"
            yield _sysctl("ip_forward", "error", name, "1", f"is 0: {where} {verb}")


def frozen(served: Served, machine: Machine) -> Iterator[Finding]:
    name = sysctl.SWITCH[4]
    if not served.running and machine.frozen and machine.sysctls.get(name) == "0":
        text = "sysctls cannot be changed from here (read-only), and net.ipv4.ip_forward is 0"
        fix = "from outside: sysctl -w net.ipv4.ip_forward=1 net.ipv4.conf.all.send_redirects=0"
        yield Finding("sysctls", "error", text, fix)


def redirects(served: Served, machine: Machine) -> Iterator[Finding]:
    for device in ("all", *sorted(machine.devices)) if 4 in served.families else ():
        name = f"net/ipv4/conf/{device}/send_redirects"
        if machine.sysctls.get(name) == "1":
            text = "is 1: real servers on the clients' network are told to answer them past the director"
            yield _sysctl("redirects", "warning", name, "0", text)


def rp_filter(_: Served, machine: Machine) -> Iterator[Finding]:
    """The kernel takes the larger of "all" and the device's own, and 2 is loose (net/ipv4/fib_frontend.c)."""
    every = int(machine.sysctls.get("net/ipv4/conf/all/rp_filter", "0"))
    for device in sorted(machine.devices) if machine.martians else ():
        name = f"net/ipv4/conf/{device}/rp_filter"
        if max(every, int(machine.sysctls.get(name, "0"))) == 1:
            text = f"is strict there, and {machine.martians} packets came in otherwise than their answers go: dropped"
            yield _sysctl("rp_filter", "error", name, "2", text)


def vips(served: Served, machine: Machine) -> Iterator[Finding]:
    arrived = {service.vip for service in served.services if service.inpkts}  # a router may send it here
    for vip in sorted(served.vips) if served.has_vips else ():
        way = machine.ways.get(vip)
        if vip in machine.holders or (way and way.local):
            yield from _silent(vip, machine)
        elif way and not way.gateway:
            fix = f"ip address add {_host(vip)} dev {way.device}   (or run with --vip-dev {way.device})"
            text = f"the VIP {vip} is no address of this machine: nobody on {way.device} hears where it is"
            yield Finding("vip", "error", text, fix)
        elif vip not in arrived:
            text = f"the VIP {vip} is no address of this machine, and no packet for it has come so far"
            yield Finding("vip", "error", text, "let the routers send it here")


def _silent(vip: str, machine: Machine) -> Iterator[Finding]:
    """A VIP on lo is told of on other devices only while arp_ignore is 0 (RFC 826 knows no devices)."""
    for device in ("all", *sorted(machine.devices)) if machine.holders.get(vip) == "lo" and family(vip) == 4 else ():
        name = f"net/ipv4/conf/{device}/arp_ignore"
        if machine.sysctls.get(name, "0") != "0":
            text = f"is {machine.sysctls[name]}, and the VIP {vip} is on lo: nobody hears where it is"
            yield _sysctl("vip_silent", "error", name, "0", text)


def weights(served: Served, _: Machine) -> Iterator[Finding]:
    for service in served.services:
        if not service.serves:
            text = f"no real server of {service.key} takes new connections: clients are refused"
            fix = f"nfqlb show services (who is down), or nfqlb real edit {service.key} REAL --weight 1"
            yield Finding("weights", "warning", text, fix)


def servers(served: Served, machine: Machine) -> Iterator[Finding]:
    for server in sorted(served.servers):
        if server not in machine.ways:
            fix = f"ip route add {_host(server)} via GATEWAY"
            yield Finding("route", "error", f"there is no route to the real server {server}", fix)
        elif server in machine.silent:
            text = f"the real server {server} answers neither ARP nor neighbour discovery"
            yield Finding("neighbour", "error", text, "see whether it is up, and on this network")


def marks(_: Served, machine: Machine) -> Iterator[Finding]:
    """What a firewall mark brings to a service keeps it: rules for marks decide over the way to the server as well."""
    for (mark, server), device in sorted(machine.marked.items()):
        way = machine.ways.get(server)
        if way and device != way.device:
            where = f"to {device}" if device else "nowhere"
            text = f"a routing rule sends packets with the mark {mark} for the real server {server} {where}"
            command = "ip -6" if family(server) == 6 else "ip"
            fix = f"{command} rule add pref 1 fwmark {mark} to {server} lookup main"
            yield Finding("marks", "error", text, fix)


def others_with_the_vip(served: Served, machine: Machine) -> Iterator[Finding]:
    modes = {(service.vip, real): service.mode for service in served.services for real in service.reals}
    for vip, claims in sorted(machine.claims.items()) if served.has_vips else ():
        for mac in sorted(claims):
            server = machine.macs.get(mac, "")
            who = f"the real server {server}" if server else "another machine"
            text = f"{who} ({mac.hex(':')}) answers ARP for the VIP {vip}: clients go past the director"
            mode = modes.get((vip, server), "nat")
            setup = f"on {server}: nfqlb real-server setup --mode {mode} --vip {vip}"
            fix = setup if mode != "nat" else "take the VIP from it"
            yield Finding("arp", "error", text.replace("ARP", "ARP" if family(vip) == 4 else "ND"), fix)


def sizes(served: Served, machine: Machine) -> Iterator[Finding]:
    if machine.claims:
        return  # answers to an address that two have get lost whatever their size
    for server, longest in sorted(machine.echoes.items()):
        way = machine.ways[server]
        if longest < way.mtu:
            text = f"packets of {way.mtu} bytes do not reach the real server {server}, those of {longest} do"
            command = "ip -6 route replace" if family(server) == 6 else "ip route replace"
            fix = f"{command} {_host(server)} {_via(way)}dev {way.device} mtu {longest}"
            yield Finding("mtu", "error", text, fix)


def answers(served: Served, machine: Machine) -> Iterator[Finding]:
    for service in served.services:
        if service.mode == "nat" and service.inpkts >= ENOUGH and not service.outpkts:
            text = f"{service.inpkts} packets for {service.key} went to real servers, and no answer came back this way"
            sources = {machine.ways[real].source for real in service.reals if real in machine.ways} - {""}
            gateway = min(sources, default="THIS-MACHINE")
            command = "ip -6 route replace" if ":" in gateway else "ip route replace"
            yield Finding("answers", "error", text, f"on the real servers: {command} default via {gateway}")


def chains(served: Served, machine: Machine) -> Iterator[Finding]:
    for chain in machine.chains:
        if not chain.named:
            text = f"the chain {chain.name} of nftables table {chain.family} {chain.table} drops forwarded packets"
            rule = f"nft insert rule {chain.family} {chain.table} {chain.name}"
            ends = {"daddr": served.servers, "saddr": served.vips | served.servers}  # answers bear the VIP there
            rules = [
                f"{rule} '{'ip6' if version == 6 else 'ip'} {end} {{ {', '.join(sorted(chosen))} }} accept'"
                for version in sorted(served.families)
                for end, addresses in ends.items()
                if chain.family in ("inet", "ip6" if version == 6 else "ip")
                and (chosen := [address for address in addresses if family(address) == version])
            ]
            yield Finding("firewall", "error", text, " && ".join(rules))


def ahead(_: Served, machine: Machine) -> Iterator[Finding]:
    for program, rule in machine.ahead:
        text = f"a rule accepts packets before the iptables diverter sees them: {rule}"
        fix = f"{program} -t mangle -D {rule}"
        yield Finding("order", "warning", text, f"{fix}   (or run with --diverter nft)")


def queues(served: Served, machine: Machine) -> Iterator[Finding]:
    for queue in served.queues:
        if queue.number not in machine.listeners:
            text = f"nobody listens on queue {queue.number}: packets for VIPs are dropped"
            yield Finding("queue", "error", text, "stop the director and start it again")
        if queue.dropped:
            text = f"the kernel dropped {queue.dropped} packets of queue {queue.number}: its worker could not take more"
            yield Finding("drops", "warning", text, "`nfqlb run` with more --workers, as far as there are CPUs")
        if queue.buffer < RECEIVE_BUFFER:
            text = f"the socket of queue {queue.number} holds {queue.buffer} bytes only: bursts are lost"
            fix = f"sysctl -w net.core.rmem_max={RECEIVE_BUFFER} outside of containers, then start the director again"
            yield Finding("buffers", "warning", text, fix)


def reasons(served: Served, _: Machine) -> Iterator[Finding]:
    for reason, (meaning, fix) in REASONS.items():
        if count := served.reasons.get(reason):
            yield Finding(reason, "warning", f"{count} packets so far {meaning}", fix)


def offload(served: Served, machine: Machine) -> Iterator[Finding]:
    """Without GRO each segment is a packet for the queue; the mean size tells whether that is so."""
    off = sorted(device for device, on in machine.gro.items() if not on)
    if off and any(_segments(service) for service in served.services):
        for device in off:
            text = f"GRO is off on {device}, and bulk TCP comes segment by segment: many times the packets"
            repair = partial(reading.gro, device, True)
            yield Finding("gro", "warning", text, f"ethtool -K {device} gro on", repair)


def _segments(service: Service) -> bool:
    ways = ((service.inbytes, service.inpkts), (service.outbytes, service.outpkts))
    return service.key.endswith("/tcp") and any(n > BULK and 1000 < octets / n <= 1500 for octets, n in ways)


def conntrack(_: Served, machine: Machine) -> Iterator[Finding]:
    count, limit = machine.tracked
    if limit and count >= NEARLY_FULL * limit:
        text = f"{count} of {limit} tracked connections: this machine's own new ones fail, not those of services"
        yield Finding("conntrack", "warning", text, f"sysctl -w net.netfilter.nf_conntrack_max={2 * limit}")


ANYWHERE: tuple[Check, ...] = (capabilities, programs_there, director)
CHECKS: tuple[Check, ...] = (  # of the machine where the director runs
    frozen,
    forwarding,
    redirects,
    rp_filter,
    vips,
    weights,
    servers,
    marks,
    others_with_the_vip,
    sizes,
    answers,
    chains,
    ahead,
    queues,
    reasons,
    offload,
    conntrack,
)


def _sysctl(kind: str, severity: str, name: str, value: str, problem: str) -> Finding:
    title = sysctl.title(name)
    repair = partial(sysctl.write, name, value)
    return Finding(kind, severity, f"{title} {problem}", f"sysctl -w {title}={value}", repair)


def _host(address: str) -> str:
    return f"{address}/{128 if family(address) == 6 else 32}"


def _via(way: Way) -> str:
    return f"via {way.gateway} " if way.gateway else ""
