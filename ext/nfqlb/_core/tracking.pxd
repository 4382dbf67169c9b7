"""TCP, SCTP and UDP states of a connection, as the kernel's IPVS keeps them."""
from libc.stdint cimport uint8_t, uint32_t

from nfqlb._core.types cimport (
    ACTIVE_ASSOCIATION,
    ACTIVE_STATES,
    KINDS,
    SCTP,
    SCTP_KIND,
    STATE_MASK,
    STATE_SHIFT,
    TCP,
    UDP_KIND,
    connection_t,
    packet_t,
    snapshot_t,
    table_t,
)


cdef enum:                           # net/netfilter/ipvs, include/net/ip_vs.h: same order, same numbers
    NONE = 0
    ESTABLISHED
    SYN_SENT
    SYN_RECV
    FIN_WAIT
    TIME_WAIT
    CLOSE
    CLOSE_WAIT
    LAST_ACK
    LISTEN
    SYNACK
    STATES

cdef enum:                           # the same, of SCTP
    INIT1 = 1
    INIT = 2
    ASSOCIATED = 8
    CLOSED = 13
    ASSOCIATION_STATES

cdef enum direction_t:
    FROM_CLIENT = 0
    FROM_SERVER = 1
    CLIENT_ONLY = 2                  # from the client, and replies do not pass here


cdef void track(table_t* table, const snapshot_t* snapshot, connection_t* connection, const packet_t* packet,
                direction_t direction, uint32_t now) noexcept nogil
cdef bint become(table_t* table, connection_t* connection, uint8_t state) noexcept nogil
cdef void default_timeouts(uint32_t* timeouts) noexcept
cdef int set_timeouts(uint32_t* timeouts, object seconds) except -1


cdef inline const uint32_t* timeouts_of(const snapshot_t* snapshot, const connection_t* connection) noexcept nogil:
    """Ticks that connections of its service may be silent, by kind."""
    if snapshot.own_timeouts != NULL and connection.slot < snapshot.slot_count \
            and snapshot.own_timeouts[connection.slot] != NULL:
        return snapshot.own_timeouts[connection.slot]
    return snapshot.timeouts


cdef inline uint32_t kind_of(uint8_t protocol, uint32_t state) noexcept nogil:
    """The timeout that a connection in this state has."""
    if protocol == TCP:
        return state
    return SCTP_KIND + state if protocol == SCTP else <uint32_t>UDP_KIND


cdef inline bint is_active(uint8_t protocol, uint32_t state) noexcept nogil:
    """Whether a connection in this state counts as ActiveConn."""
    if protocol == TCP:
        return ACTIVE_STATES >> state & 1
    return protocol == SCTP and ACTIVE_ASSOCIATION >> state & 1


cdef inline uint32_t patience(const snapshot_t* snapshot, const connection_t* connection) noexcept nogil:
    """Ticks that a connection may be silent in the state that it is in."""
    cdef uint32_t state = (connection.word & STATE_MASK) >> STATE_SHIFT
    return timeouts_of(snapshot, connection)[kind_of(connection.protocol, state)]
