"""Schedulers: `pick(service, loads)` gives the index of the real server for a new connection, or -1.

Strategy: each is the kernel's of the same name, to the tie (net/netfilter/ipvs/ip_vs_rr.c, ip_vs_wrr.c, ip_vs_lc.c,
ip_vs_wlc.c), over the servers as the kernel walks them, newest first. What a scheduler remembers between picks is the
service's scheduler_state_t, under its lock; lc and wlc remember nothing. A new configuration makes a new service with
a state of its own: `succeed` carries over what the kernel's add, delete and edit hooks would.
"""
from libc.stdint cimport int32_t, int64_t

from nfqlb._core.atomic cimport RELAXED, load32, lock, unlock
from nfqlb._core.types cimport load_t, scheduler_state_t, server_t, service_t

cdef enum:
    RR = 0
    WRR
    LC
    WLC

SCHEDULERS: tuple[str, ...] = ("rr", "wrr", "lc", "wlc")


cdef int32_t pick(service_t* service, const load_t* loads) noexcept nogil:
    cdef int32_t chosen
    if service.scheduler == LC:
        return least_connection(service, loads)
    if service.scheduler == WLC:
        return weighted_least_connection(service, loads)
    lock(&service.state.lock)
    chosen = round_robin(service) if service.scheduler == RR else weighted_round_robin(service)
    unlock(&service.state.lock)
    return chosen


cdef int32_t round_robin(service_t* service) noexcept nogil:
    """The first with a weight behind the last one chosen; that one itself comes last."""
    cdef int32_t count = service.count
    cdef int32_t step, at
    for step in range(1, count + 1):
        at = (service.state.cursor + step) % count
        if service.servers[at].weight > 0:
            service.state.cursor = at
            return at
    return -1


cdef int32_t weighted_round_robin(service_t* service) noexcept nogil:
    """Laps over the servers with a weight threshold that falls by the gcd after each, from the greatest weight to 1."""
    cdef scheduler_state_t* state = service.state
    cdef int32_t at = state.cursor
    cdef int32_t last = at
    cdef int32_t stop = -1
    cdef bint last_lap = False
    cdef bint restarted = False
    if service.ceiling == 0:
        return -1
    while True:
        at += 1
        while at < <int32_t>service.count:
            if service.servers[at].weight >= state.current:
                state.cursor = at
                return at
            if at == stop:
                state.cursor = at
                return -1
            at += 1
        at = -1
        state.current -= service.gcd
        if state.current <= 0:
            state.current = service.ceiling
            if last_lap or last == -1:                       # every server was held against weight 1
                state.cursor = -1
                return -1
            restarted = True
        last_lap = state.current <= service.gcd
        if last_lap and restarted and last != -1:
            stop = last


cdef inline int64_t overhead(const load_t* load) noexcept nogil:
    """256 * ActiveConn + InActConn (ip_vs_dest_conn_overhead up to Linux 6.12)."""
    return (<int64_t>load32(<unsigned int*>&load.active, RELAXED) << 8) + load32(<unsigned int*>&load.inactive, RELAXED)


cdef int32_t least_connection(service_t* service, const load_t* loads) noexcept nogil:
    """The smallest overhead among those with a weight; the first of equals."""
    cdef int32_t best = -1
    cdef int64_t least = 0
    cdef int64_t cost
    cdef int32_t at
    for at in range(<int32_t>service.count):
        if service.servers[at].weight == 0:
            continue
        cost = overhead(&loads[service.servers[at].slot])
        if best < 0 or cost < least:
            best = at
            least = cost
    return best


cdef int32_t weighted_least_connection(service_t* service, const load_t* loads) noexcept nogil:
    """The smallest overhead / weight, compared without dividing; the first of equals."""
    cdef int32_t best = -1
    cdef int64_t least = 0
    cdef int64_t cost
    cdef int32_t at
    cdef server_t* server
    for at in range(<int32_t>service.count):
        server = &service.servers[at]
        if server.weight == 0:
            continue
        cost = overhead(&loads[server.slot])
        if best < 0 or least * server.weight > cost * service.servers[best].weight:
            best = at
            least = cost
    return best


cdef int32_t greatest_common_divisor(int32_t a, int32_t b) noexcept:
    while b:
        a, b = b, a % b
    return a


cdef void prepare(service_t* service) noexcept:
    """Work out what depends on the weights alone, and start the state as that of a new service.

    The servers count as added one after another, oldest first: the kernel knows no other way, and wrr's threshold
    remembers it (ip_vs_wrr_dest_changed).
    """
    cdef int32_t gcd = 0
    cdef int32_t greatest = 0
    cdef int32_t weight
    cdef int32_t at
    service.gcd = 1
    service.ceiling = 0
    service.state.cursor = -1
    service.state.current = 0
    for at in range(<int32_t>service.count - 1, -1, -1):      # oldest first
        weight = service.servers[at].weight
        if weight > 0:
            gcd = greatest_common_divisor(weight, gcd)
            greatest = max(greatest, weight)
        service.gcd = gcd or 1
        service.ceiling = greatest - (service.gcd - 1) if greatest else 0
        lower(service, service.state.current)


cdef void lower(service_t* service, int32_t current) noexcept:
    """The threshold that wrr goes on with after its servers changed (ip_vs_wrr_dest_changed)."""
    if current > service.ceiling or current == 0:
        current = service.ceiling
    elif service.gcd > 1:
        current = current // service.gcd * service.gcd + 1
    service.state.current = current


cdef int32_t position(const service_t* service, unsigned int slot) noexcept:
    cdef int32_t at
    for at in range(<int32_t>service.count):
        if service.servers[at].slot == slot:
            return at
    return -1


cdef void succeed(service_t* service, const service_t* previous) noexcept:
    """Carry the state over from the service's last form, as the kernel's hooks do when servers come, go or change.

    rr goes on behind the last one chosen; if that is gone, behind the one before it (ip_vs_rr_del_dest). wrr starts
    its lap at the head again and keeps its threshold as far as the new weights have it (ip_vs_wrr_dest_changed).
    """
    cdef int32_t at = previous.state.cursor
    cdef int32_t current = previous.state.current
    if service.scheduler != previous.scheduler:
        return
    if service.scheduler == RR:
        while at >= 0 and position(service, previous.servers[at].slot) < 0:
            at -= 1
        service.state.cursor = position(service, previous.servers[at].slot) if at >= 0 else -1
    elif service.scheduler == WRR:
        lower(service, current)
