"""The whole data path once more, slow and readable: lists, dicts, and checksums from scratch.

It is the oracle of the property tests: whatever the core does with a sequence of packets, this says what it should
have done. It shares no code with the core and follows only its manners: a `Virtual` of tests.core.lab describes a
service, time is nanoseconds, a packet comes out as (verdict, reason, bytes). Two things it leaves out: packets whose
checksum was wrong before, and the order in which a connection list is told.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from nfqlb.testing import CHUNKS, crc32c, endpoint
from tests.core import associations
from tests.core.lab import DEFAULTS, KIND, PROTOCOLS, Connection, Policy, Timeouts, Virtual

TICK = 100_000_000
TCP, UDP, SCTP = 6, 17, 132
BY_MARK = -1
OWN4, OWN6 = endpoint("10.0.2.1:0")[0], endpoint("[fd00:2::1]:0")[0]  # where tunnels begin
End = tuple[bytes, int]
Key = tuple[int, End]  # protocol, VIP
Outcome = tuple[str, str, bytes | None]

VERDICTS = {
    **dict.fromkeys(["forwarded", "returned", "error_forwarded", "error_returned"], "rewrite"),
    **dict.fromkeys(["icmp", "other_protocol", "no_service", "no_connection", "unrelated"], "accept"),
    **dict.fromkeys(["malformed", "truncated", "fragment", "no_server", "table_full", "server_gone"], "drop"),
    **dict.fromkeys(["bad_checksum", "refused", "no_neighbour", "ttl_exceeded", "too_big"], "drop"),
    **dict.fromkeys(["routed", "tunnelled", "error_routed"], "transmit"),
    **dict.fromkeys(["marked", "error_marked"], "mark"),
    **dict.fromkeys(["local", "error_reissued"], "accept"),
}
STATES = ["NONE", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT", "TIME_WAIT", "CLOSE", "CLOSE_WAIT"]
ACTIVE = {"ESTABLISHED", "SYN_SENT", "SYN_RECV"}
# what a client and a server make of a connection, by the flag that counts; states that no packet leads to are left out
CLIENT = {
    "rst": {"SYN_RECV": "SYN_RECV"},  # all others: CLOSE
    "syn": {"ESTABLISHED": "ESTABLISHED", "SYN_SENT": "ESTABLISHED"},  # all others: SYN_RECV
    "fin": {
        "NONE": "CLOSE",
        "ESTABLISHED": "CLOSE_WAIT",
        "SYN_RECV": "TIME_WAIT",
        "FIN_WAIT": "TIME_WAIT",
    },  # all others: no change
    "ack": {"NONE": "ESTABLISHED", "SYN_RECV": "ESTABLISHED"},  # all others: no change
}
# as CLIENT, where nobody sees what the server sends
ALONE = CLIENT | {"fin": {"NONE": "CLOSE", "ESTABLISHED": "FIN_WAIT", "SYN_RECV": "TIME_WAIT"}}
SERVER = {
    "rst": {"SYN_SENT": "SYN_SENT", "TIME_WAIT": "TIME_WAIT"},  # all others: CLOSE
    "syn": {"ESTABLISHED": "ESTABLISHED", "SYN_RECV": "SYN_RECV"},  # all others: SYN_SENT
    "fin": {"ESTABLISHED": "FIN_WAIT", "SYN_RECV": "TIME_WAIT", "CLOSE_WAIT": "TIME_WAIT"},  # all others: no change
    "ack": {"SYN_RECV": "ESTABLISHED"},  # all others: no change
}


@dataclass
class Parsed:
    reason: str = ""
    protocol: int = 0
    transport: int = 0
    end: int = 0  # of the IP packet
    source: End = (b"", 0)
    destination: End = (b"", 0)
    flag: str = ""


@dataclass
class Entry:
    protocol: int
    client: End
    vip: End
    server: End
    mode: str = "nat"
    left: bool = False  # the flow went on with another server
    state: str = "NONE"
    expires: int = 0

    @property
    def slot(self) -> tuple[Key, End]:
        return (self.protocol, self.vip), self.server


@dataclass
class Service:
    """`servers` newest first, with weights; `last` is the last one chosen, None the head of the list."""

    scheduler: str
    mode: str = "nat"
    servers: list[tuple[End, int]] = field(default_factory=list)
    last: End | None = None
    threshold: int = 0


class Model:
    """One director's data path; `ways` tells the MTU towards real servers: None for no way, 0 for this machine, BY_MARK
    where the kernel goes by a mark. The others have 1500.
    """

    def __init__(
        self,
        *virtuals: Virtual,
        capacity: int = 1024,
        timeouts: Timeouts = DEFAULTS,
        ways: Mapping[End, int | None] | None = None,
    ) -> None:
        self.capacity, self.ways = capacity, ways or {}
        self.services: dict[Key, Service] = {}
        self.entries: list[Entry] = []
        self.configure(*virtuals, timeouts=timeouts)

    # -- configuration: as `ipvsadm -A -D -a -d -e` would, one after another

    def configure(self, *virtuals: Virtual, timeouts: Timeouts = DEFAULTS, policy: Policy = KIND) -> None:
        self.timeouts, self.policy = timeouts, policy
        old, self.services = self.services, {}
        for virtual in virtuals:
            key = PROTOCOLS[virtual.protocol], endpoint(virtual.vip)
            service = old.get(key)
            wanted: list[tuple[End, int]] = [(endpoint(real), weight) for real, weight in virtual.reals.items()]
            if service is None or service.scheduler != virtual.scheduler:
                service = Service(virtual.scheduler, virtual.mode)
                for size in range(1, len(wanted)):  # one after another
                    change_servers(service, wanted[:size][::-1])
            self.services[key] = service
            change_servers(service, wanted[::-1])

    # -- packets

    def process(self, packet: bytes, now: int, hook: int = 0, flags: int = 0) -> Outcome:
        tick = now // TICK
        self.entries = [entry for entry in self.entries if entry.expires > tick]
        parsed = parse(packet)
        reason, new = parsed.reason, None
        if not reason:
            reason, entry = self.decide(parsed, tick, reply_hook=hook in (1, 2))
            if reason == "forwarded":
                assert entry is not None
                here = self.ways.get(entry.server, 1500) == 0
                new = rewritten(packet, parsed, parsed.source, entry.server, flags & ~2 if here else flags)
            elif reason == "returned":
                assert entry is not None
                new = rewritten(packet, parsed, entry.vip, parsed.destination, flags & ~2 if hook == 1 else flags)
            elif reason == "send on":
                assert entry is not None
                reason, new = self.send_on(packet, parsed, entry, flags)
        elif reason == "icmp":
            reason, new = self.relate(packet[: parsed.end], reply_hook=hook in (1, 2))
            new = new and new + packet[parsed.end :]
        return VERDICTS[reason], reason, new

    def decide(self, parsed: Parsed, tick: int, reply_hook: bool) -> tuple[str, Entry | None]:
        request = [e for e in self.entries if not e.left and (e.protocol, e.client, e.vip) == of_request(parsed)]
        answered = [e for e in self.entries if e.mode == "nat" and (e.protocol, e.client, e.server) == of_reply(parsed)]
        reply, late = [e for e in answered if not e.left], [e for e in answered if e.left]
        assert len(request) <= 1
        assert len(reply) <= 1, "two connections look the same to the server: the test's services share a server's port"
        if reply and (reply_hook or not request):
            self.track(reply[0], SERVER, parsed, tick)
            return "returned", reply[0]
        ended = 0
        entry = request[0] if request else None
        if entry is not None and self.starts_anew(entry, parsed):
            if parsed.protocol == UDP:
                entry.left, entry.expires = True, tick + 30
            else:
                self.entries.remove(entry)
                ended = 1  # its place is not free before the packet is done
            entry = None
        if entry is None:
            service = self.services.get((parsed.protocol, parsed.destination))
            if service is None and late:
                return "returned", late[0]
            if service is None:
                return ("unrelated" if reply_hook else "no_service"), None
            begins = parsed.flag != "rst" if self.policy.sloppy else parsed.flag == "syn"
            if parsed.protocol == SCTP:
                begins = parsed.flag == "init" or (self.policy.sloppy_sctp and parsed.flag != "abort")
            if parsed.protocol != UDP and not begins:
                return "no_connection" if self.policy.no_connection == "pass" else "refused", None
            server = self.pick((parsed.protocol, parsed.destination), service)
            if server is None:
                return "no_server", None
            if len(self.entries) + ended == self.capacity:
                return "table_full", None
            entry = Entry(parsed.protocol, parsed.source, parsed.destination, server, service.mode)
            self.entries.append(entry)
        if not self.has_server(entry):
            return "server_gone", None
        self.track(entry, CLIENT if entry.mode == "nat" else ALONE, parsed, tick)
        return "forwarded" if entry.mode == "nat" else "send on", entry

    def send_on(self, packet: bytes, parsed: Parsed, entry: Entry, flags: int) -> tuple[str, bytes | None]:
        """To a server that answers past us: the reason, and the packet one hop older, with `tun` inside another."""
        mtu, wide = self.ways.get(entry.server, 1500), packet[0] >> 4 == 6
        at, length, udp = 7 if wide else 8, parsed.end, parsed.protocol == UDP
        if mtu is None:
            return "no_neighbour", None
        if mtu == 0:
            return "local", None
        if mtu == BY_MARK:
            return "marked", None
        if packet[at] <= 1:
            return "ttl_exceeded", None
        cut = udp if wide else not packet[6] & 0x40
        if entry.mode == "tun":
            mtu -= 40 if wide else 20
        if length > mtu and not cut and not flags & 2:
            return "too_big", None
        new = bytearray(packet)
        new[at] -= 1
        if not wide:
            new[10:12] = bytes(2)
            new[10:12] = ones_complement([new[: (new[0] & 15) * 4]])
        if entry.mode == "dr":
            return "routed", bytes(new)
        if flags & 3 == 1 and parsed.protocol in (TCP, UDP, SCTP):
            new = bytearray(rewritten(bytes(new), parsed, parsed.source, parsed.destination, flags))
        return "tunnelled", outer_header(bytes(new), length, entry.server[0]) + bytes(new)

    def relate(self, packet: bytes, reply_hook: bool) -> tuple[str, bytes | None]:
        """An ICMP error: the reason, and the packet with what it quotes as the other side knows it."""
        wide = packet[0] >> 4 == 6
        at = parse_icmp(packet)
        quoted = quoted_ends(packet[at:], 6 if wide else 4) if at else None
        if quoted is None:
            return "icmp", None
        protocol, source, destination = quoted
        alive = [e for e in self.entries if not e.left]
        about_reply = [e for e in alive if (e.protocol, e.vip, e.client) == (protocol, source, destination)]
        about_request = [
            e for e in alive if e.mode == "nat" and (e.protocol, e.client, e.server) == (protocol, source, destination)
        ]
        if not about_reply and not about_request:
            return "icmp", None
        message = packet[at:]
        pseudo = packet[8:40] + struct.pack("!II", len(message), 58) if wide else b""
        if ones_complement([pseudo, message]) != bytes(2):
            return "bad_checksum", None
        to_client = bool(about_request and (reply_hook or not about_reply))
        entry = about_request[0] if to_client else about_reply[0]
        if not to_client and not self.has_server(entry):
            return "server_gone", None
        if entry.mode != "nat":
            reason, same = self.send_on(packet, Parsed(end=len(packet)), entry, 0)
            if reason == "marked":
                return "error_marked", None
            return "error_routed" if reason in ("routed", "tunnelled") else reason, same
        end = entry.vip if to_client else entry.server
        size = 16 if wide else 4
        outer = (8 if wide else 12) + (0 if to_client else size)  # its source, or its destination
        inner = at + 8 + (8 if wide else 12) + (size if to_client else 0)  # the opposite one
        port = at + 8 + quoted_transport(message[8:]) + (2 if to_client else 0)
        new = bytearray(packet)
        new[outer : outer + size] = new[inner : inner + size] = end[0][-size:]
        new[port : port + 2] = struct.pack("!H", end[1])
        if not wide:
            old = packet[inner : inner + 4]
            was = struct.unpack_from("!H", packet, at + 8 + 10)[0]
            total = (was ^ 0xFFFF) + sum(0xFFFF - word for word in struct.unpack("!2H", old))
            total += sum(struct.unpack("!2H", end[0][-4:]))
            while total > 0xFFFF:
                total = total % 0x10000 + total // 0x10000
            new[at + 18 : at + 20] = struct.pack("!H", total ^ 0xFFFF)
            new[10:12] = bytes(2)
            new[10:12] = ones_complement([new[: (new[0] & 15) * 4]])
        new[at + 2 : at + 4] = bytes(2)
        pseudo = bytes(new[8:40]) + struct.pack("!II", len(message), 58) if wide else b""
        new[at + 2 : at + 4] = ones_complement([pseudo, new[at:]])
        return "error_returned" if to_client else "error_forwarded", bytes(new)

    def starts_anew(self, entry: Entry, parsed: Parsed) -> bool:
        policy = self.policy
        if not self.has_server(entry):
            return parsed.protocol == UDP or policy.expire_nodest_conn or parsed.flag in ("syn", "init")
        quiesced = dict(self.services[entry.slot[0]].servers)[entry.server] == 0
        if parsed.protocol == UDP:
            return policy.expire_quiescent_udp and quiesced
        closing = policy.conn_reuse_mode > 0 and entry.state in ("TIME_WAIT", "CLOSE", "CLOSED")
        closed = policy.conn_reuse_mode > 1 and entry.state == "FIN_WAIT" and entry.mode != "nat"
        return parsed.flag in ("syn", "init") and (closing or closed or (policy.expire_nodest_conn and quiesced))

    def has_server(self, entry: Entry) -> bool:
        service = self.services.get((entry.protocol, entry.vip))
        return service is not None and entry.server in dict(service.servers)

    def track(self, entry: Entry, table: dict[str, dict[str, str]], parsed: Parsed, tick: int) -> None:
        if entry.protocol == UDP:
            entry.expires = tick + self.timeouts.udp * 10
            return
        if entry.protocol == SCTP:
            way = {id(CLIENT): "from client", id(SERVER): "from server"}.get(id(table), "client only")
            short = next(short for short, name in associations.LONG.items() if name == entry.state)
            entry.state = associations.LONG[associations.after(way, parsed.flag, short)]
            entry.expires = tick + getattr(self.timeouts, associations.TIMEOUTS[entry.state]) * 10
            return
        if not parsed.flag:
            entry.state = "CLOSE"
        else:
            opening = "SYN_SENT" if table is SERVER else "SYN_RECV"
            other = {"rst": "CLOSE", "syn": opening}.get(parsed.flag, entry.state)
            entry.state = table[parsed.flag].get(entry.state, other)
        names = {"ESTABLISHED": "tcp", "FIN_WAIT": "tcp_fin"}
        entry.expires = tick + getattr(self.timeouts, names.get(entry.state, f"tcp_{entry.state.lower()}")) * 10

    # -- schedulers

    def pick(self, key: Key, service: Service) -> End | None:
        willing = [(server, weight) for server, weight in service.servers if weight > 0]
        if not willing:
            return None
        if service.scheduler in ("lc", "wlc"):
            by_weight = service.scheduler == "wlc"
            return min(willing, key=lambda one: Fraction(self.overhead(key, one[0]), one[1] if by_weight else 1))[0]
        names = [server for server, _ in service.servers]
        at = names.index(service.last) if service.last is not None else -1
        if service.scheduler == "rr":
            service.last = next(name for name in names[at + 1 :] + names[: at + 1] if name in dict(willing))
            return service.last
        step, top = gcd_and_top(service)
        while True:
            at += 1
            if at == len(names):
                at, service.threshold = 0, service.threshold - step
                if service.threshold <= 0:
                    service.threshold = top
            if service.servers[at][1] >= service.threshold:
                service.last = names[at]
                return service.last

    def overhead(self, key: Key, server: End) -> int:
        active, inactive = self.load(key, server)
        return 256 * active + inactive

    def load(self, key: Key, server: End) -> tuple[int, int]:
        """(ActiveConn, InActConn)."""
        active = [entry.state in ACTIVE for entry in self.entries if entry.slot == (key, server)]
        return sum(active), len(active) - sum(active)

    def connections(self, now: int) -> list[Connection]:
        """In no order."""
        tick = now // TICK
        return [
            Connection(*(e.protocol, *e.client, *e.vip, *e.server, state_number(e), math.ceil((e.expires - tick) / 10)))
            for e in self.entries
            if e.expires > tick
        ]


def state_number(entry: Entry) -> int:
    names = list(associations.LONG.values()) if entry.protocol == SCTP else STATES
    return names.index(entry.state)


def change_servers(service: Service, wanted: list[tuple[End, int]]) -> None:
    """Deletions, then additions, then new weights, each with what its hook does to the scheduler."""
    names = [server for server, _ in wanted]
    while service.last is not None and service.last not in names:  # rr goes on behind the one before
        before = [server for server, _ in service.servers]
        at = before.index(service.last)
        service.last = before[at - 1] if at else None
    changed = wanted != service.servers
    service.servers = wanted
    if changed and service.scheduler == "wrr":
        step, top = gcd_and_top(service)
        service.last = None
        if service.threshold > top or service.threshold == 0:
            service.threshold = top
        elif step > 1:
            service.threshold = service.threshold // step * step + 1


def gcd_and_top(service: Service) -> tuple[int, int]:
    """What wrr's threshold falls by, and where it begins."""
    weights = [weight for _, weight in service.servers if weight]
    step = math.gcd(*weights) or 1
    return step, max(weights, default=0) - (step - 1) if weights else 0


