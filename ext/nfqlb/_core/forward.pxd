"""What happens to a packet whose connection is known."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset

from nfqlb._core.checksum cimport add_bytes, fold
from nfqlb._core.types cimport (
    CHECKSUM_NOT_READY,
    FORWARDED,
    IP4_INSIDE,
    IP6_INSIDE,
    LOCAL,
    MARKED,
    NO_NEIGHBOUR,
    PARSED,
    RETURNED,
    ROUTED,
    SUPER_PACKET,
    TCP,
    TOO_BIG,
    TRUNCATED,
    TTL_EXCEEDED,
    TUNNELLED,
    UDP,
    connection_t,
    hop_t,
    packet_t,
    path_t,
    reason_t,
)
from nfqlb._core.wire cimport (
    DONT_FRAGMENT,
    IP4_CHECKSUM,
    IP4_DESTINATION,
    IP4_FRAGMENT,
    IP4_HEADER,
    IP4_PROTOCOL,
    IP4_SERVICE,
    IP4_SOURCE,
    IP4_TOTAL_LENGTH,
    IP4_TTL,
    IP6_DESTINATION,
    IP6_HEADER,
    IP6_HOP_LIMIT,
    IP6_NEXT_HEADER,
    IP6_PAYLOAD_LENGTH,
    IP6_SOURCE,
    checksum_offset,
    complete,
    count_hop,
    full_checksum,
    get16,
    lower_mss,
    set16,
    set_destination,
    set_raw16,
    set_source,
    time_to_live,
)


cdef enum:
    LONGEST_PACKET = 0xffffffffU


cdef inline reason_t nat_request(packet_t* packet, const connection_t* connection) noexcept nogil:
    """NAT towards the real server: only the destination changes, the server sees the client (ip_vs_xmit.c,
    ip_vs_nat_xmit).
    """
    if not is_whole(packet):
        return TRUNCATED
    set_destination(packet, &connection.server, connection.sport)
    return FORWARDED


cdef inline reason_t nat_reply(packet_t* packet, const connection_t* connection) noexcept nogil:
    """NAT back to the client: the source becomes the VIP again (ip_vs_core.c, handle_response)."""
    if not is_whole(packet):
        return TRUNCATED
    set_source(packet, &connection.virtual, connection.vport)
    return RETURNED


cdef inline reason_t direct(packet_t* packet, const hop_t* hop, uint16_t mss) noexcept nogil:
    """Direct routing: on to the real server's link-layer address, one hop older (ip_vs_xmit.c, ip_vs_dr_xmit); or by
    the kernel, which sees to everything itself. `mss`: what a SYN in a frame may announce, 0 for anything.
    """
    cdef reason_t reason
    if hop != NULL and hop.mask:
        packet.mark = packet.mark & ~hop.mask | hop.mark
        return MARKED
    reason = go_on(packet, hop, 0, LONGEST_PACKET, mss)
    return ROUTED if reason == PARSED else reason


cdef inline reason_t tunnel(packet_t* packet, const connection_t* connection, const hop_t* hop, const path_t* path,
                            uint32_t now, uint16_t mss) noexcept nogil:
    """Tunnelling: on to the real server inside a packet of our own (RFC 2003, RFC 2473; ip_vs_xmit.c,
    ip_vs_tunnel_xmit). An outer IPv4 header gets its identification when the frame is made (transmit.pyx).
    """
    cdef uint32_t outer = IP4_HEADER if packet.version == 4 else IP6_HEADER
    cdef reason_t reason = go_on(packet, hop, outer, path.mtu if now < path.until else LONGEST_PACKET, mss)
    if reason != PARSED:
        return reason
    if packet.flags & CHECKSUM_NOT_READY and not is_bulk(packet):
        complete(packet)
    if packet.version == 4:
        put_outer4(packet, connection)
    else:
        put_outer6(packet, connection)
    return TUNNELLED


cdef inline reason_t go_on(packet_t* packet, const hop_t* hop, uint32_t outer, uint32_t mtu,
                           uint16_t mss) noexcept nogil:
    """One hop older, and PARSED, when the packet can go that way behind `outer` bytes more and with at most `mtu` of
    its own; else why not.
    """
    if hop == NULL:
        return NO_NEIGHBOUR
    if hop.local:
        return LOCAL
    if not is_whole(packet):
        return TRUNCATED
    if time_to_live(packet) <= 1:
        return TTL_EXCEEDED
    packet.hop = hop[0]
    packet.hop.mtu = min(hop.mtu - outer, mtu)
    packet.outer_length = outer
    if packet.length > packet.hop.mtu and not is_bulk(packet) and not may_be_cut(packet):
        return TOO_BIG
    count_hop(packet)
    lower_mss(packet, mss)
    return PARSED


cdef inline void put_outer4(packet_t* packet, const connection_t* connection) noexcept nogil:
    """TTL, DSCP, ECN and DF are the inner packet's; ECN's CE stays inside (RFC 6040)."""
    cdef uint8_t* at = packet.outer
    memset(at, 0, IP4_HEADER)
    at[0] = 0x45
    at[IP4_SERVICE] = packet.data[IP4_SERVICE]
    set16(at + IP4_FRAGMENT, get16(packet.data + IP4_FRAGMENT) & DONT_FRAGMENT)
    at[IP4_TTL] = packet.data[IP4_TTL]
    at[IP4_PROTOCOL] = IP4_INSIDE
    memcpy(at + IP4_SOURCE, <const uint8_t*>&packet.hop.own + 12, 4)
    memcpy(at + IP4_DESTINATION, <const uint8_t*>&connection.server + 12, 4)
    measure_outer(packet, at, packet.length)


cdef inline void put_outer6(packet_t* packet, const connection_t* connection) noexcept nogil:
    """Hop limit, traffic class and flow label are the inner packet's."""
    cdef uint8_t* at = packet.outer
    memcpy(at, packet.data, 4)
    at[IP6_NEXT_HEADER] = IP6_INSIDE
    at[IP6_HOP_LIMIT] = packet.data[IP6_HOP_LIMIT]
    memcpy(at + IP6_SOURCE, &packet.hop.own, 16)
    memcpy(at + IP6_DESTINATION, &connection.server, 16)
    measure_outer(packet, at, packet.length)


