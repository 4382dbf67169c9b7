"""Which states connections of a protocol have (tracking.pxd names them), and which of these count as active."""
from libc.stdint cimport uint8_t, uint32_t

from nfqlb._core.types cimport ACTIVE_ASSOCIATION, ACTIVE_STATES, SCTP, TCP, UDP


cdef enum:
    LAST_OF_TCP = 10
    LAST_OF_SCTP = 13


cdef inline bint is_active(uint8_t protocol, uint32_t state) noexcept nogil:
    """Whether a connection in this state counts in ActiveConn."""
    if protocol == TCP:
        return ACTIVE_STATES >> state & 1
    return protocol == SCTP and ACTIVE_ASSOCIATION >> state & 1


cdef inline bint exists(uint8_t protocol, uint32_t state) noexcept nogil:
    """Whether connections of this protocol know this state."""
    if protocol == TCP:
        return state <= LAST_OF_TCP
    return state <= LAST_OF_SCTP if protocol == SCTP else protocol == UDP and state == 0
