"""What happens to a packet whose connection is known."""
from nfqlb._core.types cimport FORWARDED, RETURNED, connection_t, packet_t, reason_t
from nfqlb._core.wire cimport set_destination, set_source


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