cdef inline void measure_outer(const packet_t* packet, uint8_t* outer, uint32_t inside) noexcept nogil:
    """Say in an outer header how long the packet inside is."""
    if packet.version == 4:
        set16(outer + IP4_TOTAL_LENGTH, IP4_HEADER + inside)
        set_raw16(outer + IP4_CHECKSUM, 0)
        set_raw16(outer + IP4_CHECKSUM, <uint16_t>~fold(add_bytes(0, outer, IP4_HEADER)))
    else:
        set16(outer + IP6_PAYLOAD_LENGTH, inside)


cdef inline bint is_whole(const packet_t* packet) noexcept nogil:
    """Whether all of it is here, and not only its headers."""
    return packet.length <= packet.captured


cdef inline bint is_bulk(const packet_t* packet) noexcept nogil:
    """Whether it stands for many TCP segments."""
    return packet.flags & SUPER_PACKET != 0 and packet.protocol == TCP


cdef inline void finish_bulk(packet_t* packet) noexcept nogil:
    """Finish the checksum of a super-packet that stays on this machine: nobody cuts it, so nobody redoes it, and the
    local stack sums up what a verdict changed (net/ipv4/tcp_ipv4.c, tcp_checksum_complete).
    """
    set_raw16(packet.data + checksum_offset(packet), full_checksum(packet))


cdef inline bint may_be_cut(const packet_t* packet) noexcept nogil:
    """Whether a packet that is too long may leave in fragments.

    Over IPv6 only the sender may cut (RFC 8200, 4.5), but what comes here was put together again by the kernel, which
    does not say so. TCP never comes in fragments; a datagram that is too long for the next link did, or else its
    sender is spared a round trip.
    """
    if packet.version == 4:
        return not get16(packet.data + IP4_FRAGMENT) & DONT_FRAGMENT
    return packet.protocol == UDP
