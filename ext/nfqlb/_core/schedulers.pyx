"""Schedulers: `pick` gives the index of the real server for a new connection, or -1.

Strategy: each is the kernel's of the same name, to the tie (net/netfilter/ipvs/ip_vs_rr.c and so on), over the servers
as the kernel walks them, newest first. Those that look at loads are in load.pxd, and for many servers in ranking.pyx;
those that hash in hashing.pyx, with hrw, which the kernel has not; those that remember destinations in locality.pyx;
p2c and ewma, which it has not either, in latency.pyx. Here are rr and wrr, which remember where they are, under the
service's lock. A new configuration makes a new service with a state of its own: `succeed`
carries over what the kernel's add, delete and edit hooks would.
"""
from libc.stdint cimport int32_t, uint32_t, uint64_t

from nfqlb._core.atomic cimport lock, unlock
from nfqlb._core.hashing cimport (
    destination_hash,
    fill_destination_hash,
    fill_maglev,
    fill_names,
    fill_source_hash,
    maglev,
    rendezvous,
    source_hash,
)
from nfqlb._core.latency cimport draw, fill_sums, two_choices
from nfqlb._core.load cimport (
    is_overloaded,
    least_connection,
    less_loaded,
    never_queue,
    power_of_two,
    shortest_expected_delay,
    takes,
    weighted_failover,
    weighted_least_connection,
    weighted_overflow,
)
from nfqlb._core.locality cimport locality_based
from nfqlb._core.ranking cimport drawn, leader, position, ranked
from nfqlb._core.types cimport (
    COUNT_TOTAL,
    DH,
    EWMA,
    FALLBACK,
    FO,
    HASH_PORT,
    HRW,
    LBLC,
    LBLCR,
    LC,
    MH,
    NQ,
    OVF,
    P2C,
    RR,
    SED,
    SH,
    TWOS,
    WLC,
    WRR,
    load_t,
    packet_t,
    scheduler_state_t,
    service_t,
)

SCHEDULERS: tuple[str, ...] = (
    "rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "mh", "sed", "nq", "fo", "ovf", "twos", "p2c", "ewma", "hrw",
)
FLAGS: dict[str, dict[str, int]] = {
    **dict.fromkeys(("lc", "wlc", "lblc", "lblcr", "twos"), {"count-total": COUNT_TOTAL}),
    "sh": {"sh-fallback": FALLBACK, "sh-port": HASH_PORT},
    "mh": {"mh-fallback": FALLBACK, "mh-port": HASH_PORT},
    "hrw": {"hrw-port": HASH_PORT},
}


cdef int32_t pick(service_t* service, const packet_t* packet, const load_t* loads, uint32_t now,
                  uint64_t* random) noexcept nogil:
    """The server for the connection that this packet begins, at tick `now`; `random` is the caller's generator."""
    cdef int32_t chosen
    if service.ranking != NULL and service.scheduler != LBLC and service.scheduler != LBLCR:
        lock(&service.state.lock)
        if ranked(service, loads):
            chosen = two_drawn(service, loads, draw(random)) if service.scheduler == TWOS else leader(service, loads)
            unlock(&service.state.lock)
            return chosen
        unlock(&service.state.lock)
    if service.scheduler == WLC:
        return weighted_least_connection(service, loads)
    if service.scheduler == LC:
        return least_connection(service, loads)
    if service.scheduler == DH:
        return destination_hash(service, packet, loads)
    if service.scheduler == SH:
        return source_hash(service, packet, loads)
    if service.scheduler == MH:
        return maglev(service, packet, loads)
    if service.scheduler == SED:
        return shortest_expected_delay(service, loads)
    if service.scheduler == NQ:
        return never_queue(service, loads)
    if service.scheduler == FO:
        return weighted_failover(service, loads)
    if service.scheduler == OVF:
        return weighted_overflow(service, loads)
    if service.scheduler == TWOS:
        return power_of_two(service, loads, draw(random))
    if service.scheduler == HRW:
        return rendezvous(service, packet, loads)
    if service.scheduler == P2C or service.scheduler == EWMA:
        return two_choices(service, packet, loads, random, now)
    if service.scheduler == LBLC or service.scheduler == LBLCR:
        return locality_based(service, packet, loads, now, service.scheduler == LBLCR)
    lock(&service.state.lock)
    chosen = round_robin(service, loads) if service.scheduler == RR else weighted_round_robin(service, loads)
    unlock(&service.state.lock)
    return chosen


cdef int32_t two_drawn(service_t* service, const load_t* loads, uint64_t chance) noexcept nogil:
    """power_of_two() by the service's ranking."""
    cdef int32_t one = drawn(service, <uint32_t>chance)
    return one if one < 0 else less_loaded(service, one, drawn(service, chance >> 32), loads)


cdef int32_t round_robin(service_t* service, const load_t* loads) noexcept nogil:
    """The first with a weight behind the last one chosen; that one itself comes last."""
    cdef int32_t count = service.count
    cdef int32_t step, at
    for step in range(1, count + 1):
        at = (service.state.cursor + step) % count
        if takes(&service.servers[at], loads):
            service.state.cursor = at
            return at
    return -1


cdef int32_t weighted_round_robin(service_t* service, const load_t* loads) noexcept nogil:
    """Laps over the servers with a weight threshold that falls by the gcd after each, from the greatest weight to 1.

    A lap that found nobody tells the greatest weight that could be found: the laps above it are left out.
    """
    cdef scheduler_state_t* state = service.state
    cdef int32_t at = state.cursor
    cdef int32_t last = at
    cdef int32_t stop = -1
    cdef bint last_lap = False
    cdef bint restarted = False
    cdef bint whole = at < 0                                 # this lap begins at the head
    cdef int32_t weight, reach
    if service.ceiling == 0:
        return -1
    while True:
        reach = 0
        at += 1
        while at < <int32_t>service.count:
            weight = service.servers[at].weight
            if weight > reach and not is_overloaded(&service.servers[at], loads):
                if weight >= state.current:
                    state.cursor = at
                    return at
                reach = weight
            if at == stop:
                state.cursor = at
                return -1
            at += 1
        at = -1
        state.current -= service.gcd
        if whole:
            reach = max(reach, service.gcd)                  # a threshold of at most the gcd is the last one
            if state.current > reach:
                state.current -= ((state.current - reach - 1) // service.gcd + 1) * service.gcd
        whole = True
        if state.current <= 0:
            state.current = service.ceiling
            if last_lap or last == -1:                       # every server was held against weight 1
                state.cursor = -1
                return -1
            restarted = True
        last_lap = state.current <= service.gcd
        if last_lap and restarted and last != -1:
            stop = last


cdef int32_t greatest_common_divisor(int32_t a, int32_t b) noexcept:
    while b:
        a, b = b, a % b
    return a


cdef int prepare(service_t* service) except -1:
    """Work out what depends on the servers alone, and start the state as that of a new service.

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
    if service.scheduler == DH:
        fill_destination_hash(service)
    elif service.scheduler == SH:
        fill_source_hash(service)
    elif service.scheduler == MH:
        fill_maglev(service)
    elif service.scheduler == HRW:
        fill_names(service)
    elif service.scheduler == P2C or service.scheduler == EWMA:
        fill_sums(service)
    return 0


cdef void lower(service_t* service, int32_t current) noexcept:
    """The threshold that wrr goes on with after its servers changed (ip_vs_wrr_dest_changed)."""
    if current > service.ceiling or current == 0:
        current = service.ceiling
    elif service.gcd > 1:
        current = current // service.gcd * service.gcd + 1
    service.state.current = current


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
