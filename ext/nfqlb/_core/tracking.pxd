"""TCP and UDP states of a connection, as the kernel's IPVS keeps them."""
from libc.stdint cimport uint8_t, uint32_t

from nfqlb._core.types cimport (
    KINDS,
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

cdef enum direction_t:
    FROM_CLIENT = 0
    FROM_SERVER = 1
    CLIENT_ONLY = 2                  # from the client, and replies do not pass here


cdef void track(table_t* table, const snapshot_t* snapshot, connection_t* connection, const packet_t* packet,
                direction_t direction, uint32_t now) noexcept nogil
cdef void default_timeouts(uint32_t* timeouts) noexcept
cdef int set_timeouts(uint32_t* timeouts, object seconds) except -1


cdef inline const uint32_t* timeouts_of(const snapshot_t* snapshot, const connection_t* connection) noexcept nogil:
    """Ticks that connections of its service may be silent, by TCP state and UDP_KIND."""
    if snapshot.own_timeouts != NULL and connection.slot < snapshot.slot_count \
            and snapshot.own_timeouts[connection.slot] != NULL:
        return snapshot.own_timeouts[connection.slot]
    return snapshot.timeouts


cdef inline uint32_t patience(const snapshot_t* snapshot, const connection_t* connection) noexcept nogil:
    """Ticks that a connection may be silent in the state that it is in."""
    if connection.protocol != TCP:
        return timeouts_of(snapshot, connection)[UDP_KIND]
    return timeouts_of(snapshot, connection)[(connection.word & STATE_MASK) >> STATE_SHIFT]
