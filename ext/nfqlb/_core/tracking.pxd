"""TCP and UDP states of a connection, as the kernel's IPVS keeps them."""
from libc.stdint cimport uint8_t, uint32_t

from nfqlb._core.types cimport connection_t, packet_t, snapshot_t, table_t


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
cdef void default_timeouts(snapshot_t* snapshot, uint32_t tcp, uint32_t tcp_fin, uint32_t udp) noexcept