def of_request(parsed: Parsed) -> tuple[int, End, End]:
    return parsed.protocol, parsed.source, parsed.destination


def of_reply(parsed: Parsed) -> tuple[int, End, End]:
    return parsed.protocol, parsed.destination, parsed.source


# -- bytes


def parse(packet: bytes) -> Parsed:
    if len(packet) < 20 or packet[0] >> 4 not in (4, 6):
        return Parsed("malformed")
    if packet[0] >> 4 == 4:
        header, length = (packet[0] & 15) * 4, int.from_bytes(packet[2:4], "big")
        if header < 20 or length < header:
            return Parsed("malformed")
        if length > len(packet):
            return Parsed("truncated")
        if packet[6] & 0x3F or packet[7]:
            return Parsed("fragment")
        mapped = bytes(10) + b"\xff\xff"
        addresses = mapped + packet[12:16], mapped + packet[16:20]
        return parse_transport(packet[:length], packet[9], header, addresses, icmp=1)
    if len(packet) < 40:
        return Parsed("malformed")
    length = 40 + int.from_bytes(packet[4:6], "big")
    if length > len(packet):
        return Parsed("truncated")
    packet = packet[:length]
    kind, at = packet[6], 40
    for _ in range(9):
        if kind not in (0, 43, 44, 51, 60):
            return parse_transport(packet, kind, at, (packet[8:24], packet[24:40]), icmp=58)
        if at + 8 > length:
            return Parsed("malformed")
        if kind == 44 and int.from_bytes(packet[at + 2 : at + 4], "big") & ~6:
            return Parsed("fragment")
        if kind == 51 or (kind == 43 and packet[at + 3]):
            return Parsed("other_protocol")
        kind, at = packet[at], at + (8 if kind == 44 else 8 * (packet[at + 1] + 1))
    return Parsed("malformed")


