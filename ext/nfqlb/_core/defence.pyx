"""What a table does when it runs out of places: drop_entry, drop_packet and secure_tcp, as the kernel has them.

Strategy. Once a second `weigh` compares the places that are left with the least that there should be, and says which
defences are up; packets read what it said, and do nothing else for it. A mode is 0 for never, 1 and 2 for as long as
places are few (the kernel writes there which of the two it is), 3 for always. `drops_packet` is asked for first packets
alone; `evict` ends connections that never came about, and by chance a few that are idle, of a part of the table which
its caller takes at random; secure_tcp chooses the table of states (tracking.pyx). What is established and used stays.
(net/netfilter/ipvs/ip_vs_ctl.c, update_defense_level; ip_vs_conn.c, ip_vs_random_dropentry and todrop_entry)
"""
from libc.stdint cimport int32_t, uint32_t

from nfqlb._core.atomic cimport ACQUIRE, RELAXED, add32, load32, replace32, store32
from nfqlb._core.connection cimport hold, let_go, remove
from nfqlb._core.offload cimport is_opened, offload_t
from nfqlb._core.tracking cimport ASSOCIATED, ESTABLISHED, INIT, INIT1, SYN_RECV, SYNACK, patience
from nfqlb._core.types cimport (
    ASSURED,
    LEFT,
    LIFE,
    LIVE,
    SCTP,
    STATE_MASK,
    STATE_SHIFT,
    TCP,
    TEMPLATE,
    TRIED,
    connection_t,
    defence_t,
    snapshot_t,
    table_t,
)

cdef enum:
    ALWAYS = 3
    SHARE = 16                           # of the table, that there should be free
    IDLE = 600                           # ticks for which nothing came


cdef void weigh(table_t* table, const snapshot_t* snapshot) noexcept nogil:
    """Say which defences are up."""
    cdef defence_t* defence = &table.defence
    cdef uint32_t places = min(table.capacity, snapshot.limit) if snapshot.limit else table.capacity
    cdef uint32_t used = min(places, load32(&table.used, RELAXED))
    cdef uint32_t least = snapshot.least or max(<uint32_t>1, places // SHARE)
    cdef bint few = places - used < least
    cdef uint32_t rate = 0
    store32(&defence.drops_entries, is_up(snapshot.drop_entry, few), RELAXED)
    store32(&table.secure, is_up(snapshot.secure_tcp, few), RELAXED)
    if snapshot.drop_packet == ALWAYS:
        rate = snapshot.drop_rate
    elif is_up(snapshot.drop_packet, few):
        rate = least // (least - (places - used))
        store32(&defence.left, rate, RELAXED)
    store32(&defence.drop_rate, rate, RELAXED)


cdef inline bint is_up(int mode, bint few) noexcept nogil:
    return mode == ALWAYS or (mode != 0 and few)


cdef bint drops_packet(defence_t* defence) noexcept nogil:
    """Whether a first packet is the one of `drop_rate` that is dropped (ip_vs_todrop)."""
    cdef uint32_t rate = load32(&defence.drop_rate, RELAXED)
    cdef uint32_t left = load32(&defence.left, RELAXED)
    while rate != 0:
        if replace32(&defence.left, &left, rate if left <= 1 else left - 1, False, RELAXED, RELAXED):
            return left <= 1
    return False


cdef int evict(table_t* table, const snapshot_t* snapshot, uint32_t first, uint32_t last, uint32_t now) noexcept nogil:
    """End what is worth least among the places from `first` up to `last`; how many went. The caller is in a batch."""
    cdef connection_t* entry
    cdef connection_t* template
    cdef uint32_t index, control
    cdef int gone = 0
    for index in range(first, last):
        entry = &table.entries[index]
        if not is_expendable(table, snapshot, entry, now):
            continue
        if entry.flags & TEMPLATE:
            gone += end_template(table, entry)
            continue
        control = entry.control
        gone += remove(table, entry)
        template = &table.entries[control]
        if control != 0 and is_barren(template):
            gone += end_template(table, template)
    add32(&table.defence.evicted, gone, RELAXED)
    return gone


cdef bint is_expendable(table_t* table, const snapshot_t* snapshot, connection_t* entry, uint32_t now) noexcept nogil:
    """Whether a connection may end before its time. What the kernel forwards by itself may not: it is established, but
    for one of NAT whose client has not taken up the real server's SYN-ACK.
    """
    cdef uint32_t word = load32(&entry.word, ACQUIRE)
    cdef uint32_t state = (word & STATE_MASK) >> STATE_SHIFT
    cdef uint32_t place = load32(&entry.place, ACQUIRE)
    if word & LIFE != LIVE or entry.flags & LEFT:
        return False
    if place != 0 and (entry.protocol != TCP or state != SYN_RECV or is_opened(<offload_t*>table.offload, place)):
        return False
    if entry.flags & TEMPLATE:
        return is_barren(entry)
    if entry.protocol == TCP and state != ESTABLISHED:
        return state == SYN_RECV or state == SYNACK
    if entry.protocol == SCTP and state != ASSOCIATED:
        return state == INIT1 or state == INIT
    return is_unlucky(table, snapshot, entry, now)


cdef inline bint is_barren(const connection_t* template) noexcept nogil:
    """Whether no connection of a template was ever answered, and it has none."""
    return not template.word & ASSURED << STATE_SHIFT and template.children == 0


cdef bint is_unlucky(table_t* table, const snapshot_t* snapshot, const connection_t* entry,
                     uint32_t now) noexcept nogil:
    """Of the connections that are idle and had n packets from the client, 1 to 8, each n-th (todrop_entry)."""
    cdef int32_t left = <int32_t>(entry.expires - now)
    cdef uint32_t packets = entry.inpackets
    if packets == 0 or packets >= TRIED or left + IDLE > <int32_t>patience(snapshot, entry):
        return False
    if table.defence.tries[packets] > 1:
        table.defence.tries[packets] -= 1
        return False
    table.defence.tries[packets] = packets
    return True


cdef bint end_template(table_t* table, connection_t* template) noexcept nogil:
    """End a template, unless it has a connection now."""
    cdef bint idle
    hold(table, template.hash, template.hash)
    idle = template.word & LIFE == LIVE and template.flags & TEMPLATE and is_barren(template)
    if idle:
        template.flags |= LEFT                               # from now on no connection begins by it
    let_go(table, template.hash, template.hash)
    return idle and remove(table, template)
