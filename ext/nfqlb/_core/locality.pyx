"""lblc and lblcr, for caches: a destination address is remembered with the real server, or the set, that serves it.

Strategy: the kernel's rules (net/netfilter/ipvs/ip_vs_lblc.c, ip_vs_lblcr.c) over arrays of fixed size, so that nothing
is allocated while packets flow. Servers are named by slot: what is remembered goes on when the service changes. Where
there is no room, the choice is made all the same and not remembered.
"""
from libc.stdint cimport int32_t, uint32_t, uint64_t

from nfqlb._core.atomic cimport lock, unlock
from nfqlb._core.load cimport active_of, is_overloaded, overhead, weighted_least_connection
from nfqlb._core.ranking cimport has_little, leader, position, ranked
from nfqlb._core.types cimport (
    DESTINATION_BUCKETS,
    DESTINATIONS,
    address_t,
    destination_t,
    load_t,
    locality_t,
    packet_t,
    server_t,
    service_t,
)
from nfqlb._core.wire cimport same


cdef enum:
    GOLDEN_RATIO = 0x61C88647
    EXPIRATION = 864000              # ticks: a day (lblc_expiration, lblcr_expiration)
    RECENT = 3600                    # ticks: six minutes (ENTRY_TIMEOUT)
    ENOUGH = 16384                   # destinations from which on those not used recently go (16 * 1024)


cdef void clear(locality_t* locality) noexcept nogil:
    """Remember nothing: chain what is free."""
    cdef uint32_t at
    locality.count = 0
    for at in range(<uint32_t>DESTINATION_BUCKETS):
        locality.buckets[at] = 0
    for at in range(1, <uint32_t>DESTINATIONS):
        locality.destinations[at].next = at + 1
    locality.destinations[DESTINATIONS].next = 0
    for at in range(1, 2 * <uint32_t>DESTINATIONS):
        locality.members[at].next = at + 1
    locality.members[2 * DESTINATIONS].next = 0
    locality.free_destination = locality.free_member = 1


cdef int32_t locality_based(service_t* service, const packet_t* packet, const load_t* loads, uint32_t now,
                            bint replicated) noexcept nogil:
    """The server that the destination had, unless it has too much to do while another has little; else, as with wlc,
    the one with the least for its weight, which is remembered. With `replicated` (lblcr) a destination may have
    several.
    """
    cdef locality_t* locality = service.locality
    cdef destination_t* known
    cdef int32_t chosen
    lock(&locality.lock)
    if service.ranking != NULL:                              # who is below the lower threshold again
        lock(&service.state.lock)
        ranked(service, loads)
        unlock(&service.state.lock)
    known = find(locality, &packet.destination)
    if known != NULL:
        known.used = now
        chosen = least_member(service, locality, known, loads, replicated)
        if known.count > 1 and now - known.changed > EXPIRATION:
            drop_most_loaded(service, locality, known, loads, now)
        if chosen >= 0 and not is_loaded(service, chosen, loads):
            unlock(&locality.lock)
            return chosen
    chosen = least(service, loads)
    if chosen >= 0:
        if known == NULL:
            known = remember(locality, &packet.destination, now)
        if known != NULL:
            if not replicated:
                forget_members(locality, known)
            add_member(locality, known, service.servers[chosen].slot, now)
    unlock(&locality.lock)
    return chosen


