"""Bytes to a checked packet.

Strategy: `parse` is the only place that compares a length. It looks at what every packet must have, finds where the
transport header stands and how long the packet says it is, and holds that once against the bytes that are there. What
it lets through has whole IP and transport headers inside `length` and `length` bytes at `data`; accessors (wire.pxd)
trust that. Of a packet whose payload stays in the kernel (HEAD) the headers are there, and who needs more asks whether
it is whole. No checksum is looked at: the kernel verified or will verify it, and an update keeps a wrong one wrong.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from typing import NamedTuple

from nfqlb._core.checksum cimport add_bytes, fold, update
from nfqlb._core.types cimport (
    ABORT_CAME,
    COOKIE_ACK_CAME,
    COOKIE_ECHO_CAME,
    DATA_CAME,
    ERROR_CAME,
    FRAGMENT,
    HEAD,
    ICMP,
    ICMP6,
    ICMP_MESSAGE,
    INIT_ACK_CAME,
    INIT_CAME,
    IP4_INSIDE,
    IP6_INSIDE,
    MALFORMED,
    OTHER_PROTOCOL,
    PARSED,
    SCTP,
    SHUTDOWN_ACK_CAME,
    SHUTDOWN_CAME,
    SHUTDOWN_COMPLETE_CAME,
    TCP,
    TRUNCATED,
    UDP,
    address_t,
    packet_t,
)
from nfqlb._core.wire cimport (
    CHUNK_HEADER,
    CHUNK_LENGTH,
    DESTINATION_PORT,
    ICMP_HEADER,
    IP4_DESTINATION,
    IP4_FRAGMENT,
    IP4_HEADER,
    IP4_PROTOCOL,
    IP4_SOURCE,
    IP4_TOTAL_LENGTH,
    IP6_DESTINATION,
    IP6_HEADER,
    IP6_NEXT_HEADER,
    IP6_PAYLOAD_LENGTH,
    IP6_SOURCE,
    SCTP_HEADER,
    SOURCE_PORT,
    TCP_FLAGS,
    TCP_HEADER,
    TCP_OFFSET,
    UDP_HEADER,
    UDP_LENGTH,
    get16,
    get_address4,
    get_address6,
    get_raw16,
)
from nfqlb._core.telemetry import REASON_NAMES


cdef enum:
    # IPv6 extension headers that may stand before the transport (RFC 8200, 4.1)
    HOP_BY_HOP = 0
    ROUTING = 43
    FRAGMENT_HEADER = 44
    AUTHENTICATION = 51
    DESTINATION_OPTIONS = 60
    EXTENSIONS_MAX = 8

    ABORT = 6                    # a chunk (RFC 9260, 3.2)
    CHUNKS = 15

# by type of chunk: DATA, INIT, INIT ACK, SACK, HEARTBEAT and its ACK, ABORT, SHUTDOWN and its ACK, ERROR, COOKIE ECHO
# and its ACK, ECNE, CWR, SHUTDOWN COMPLETE
cdef uint8_t[CHUNKS] events = [
    DATA_CAME, INIT_CAME, INIT_ACK_CAME, DATA_CAME, DATA_CAME, DATA_CAME, ABORT_CAME, SHUTDOWN_CAME, SHUTDOWN_ACK_CAME,
    ERROR_CAME, COOKIE_ECHO_CAME, COOKIE_ACK_CAME, DATA_CAME, DATA_CAME, SHUTDOWN_COMPLETE_CAME,
]


cdef uint8_t parse(packet_t* packet) noexcept nogil:
    """Fill in everything that the bytes tell; PARSED, or the reason why the packet goes no further."""
    cdef uint8_t* data = packet.data
    cdef uint32_t header
    cdef uint8_t reason
    if packet.captured < IP4_HEADER:
        return MALFORMED
    packet.version = data[0] >> 4
    if packet.version == 4:
        header = (data[0] & 15) * 4
        packet.length = get16(data + IP4_TOTAL_LENGTH)
        if header < IP4_HEADER or packet.length < header:
            return MALFORMED
        packet.protocol = data[IP4_PROTOCOL]
        packet.source = get_address4(data + IP4_SOURCE)
        packet.destination = get_address4(data + IP4_DESTINATION)
        if packet.captured < packet.length and not packet.flags & HEAD:
            return TRUNCATED
        if get16(data + IP4_FRAGMENT) & 0x3fff:
            return FRAGMENT
    elif packet.version == 6:
        if packet.captured < IP6_HEADER:
            return MALFORMED
        packet.length = IP6_HEADER + get16(data + IP6_PAYLOAD_LENGTH)
        packet.source = get_address6(data + IP6_SOURCE)
        packet.destination = get_address6(data + IP6_DESTINATION)
        if packet.captured < packet.length and not packet.flags & HEAD:
            return TRUNCATED
        reason = skip_extensions(packet, min(packet.length, packet.captured), &header)
        if reason != PARSED:
            return reason
    else:
        return MALFORMED
    packet.transport = header
    return parse_transport(packet)


cdef uint8_t skip_extensions(packet_t* packet, uint32_t end, uint32_t* header) noexcept nogil:
    """Find the transport header behind IPv6 extension headers; each is at least 8 bytes (RFC 8200, 4). What is behind
    `end` is not looked at.
    """
    cdef uint8_t* data = packet.data
    cdef uint8_t kind = data[IP6_NEXT_HEADER]
    cdef uint32_t at = IP6_HEADER
    for _ in range(EXTENSIONS_MAX + 1):
        if kind != HOP_BY_HOP and kind != ROUTING and kind != DESTINATION_OPTIONS \
                and kind != FRAGMENT_HEADER and kind != AUTHENTICATION:
            packet.protocol = kind
            header[0] = at
            return PARSED
        if at + 8 > end:
            return MALFORMED if at + 8 > packet.length else TRUNCATED
        if kind == FRAGMENT_HEADER and get16(data + at + 2) & 0xfff9:
            return FRAGMENT                                 # an atomic one (RFC 6946) goes on
        if kind == ROUTING and data[at + 3] != 0:
            return OTHER_PROTOCOL                           # the destination in sight is not the last
        if kind == FRAGMENT_HEADER:
            kind = data[at]
            at += 8
        elif kind == AUTHENTICATION:
            return OTHER_PROTOCOL                           # covers addresses and ports (RFC 4302): must not change
        else:
            kind = data[at]
            at += (data[at + 1] + 1) * 8
    return MALFORMED


cdef uint8_t parse_transport(packet_t* packet) noexcept nogil:
    cdef uint8_t* at = packet.data + packet.transport
    cdef uint32_t room = packet.length - packet.transport if packet.length > packet.transport else 0
    cdef uint32_t size
    if packet.protocol == TCP:
        if room < TCP_HEADER:
            return MALFORMED
        if packet.transport + TCP_HEADER > packet.captured:
            return TRUNCATED
        size = (at[TCP_OFFSET] >> 4) * 4
        if size < TCP_HEADER or size > room:
            return MALFORMED
        packet.segment = at[TCP_FLAGS]
    elif packet.protocol == UDP:
        if room < UDP_HEADER:
            return MALFORMED
        if packet.transport + UDP_HEADER > packet.captured:
            return TRUNCATED
        size = get16(at + UDP_LENGTH)
        if size < UDP_HEADER or size > room:
            return MALFORMED
        packet.segment = 0
    elif packet.protocol == SCTP:
        if room < SCTP_HEADER + CHUNK_HEADER:
            return MALFORMED
        if packet.transport + SCTP_HEADER + CHUNK_HEADER > packet.captured:
            return TRUNCATED
        packet.segment = 0
        packet.chunk = event(at + SCTP_HEADER, min(room, packet.captured - packet.transport) - SCTP_HEADER)
    elif (packet.protocol == ICMP and packet.version == 4) or (packet.protocol == ICMP6 and packet.version == 6):
        return ICMP_MESSAGE if packet.length <= packet.captured else TRUNCATED
    else:
        return OTHER_PROTOCOL
    packet.sport = get16(at + SOURCE_PORT)
    packet.dport = get16(at + DESTINATION_PORT)
    return PARSED


cdef uint8_t event(const uint8_t* chunk, uint32_t room) noexcept nogil:
    """What the first chunk of an SCTP packet says; but an ABORT right behind a COOKIE ECHO or COOKIE ACK counts
    (net/netfilter/ipvs/ip_vs_proto_sctp.c, set_sctp_state).
    """
    cdef uint8_t first = events[chunk[0]] if chunk[0] < CHUNKS else <uint8_t>DATA_CAME
    cdef uint32_t length = get16(chunk + CHUNK_LENGTH)
    if (first == COOKIE_ECHO_CAME or first == COOKIE_ACK_CAME) and length >= CHUNK_HEADER:
        length = (length + 3) & ~<uint32_t>3
        if length + CHUNK_HEADER <= room and chunk[length] == ABORT:
            return ABORT_CAME
    return first


cdef uint8_t parse_quoted(const packet_t* error, packet_t* quoted) noexcept nogil:
    """Find the TCP, UDP or SCTP packet that an ICMP error quotes; ICMP_MESSAGE when it is no error or quotes none.

    Only the ends of `quoted` are certain: of its transport, 4 bytes need be there (RFC 792 asks for 8), and `length`
    ends with the quotation. Both versions have the quotation behind 8 bytes (RFC 792, RFC 4443 3).
    """
    return parse_quotation(error, quoted, ICMP_HEADER)


cdef uint8_t parse_inside(const packet_t* error, packet_t* inside) noexcept nogil:
    """As parse_quoted, of an error that quotes a tunnel's packet: the packet in it, of the same IP version."""
    cdef const uint8_t* outer = error.data + error.transport + ICMP_HEADER
    cdef uint32_t header = IP6_HEADER
    if error.length < error.transport + ICMP_HEADER + (IP4_HEADER if error.version == 4 else IP6_HEADER):
        return ICMP_MESSAGE
    if error.version == 4:
        header = (outer[0] & 15) * 4
        if outer[IP4_PROTOCOL] != IP4_INSIDE or header < IP4_HEADER or get16(outer + IP4_FRAGMENT) & 0x1fff:
            return ICMP_MESSAGE
    elif outer[IP6_NEXT_HEADER] != IP6_INSIDE:
        return ICMP_MESSAGE
    return parse_quotation(error, inside, ICMP_HEADER + header)


