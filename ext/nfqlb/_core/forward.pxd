"""What happens to a packet whose connection is known."""
from nfqlb._core.types cimport (
    FORWARDED,
    LOCAL,
    NO_NEIGHBOUR,
    RETURNED,
    ROUTED,
    SUPER_PACKET,
    TOO_BIG,
    TTL_EXCEEDED,
    UDP,
    connection_t,
    hop_t,
    packet_t,
    reason_t,
)
from nfqlb._core.wire cimport (
    DONT_FRAGMENT,
    IP4_FRAGMENT,
    count_hop,
    get16,
    set_destination,
    set_source,
    time_to_live,
)


cdef inline reason_t nat_request(packet_t* packet, const connection_t* connection) noexcept nogil:
    """NAT towards the real server: only the destination changes, the server sees the client (ip_vs_xmit.c,
    ip_vs_nat_xmit).
    """
    set_destination(packet, &connection.server, connection.sport)
    return FORWARDED


cdef inline reason_t nat_reply(packet_t* packet, const connection_t* connection) noexcept nogil:
    """NAT back to the client: the source becomes the VIP again (ip_vs_core.c, handle_response)."""
    set_source(packet, &connection.virtual, connection.vport)
    return RETURNED


cdef inline reason_t direct(packet_t* packet, const hop_t* hop) noexcept nogil:
    """Direct routing: on to the real server's link-layer address, one hop older (ip_vs_xmit.c, ip_vs_dr_xmit)."""
    if hop == NULL:
        return NO_NEIGHBOUR
    if hop.local:
        return LOCAL
    if time_to_live(packet) <= 1:
        return TTL_EXCEEDED
    packet.hop = hop[0]
    if packet.length > hop.mtu and not packet.flags & SUPER_PACKET and not may_be_cut(packet):
        return TOO_BIG
    count_hop(packet)
    return ROUTED


cdef inline bint may_be_cut(const packet_t* packet) noexcept nogil:
    """Whether a packet that is too long may leave in fragments.

    Over IPv6 only the sender may cut (RFC 8200, 4.5), but what comes here was put together again by the kernel, which
    does not say so. TCP never comes in fragments; a datagram that is too long for the next link did, or else its
    sender is spared a round trip.
    """
    if packet.version == 4:
        return not get16(packet.data + IP4_FRAGMENT) & DONT_FRAGMENT
    return packet.protocol == UDP