def parse_transport(packet: bytes, protocol: int, at: int, addresses: tuple[bytes, bytes], icmp: int) -> Parsed:
    segment = packet[at:]
    if protocol not in (TCP, UDP, SCTP):
        return Parsed("icmp" if protocol == icmp else "other_protocol", end=at + len(segment))
    least = {TCP: 20, UDP: 8, SCTP: 16}[protocol]
    if len(segment) < least:
        return Parsed("malformed")
    size = segment[12] // 16 * 4 if protocol == TCP else int.from_bytes(segment[4:6], "big")
    if protocol == SCTP:
        size = least
    if not least <= size <= len(segment):
        return Parsed("malformed")
    sport, dport = struct.unpack_from("!HH", segment)
    flag = ""
    if protocol == TCP:
        bits = {"rst": 4, "syn": 2, "fin": 1, "ack": 16}
        flag = next((name for name, bit in bits.items() if segment[13] & bit), "")
    if protocol == SCTP:
        flag = event(segment[12:])
    return Parsed("", protocol, at, len(packet), (addresses[0], sport), (addresses[1], dport), flag)


def event(chunks: bytes) -> str:
    """What the first chunk says, or an ABORT behind a cookie."""
    names = {kind: associations.OF_CHUNK.get(name, "data") for name, kind in CHUNKS.items()}
    first, length = names.get(chunks[0], "data"), int.from_bytes(chunks[2:4], "big")
    behind = chunks[(length + 3) // 4 * 4 :]
    if first in ("cookie echo", "cookie ack") and length >= 4 and len(behind) >= 4 and names.get(behind[0]) == "abort":
        return "abort"
    return first


def parse_icmp(packet: bytes) -> int:
    """Where an ICMP error begins; 0 for any other ICMP."""
    wide = packet[0] >> 4 == 6
    at = quoted_transport(packet)
    return at if at < len(packet) and packet[at] in ((1, 2, 3, 4) if wide else (3, 4, 11, 12)) else 0


def quoted_transport(packet: bytes) -> int:
    """Where the transport of a packet begins that may be cut off behind it; 0 when that is not there."""
    if packet[0] >> 4 == 4:
        return (packet[0] & 15) * 4
    kind, at = packet[6], 40
    for _ in range(9):
        if kind not in (0, 43, 44, 51, 60):
            return at
        if at + 8 > len(packet) or kind == 51 or (kind == 43 and packet[at + 3]):
            return 0
        if kind == 44 and int.from_bytes(packet[at + 2 : at + 4], "big") & ~6:
            return 0
        kind, at = packet[at], at + (8 if kind == 44 else 8 * (packet[at + 1] + 1))
    return 0


def quoted_protocol(packet: bytes) -> int:
    if packet[0] >> 4 == 4:
        return packet[9]
    kind, at = packet[6], 40
    while kind in (0, 43, 44, 51, 60):
        kind, at = packet[at], at + (8 if kind == 44 else 8 * (packet[at + 1] + 1))
    return kind


def quoted_ends(message: bytes, version: int) -> tuple[int, End, End] | None:
    """Protocol, source and destination of the TCP or UDP packet that an ICMP error quotes."""
    packet = message[8:]
    if len(packet) < (20 if version == 4 else 40) or packet[0] >> 4 != version:
        return None
    if version == 4 and ((packet[0] & 15) < 5 or packet[6] & 0x1F or packet[7]):
        return None
    at = quoted_transport(packet)
    if not at or quoted_protocol(packet) not in (TCP, UDP, SCTP) or len(packet) < at + 4:
        return None
    mapped = bytes(10) + b"\xff\xff"
    ends = (packet[8:24], packet[24:40]) if version == 6 else (mapped + packet[12:16], mapped + packet[16:20])
    sport, dport = struct.unpack_from("!HH", packet, at)
    return quoted_protocol(packet), (ends[0], sport), (ends[1], dport)


def rewritten(packet: bytes, parsed: Parsed, source: End, destination: End, flags: int) -> bytes:
    """The packet between other ends, its checksums summed up anew."""
    new = bytearray(packet)
    at = parsed.transport
    if packet[0] >> 4 == 4:
        new[12:20] = source[0][12:] + destination[0][12:]
        new[10:12] = bytes(2)
        new[10:12] = ones_complement([new[: (new[0] & 15) * 4]])
    else:
        new[8:40] = source[0] + destination[0]
    new[at : at + 4] = struct.pack("!HH", source[1], destination[1])
    if parsed.protocol == SCTP:
        if (flags & 1 or any(new[at + 8 : at + 12])) and not flags & 2:
            value = crc32c(bytes(new[at : at + 8] + bytes(4) + new[at + 12 : parsed.end]))
            new[at + 8 : at + 12] = struct.pack("<I", value)
        return bytes(new)
    field_at = at + (16 if parsed.protocol == TCP else 6)
    finished_by_kernel = flags & 2
    none = parsed.protocol == UDP and not flags & 1 and new[field_at : field_at + 2] == bytes(2)
    if not finished_by_kernel and not none:
        length = parsed.end - at if parsed.protocol == TCP else int.from_bytes(new[at + 4 : at + 6], "big")
        new[field_at : field_at + 2] = bytes(2)
        pseudo = source[0] + destination[0] + struct.pack("!II", length, parsed.protocol)
        if packet[0] >> 4 == 4:
            pseudo = source[0][12:] + destination[0][12:] + struct.pack("!HH", parsed.protocol, length)
        value = ones_complement([pseudo, new[at : at + length]])
        new[field_at : field_at + 2] = b"\xff\xff" if parsed.protocol == UDP and value == bytes(2) else value
    return bytes(new)


def outer_header(inner: bytes, length: int, server: bytes) -> bytes:
    """What stands in front of a packet in a tunnel from `OWN`; an IPv4 one has identification and checksum 0 here."""
    if inner[0] >> 4 == 6:
        return inner[:4] + struct.pack("!HBB", length, 41, inner[7]) + OWN6 + server
    head = struct.pack("!BBHHHBBH", 0x45, inner[1], 20 + length, 0, (inner[6] & 0x40) << 8, inner[8], 4, 0)
    return head + OWN4[12:] + server[12:]


def ones_complement(parts: Iterable[bytes | bytearray]) -> bytes:
    """The internet checksum of parts that each begin at an even offset."""
    total = 0
    for part in parts:
        padded = bytes(part) + bytes(len(part) % 2)
        total += sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total > 0xFFFF:
        total = total % 0x10000 + total // 0x10000
    return struct.pack("!H", 0xFFFF - total)