cdef uint8_t parse_quotation(const packet_t* error, packet_t* quoted, uint32_t before) noexcept nogil:
    """The packet that stands so many bytes behind the beginning of the ICMP error."""
    cdef uint8_t* at = error.data + error.transport
    cdef uint32_t header
    if error.length < error.transport + before + IP4_HEADER:
        return ICMP_MESSAGE
    quoted.data = at + before
    quoted.length = quoted.captured = error.length - error.transport - before
    quoted.version = quoted.data[0] >> 4
    if quoted.version != error.version:
        return ICMP_MESSAGE
    if quoted.version == 4:
        header = (quoted.data[0] & 15) * 4
        if at[0] != 3 and at[0] != 4 and at[0] != 11 and at[0] != 12:
            return ICMP_MESSAGE
        if header < IP4_HEADER or get16(quoted.data + IP4_FRAGMENT) & 0x1fff:
            return ICMP_MESSAGE
        quoted.protocol = quoted.data[IP4_PROTOCOL]
        quoted.source = get_address4(quoted.data + IP4_SOURCE)
        quoted.destination = get_address4(quoted.data + IP4_DESTINATION)
    else:
        if not 1 <= at[0] <= 4 or quoted.length < IP6_HEADER \
                or skip_extensions(quoted, quoted.length, &header) != PARSED:
            return ICMP_MESSAGE
        quoted.source = get_address6(quoted.data + IP6_SOURCE)
        quoted.destination = get_address6(quoted.data + IP6_DESTINATION)
    if (quoted.protocol != TCP and quoted.protocol != UDP and quoted.protocol != SCTP) or header + 4 > quoted.length:
        return ICMP_MESSAGE
    quoted.transport = header
    quoted.sport = get16(quoted.data + header + SOURCE_PORT)
    quoted.dport = get16(quoted.data + header + DESTINATION_PORT)
    return PARSED


