"""The schedulers that look at every real server and at how many connections each has: lc, wlc, sed, nq, ovf, fo, twos.

They walk over all; ranking.pyx knows what they would find where there are many. Each gives an index, or -1 where no
server takes new connections. Costs are compared as products, without dividing; of equals the first wins, the newest
server that is (net/netfilter/ipvs/ip_vs_lc.c and so on).
"""
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from nfqlb._core.atomic cimport RELAXED, load32
from nfqlb._core.types cimport load_t, server_t, service_t


cdef inline int64_t active_of(const server_t* server, const load_t* loads) noexcept nogil:
    return load32(<unsigned int*>&loads[server.slot].active, RELAXED)


cdef inline int64_t total_of(const server_t* server, const load_t* loads) noexcept nogil:
    return active_of(server, loads) + load32(<unsigned int*>&loads[server.slot].inactive, RELAXED)


cdef inline int64_t overhead(const server_t* server, const load_t* loads) noexcept nogil:
    """256 * ActiveConn + InActConn (ip_vs_dest_conn_overhead); the newest kernels add ActiveConn once more."""
    cdef int64_t active = active_of(server, loads)
    return (active << 8) + (active if server.counts_total else 0) \
        + load32(<unsigned int*>&loads[server.slot].inactive, RELAXED)


cdef inline bint is_overloaded(server_t* server, const load_t* loads) noexcept nogil:
    """Whether a server that had reached its upper threshold is still at or above the lower one (ip_vs_unbind_dest).

    The kernel looks when a connection ends. Whoever chooses, or adds one, looks instead, before that: in between there
    are endings only.
    """
    if server.overloaded and total_of(server, loads) < server.lower:
        server.overloaded = False
    return server.overloaded


cdef inline bint note_connection(service_t* service, server_t* server, const load_t* loads) noexcept nogil:
    """A connection was added (ip_vs_bind_dest); whether the server has too many now."""
    if server.upper == 0 or total_of(server, loads) < server.upper:
        return False
    service.loads = loads
    server.overloaded = True
    return True


cdef inline void recall(service_t* service, const load_t* loads) noexcept nogil:
    """Look how many connections servers have that are new to their service, but may not be to the table."""
    cdef uint32_t at
    for at in range(service.count):
        if service.servers[at].is_new:
            service.servers[at].is_new = False
            note_connection(service, &service.servers[at], loads)


cdef inline bint takes(server_t* server, const load_t* loads) noexcept nogil:
    """Whether it gets new connections. One of weight 0 may stop being overloaded all the same."""
    return not is_overloaded(server, loads) and server.weight > 0


cdef inline int32_t least_connection(service_t* service, const load_t* loads) noexcept nogil:
    cdef int32_t best = -1
    cdef int64_t least = 0
    cdef int64_t cost
    cdef int32_t at
    for at in range(<int32_t>service.count):
        if not takes(&service.servers[at], loads):
            continue
        cost = overhead(&service.servers[at], loads)
        if best < 0 or cost < least:
            best = at
            least = cost
    return best


cdef inline int32_t weighted_least_connection(service_t* service, const load_t* loads) noexcept nogil:
    cdef int32_t best = -1
    cdef int64_t least = 0
    cdef int64_t cost
    cdef int32_t at
    for at in range(<int32_t>service.count):
        if not takes(&service.servers[at], loads):
            continue
        cost = overhead(&service.servers[at], loads)
        if best < 0 or least * service.servers[at].weight > cost * service.servers[best].weight:
            best = at
            least = cost
    return best


cdef inline int32_t shortest_expected_delay(service_t* service, const load_t* loads) noexcept nogil:
    """By (ActiveConn + 1) / weight."""
    cdef int32_t best = -1
    cdef int64_t least = 0
    cdef int64_t cost
    cdef int32_t at
    for at in range(<int32_t>service.count):
        if not takes(&service.servers[at], loads):
            continue
        cost = active_of(&service.servers[at], loads) + 1
        if best < 0 or least * service.servers[at].weight > cost * service.servers[best].weight:
            best = at
            least = cost
    return best


cdef inline int32_t never_queue(service_t* service, const load_t* loads) noexcept nogil:
    """The first that is idle; where none is, the one with the shortest expected delay."""
    cdef int32_t idle = -1
    cdef int32_t at
    for at in range(<int32_t>service.count):             # all of them: each may be overloaded no more
        if takes(&service.servers[at], loads) and idle < 0 and active_of(&service.servers[at], loads) == 0:
            idle = at
    return idle if idle >= 0 else shortest_expected_delay(service, loads)


cdef inline int32_t weighted_failover(service_t* service, const load_t* loads) noexcept nogil:
    """The greatest weight gets everything."""
    cdef int32_t best = -1
    cdef int32_t at
    for at in range(<int32_t>service.count):
        if takes(&service.servers[at], loads) \
                and (best < 0 or service.servers[at].weight > service.servers[best].weight):
            best = at
    return best


cdef inline int32_t weighted_overflow(service_t* service, const load_t* loads) noexcept nogil:
    """The greatest weight among those that have at most as many active connections as their weight says."""
    cdef int32_t best = -1
    cdef int32_t at
    cdef server_t* server
    for at in range(<int32_t>service.count):
        server = &service.servers[at]
        if takes(server, loads) and active_of(server, loads) <= server.weight \
                and (best < 0 or server.weight > service.servers[best].weight):
            best = at
    return best


cdef inline int32_t power_of_two(service_t* service, const load_t* loads, uint64_t chance) noexcept nogil:
    """Two draws by weight, and of the two the one with less overhead for its weight (ip_vs_twos.c). `chance` is 64
    random bits.
    """
    cdef int64_t sum = 0
    cdef int64_t first, second
    cdef int32_t one = -1
    cdef int32_t two = -1
    cdef int32_t at
    cdef server_t* server
    for at in range(<int32_t>service.count):
        if takes(&service.servers[at], loads):
            sum += service.servers[at].weight
            one = at
    if one < 0:
        return -1
    first = <int64_t>((chance & 0xffffffffU) * <uint64_t>(sum + 1) >> 32)
    second = <int64_t>((chance >> 32) * <uint64_t>(sum + 1) >> 32)
    one = -1
    for at in range(<int32_t>service.count):
        server = &service.servers[at]
        if not takes(server, loads):
            continue
        first -= server.weight
        second -= server.weight
        if first <= 0 and one < 0:
            one = at
        if second <= 0 and two < 0:
            two = at
        if one >= 0 and two >= 0:
            break
    if one < 0 or two < 0:
        return max(one, two)
    return less_loaded(service, one, two, loads)


cdef inline int32_t less_loaded(service_t* service, int32_t one, int32_t two, const load_t* loads) noexcept nogil:
    """Of two servers the one with less overhead for its weight."""
    if service.servers[two].weight * overhead(&service.servers[one], loads) \
            > service.servers[one].weight * overhead(&service.servers[two], loads):
        return two
    return one
