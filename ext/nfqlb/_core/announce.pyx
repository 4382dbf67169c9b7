"""Which connections peers are to hear of, and when: the kernel's rule (ip_vs_sync.c, ip_vs_sync_conn_needed).

Strategy. A worker that tracked a packet asks here, and puts the connection's index into a ring of its own; who sends
reads the connection itself when it comes by, so a ring holds four bytes for each, and what is told is always the last
that is known. What peers were told lies beside the table (told_t), is nobody's truth, and is forgotten when a place of
the table is taken anew. A ring that is full loses an announcement, which is counted; the sender's own walk over the
table finds such connections, and all that no packet speaks of.
"""
from libc.stdint cimport uint8_t, uint32_t

from nfqlb._core.atomic cimport ACQUIRE, RELAXED, RELEASE, load32, store32
from nfqlb._core.tracking cimport ASSOCIATED, CLOSE, CLOSE_WAIT, CLOSED, ESTABLISHED, FIN_WAIT, TIME_WAIT
from nfqlb._core.types cimport (
    CALL,
    LEFT,
    ONE_PACKET,
    SCTP,
    STATE_MASK,
    STATE_SHIFT,
    TCP,
    TEMPLATE,
    UDP,
    connection_t,
    table_t,
    told_t,
)

cdef enum:
    TOLD_STATES = 1 << ESTABLISHED | 1 << FIN_WAIT | 1 << CLOSE | 1 << CLOSE_WAIT | 1 << TIME_WAIT
    TOLD_ASSOCIATIONS = 0xf << ASSOCIATED | 1 << CLOSED      # established, and the three of a shutdown
    LEAST = 100                              # ticks that make a difference, whatever the timeout


cdef bint may_tell(const connection_t* connection, uint32_t word) noexcept nogil:
    """Whether peers hear of a connection in this state: not of handshakes, whose flood would be theirs, too."""
    if connection.flags & (LEFT | ONE_PACKET | CALL):
        return False
    if connection.flags & TEMPLATE or connection.protocol == UDP:
        return True
    if connection.protocol == SCTP:
        return TOLD_ASSOCIATIONS >> ((word & STATE_MASK) >> STATE_SHIFT) & 1
    if connection.protocol != TCP:
        return False
    return TOLD_STATES >> ((word & STATE_MASK) >> STATE_SHIFT) & 1


cdef bint is_established(const connection_t* connection, uint8_t state) noexcept nogil:
    """Whether it is of a protocol that has such a state, and in it."""
    return state == (ESTABLISHED if connection.protocol == TCP else ASSOCIATED) and connection.protocol != UDP


cdef void consider(ring_t* ring, table_t* table, connection_t* connection, uint32_t now) noexcept nogil:
    """After a packet of a connection was tracked: have it told if it is time, and its template, whose timer it set."""
    if not connection.flags & ONE_PACKET:
        tell(ring, table, connection, now)
    if connection.control != 0:
        tell(ring, table, &table.entries[connection.control], now)


cdef void tell(ring_t* ring, table_t* table, connection_t* connection, uint32_t now) noexcept nogil:
    cdef told_t* told = &table.told[connection - table.entries]
    cdef uint32_t word = load32(&connection.word, ACQUIRE)
    cdef uint32_t expires = load32(&connection.expires, RELAXED)
    cdef uint8_t state = (word & STATE_MASK) >> STATE_SHIFT
    cdef uint8_t retries = 0
    if not may_tell(connection, word) \
            or not is_needed(ring.rules, told, connection, state, expires, now, &retries) \
            or not push(ring, <uint32_t>(connection - table.entries)):
        return
    told.expires = expires
    told.state = state
    told.retries = retries


cdef inline bint is_needed(const rules_t* rules, const told_t* told, const connection_t* connection, uint8_t state,
                           uint32_t expires, uint32_t now, uint8_t* retries) noexcept nogil:
    cdef uint32_t apart, enough
    if connection.flags & TEMPLATE:
        # the kernel tells it with every packet of its connections; the same twice helps nobody
        return told.expires != expires or told.state != state
    if rules.spares_children and connection.control != 0:
        return False
    if connection.protocol != UDP and told.state != state and not is_established(connection, state):
        return True
    if rules.refresh != 0:
        apart = expires - told.expires if expires > told.expires else told.expires - expires
        enough = max((expires - now) >> 1, <uint32_t>LEAST)
        if apart < min(rules.refresh, enough):
            if told.retries >= rules.retries or apart < rules.refresh >> 3:
                return False
            retries[0] = told.retries + 1
    if rules.period != 0:
        return connection.inpackets % rules.period == rules.threshold
    return rules.refresh != 0 or connection.inpackets == rules.threshold


cdef inline bint push(ring_t* ring, uint32_t index) noexcept nogil:
    """False where there is no place: that is counted."""
    cdef uint32_t head = ring.head
    if head - load32(&ring.tail, ACQUIRE) >= RING:
        store32(&ring.lost, ring.lost + 1, RELAXED)
        return False
    ring.entries[head & (RING - 1)] = index
    store32(&ring.head, head + 1, RELEASE)
    return True