cdef void load(packet_t* packet, uint8_t* data, Py_ssize_t captured, int hook, int flags, unsigned int mark):
    """A packet before parse."""
    packet.data = data
    packet.captured = <uint32_t>captured
    packet.length = 0
    packet.transport = 0
    packet.mark = mark
    packet.id = 0
    packet.hook = <uint8_t>hook
    packet.flags = <uint8_t>flags
    packet.outer_length = 0
    packet.version = 0
    packet.protocol = 0
    packet.segment = 0
    packet.chunk = 0
    packet.sport = 0
    packet.dport = 0


class View(NamedTuple):
    """What parse found. Addresses are 16 bytes (IPv4 as ::ffff:a.b.c.d), ports host order, offsets and lengths bytes.

    `reason` is None for a packet that goes on; otherwise it says why not, and the fields behind that point are 0.
    """

    reason: str | None
    version: int
    protocol: int
    length: int
    transport: int
    source: bytes
    destination: bytes
    sport: int
    dport: int
    segment: int
    chunk: int


def view(packet: bytes) -> View:
    """Parse a packet as the data path does."""
    cdef packet_t p
    cdef address_t nowhere
    nowhere.high = nowhere.low = 0
    load(&p, packet, len(packet), 0, 0, 0)
    p.source = p.destination = nowhere
    cdef uint8_t reason = parse(&p)
    return View(
        None if reason == PARSED else REASON_NAMES[reason], p.version, p.protocol, p.length, p.transport,
        (<char*>&p.source)[:16], (<char*>&p.destination)[:16], p.sport, p.dport, p.segment, p.chunk,
    )


def checksum(data: bytes) -> int:
    """RFC 1071 checksum of the bytes, as the number that stands on the wire."""
    cdef uint16_t total = ~fold(add_bytes(0, data, <uint32_t>len(data)))
    return get16(<uint8_t*>&total)


def checksum_update(int check, old: bytes, new: bytes) -> int:
    """RFC 1624: the checksum after `old` became `new`, both of one even length at an even offset."""
    cdef uint16_t raw = get_raw16(check.to_bytes(2, "big"))
    cdef uint64_t total = add_bytes(0, new, <uint32_t>len(new))
    total += <uint16_t>~fold(add_bytes(0, old, <uint32_t>len(old)))
    raw = update(raw, total)
    return get16(<uint8_t*>&raw)