cdef uint32_t collect(locality_t* locality, uint32_t now, bint all_unused) noexcept nogil:
    """Forget destinations: with `all_unused` those not used for a day; else, where there are very many, some of those
    not used for six minutes. Meant to be called once a minute, every thirtieth time with `all_unused`; returns how
    many went.
    """
    cdef uint32_t limit = EXPIRATION if all_unused else RECENT
    cdef uint32_t goal = DESTINATIONS
    cdef uint32_t gone = 0
    cdef uint32_t at, index
    cdef uint32_t* link
    lock(&locality.lock)
    if not all_unused:
        if locality.count <= ENOUGH:
            unlock(&locality.lock)
            return 0
        goal = min((locality.count - ENOUGH) * 4 // 3, <uint32_t>ENOUGH // 2)
    for at in range(<uint32_t>DESTINATION_BUCKETS):
        link = &locality.buckets[at]
        while link[0] and gone < goal:
            index = link[0]
            if now - locality.destinations[index].used <= limit:
                link = &locality.destinations[index].next
                continue
            link[0] = locality.destinations[index].next
            forget_members(locality, &locality.destinations[index])
            locality.destinations[index].next = locality.free_destination
            locality.free_destination = index
            locality.count -= 1
            gone += 1
    unlock(&locality.lock)
    return gone


cdef inline uint32_t bucket_of(const address_t* address) noexcept nogil:
    cdef uint64_t mixed = address.high ^ address.low
    return (<uint32_t>(mixed ^ mixed >> 32) * <uint32_t>GOLDEN_RATIO) >> 22


cdef destination_t* find(locality_t* locality, const address_t* address) noexcept nogil:
    cdef uint32_t at = locality.buckets[bucket_of(address)]
    while at:
        if same(&locality.destinations[at].address, address):
            return &locality.destinations[at]
        at = locality.destinations[at].next
    return NULL


cdef destination_t* remember(locality_t* locality, const address_t* address, uint32_t now) noexcept nogil:
    """A new destination without servers, or NULL."""
    cdef uint32_t at = locality.free_destination
    cdef uint32_t* bucket = &locality.buckets[bucket_of(address)]
    cdef destination_t* new = &locality.destinations[at]
    if at == 0:
        return NULL
    locality.free_destination = new.next
    locality.count += 1
    new.address = address[0]
    new.members = new.count = 0
    new.used = new.changed = now
    new.next = bucket[0]
    bucket[0] = at
    return new


cdef void add_member(locality_t* locality, destination_t* known, uint32_t slot, uint32_t now) noexcept nogil:
    cdef uint32_t at = known.members
    while at:
        if locality.members[at].slot == slot:
            return
        at = locality.members[at].next
    at = locality.free_member
    if at == 0:
        return
    locality.free_member = locality.members[at].next
    locality.members[at].slot = slot
    locality.members[at].next = known.members
    known.members = at
    known.count += 1
    known.changed = now


cdef void forget_members(locality_t* locality, destination_t* known) noexcept nogil:
    while known.members:
        forget_member(locality, known, &known.members)


cdef void forget_member(locality_t* locality, destination_t* known, uint32_t* link) noexcept nogil:
    cdef uint32_t at = link[0]
    link[0] = locality.members[at].next
    locality.members[at].next = locality.free_member
    locality.free_member = at
    known.count -= 1


cdef int32_t least(service_t* service, const load_t* loads) noexcept nogil:
    """As wlc chooses."""
    cdef int32_t chosen
    lock(&service.state.lock)
    chosen = leader(service, loads) if ranked(service, loads) else weighted_least_connection(service, loads)
    unlock(&service.state.lock)
    return chosen


cdef int32_t least_member(service_t* service, locality_t* locality, const destination_t* known, const load_t* loads,
                          bint replicated) noexcept nogil:
    """Of the destination's servers that take connections the one with the least for its weight. With lblc the
    threshold of the only one does not count (ip_vs_lblc_schedule).
    """
    cdef int32_t best = -1
    cdef int32_t index
    cdef uint32_t at = known.members
    cdef server_t* server
    while at:
        index = position(service, locality.members[at].slot)
        at = locality.members[at].next
        if index < 0:
            continue
        server = &service.servers[index]
        if server.weight <= 0 or (replicated and is_overloaded(server, loads)):
            continue
        if best < 0 or overhead(&service.servers[best], loads) * server.weight \
                > overhead(server, loads) * service.servers[best].weight:
            best = index
    return best


cdef void drop_most_loaded(service_t* service, locality_t* locality, destination_t* known, const load_t* loads,
                           uint32_t now) noexcept nogil:
    """Take the server out of the set that has the most for its weight (ip_vs_dest_set_max)."""
    cdef uint32_t* link = &known.members
    cdef uint32_t* worst = NULL
    cdef server_t* most = NULL
    cdef server_t* server
    cdef int32_t index
    while link[0]:
        index = position(service, locality.members[link[0]].slot)
        if index >= 0 and service.servers[index].weight > 0:
            server = &service.servers[index]
            if most == NULL or overhead(most, loads) * server.weight < overhead(server, loads) * most.weight:
                most = server
                worst = link
        link = &locality.members[link[0]].next
    if worst != NULL:
        forget_member(locality, known, worst)
        known.changed = now


cdef bint is_loaded(service_t* service, int32_t index, const load_t* loads) noexcept nogil:
    """Whether a server has more active connections than its weight while another has less than half of that."""
    cdef bint told, little
    cdef int32_t at
    if active_of(&service.servers[index], loads) <= service.servers[index].weight:
        return False
    lock(&service.state.lock)
    told = ranked(service, loads)
    little = told and has_little(service, loads)
    unlock(&service.state.lock)
    if told:
        return little
    for at in range(<int32_t>service.count):
        if 2 * active_of(&service.servers[at], loads) < service.servers[at].weight:
            return True
    return False
