"""A candidate beside the scheduler of a service: where the two differ.

Strategy: the candidate is a service of its own, with the same real servers at the same places, that no packet belongs
to. For each connection it is asked what it would do; it sees the loads that the live one makes. That costs one more
choice for each first packet, a lock, and nothing else: with many servers the candidate walks over all, since only one
ranking is told of a server's load.
"""
from libc.stdint cimport int32_t, uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from nfqlb._core.atomic cimport lock, unlock
from nfqlb._core.memory cimport cache_lines
from nfqlb._core.ranking cimport position
from nfqlb._core.types cimport DIFFERENCES, difference_t, packet_t, service_t, shadow_t, tally_t


cdef shadow_t* new_shadow(service_t* live, service_t* candidate) except NULL:
    cdef shadow_t* shadow = <shadow_t*>cache_lines(sizeof(shadow_t))
    if shadow == NULL:
        raise MemoryError
    shadow.service = candidate
    shadow.tallies = <tally_t*>calloc(max(<uint32_t>1, live.count), sizeof(tally_t))
    if shadow.tallies == NULL:
        free(shadow)
        raise MemoryError
    return shadow


cdef void free_shadow(shadow_t* shadow) noexcept:
    if shadow != NULL:
        free(shadow.tallies)
        free(shadow)


cdef void remember(service_t* live, const service_t* previous) noexcept:
    """Go on counting where the service's last form was, for the servers that stay."""
    cdef shadow_t* before = previous.shadow
    cdef uint32_t at
    cdef int32_t other
    lock(&before.lock)
    live.shadow.compared, live.shadow.differed = before.compared, before.differed
    memcpy(live.shadow.last, before.last, DIFFERENCES * sizeof(difference_t))
    for at in range(live.count):
        other = position(previous, live.servers[at].slot)
        if other >= 0:
            live.shadow.tallies[at] = before.tallies[other]
    unlock(&before.lock)


cdef void compare(service_t* live, const packet_t* packet, int32_t chosen, int32_t candidate) noexcept nogil:
    """Note whom each of the two gave a connection, -1 for nobody."""
    cdef shadow_t* shadow = live.shadow
    cdef difference_t* last
    lock(&shadow.lock)
    shadow.compared += 1
    if chosen >= 0:
        shadow.tallies[chosen].live += 1
    if candidate >= 0:
        shadow.tallies[candidate].candidate += 1
    if chosen != candidate:
        last = &shadow.last[shadow.differed % DIFFERENCES]
        shadow.differed += 1
        last.client = packet.source
        last.port = packet.sport
        last.live = live.servers[chosen].slot if chosen >= 0 else 0
        last.candidate = live.servers[candidate].slot if candidate >= 0 else 0
    unlock(&shadow.lock)
