"""p2c and ewma: of two real servers that are drawn by weight, never the same, the one that costs less.

Strategy: the cost is (connections under way + 1) / weight, for ewma times how long the server takes to reply. Of TCP
the active connections are under way, of UDP all. Two draws find a good server among any number in about O(1), and do
not send everybody to the best one (Mitzenmacher, IEEE TPDS 12(10), 2001). A server that is much slower than the others
loses against each of them; as it cannot be drawn twice, it gets next to nothing.

How long a server takes is measured at the first exchange of a connection, and nothing is looked at after it. NAT: from
the client's first ACK to the first data (or FIN) of the server; for UDP from the first datagram to the first answer. A
SYN-ACK that took longer than the estimate counts as well. Direct routing and tunnels, whose replies pass elsewhere:
from the client's first ACK to its first packet that acknowledges more, less the time of the handshake, in which the
same way was gone there and back. So a server that accepts at once and answers late is slow, wherever replies go.

An estimate rises by half of the difference, so that slowness is seen at once, falls by an eighth, and halves in each
three seconds without a reply (a peak EWMA, as Finagle's). What is faded counts at most for equal, so a server that was
slow is tried again as one among others. Without an estimate for either, connections alone decide.
"""
from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.stdlib cimport calloc

from nfqlb._core.atomic cimport RELAXED, load32, store32
from nfqlb._core.load cimport active_of, takes, total_of
from nfqlb._core.types cimport (
    EWMA,
    NAT,
    METHOD,
    NO_OUTPUT,
    TCP,
    UDP,
    connection_t,
    load_t,
    packet_t,
    server_t,
    service_t,
)
from nfqlb._core.wire cimport FIN, RST, SYN, TCP_ACKNOWLEDGEMENT, TCP_OFFSET, get32


cdef enum:
    HALF_LIFE = 30               # ticks
    SILENT = 64                  # packets of a client after which nobody waits for a reply any more


cdef int fill_sums(service_t* service) except -1:
    """The sums of the weights, and a guide to them: about two marks for a server, at equal distances of a power of two.
    """
    cdef uint64_t sum = 0
    cdef uint64_t marks, mark
    cdef uint32_t at
    service.sums = <uint64_t*>calloc(max(<uint32_t>1, service.count), sizeof(uint64_t))
    if service.sums == NULL:
        raise MemoryError
    for at in range(service.count):
        sum += service.servers[at].weight
        service.sums[at] = sum
    while sum >> service.guide_shift > 2 * <uint64_t>service.count:
        service.guide_shift += 1
    marks = (sum >> service.guide_shift) + 2
    service.guide = <uint32_t*>calloc(marks, sizeof(uint32_t))
    if service.guide == NULL:
        raise MemoryError
    at = 0
    for mark in range(marks):
        while at + 1 < service.count and service.sums[at] <= mark << service.guide_shift:
            at += 1
        service.guide[mark] = at
    return 0


cdef int32_t two_choices(service_t* service, const packet_t* packet, const load_t* loads, uint64_t* random,
                         uint32_t now) noexcept nogil:
    """The better of two, or of all that take connections where both of them do not; -1 where none does."""
    cdef uint64_t sum = service.sums[service.count - 1] if service.count else 0
    cdef uint64_t place
    cdef int32_t one, two, weight
    if sum == 0:
        return -1
    one = holder(service, draw(random) % sum)
    weight = service.servers[one].weight
    two = one
    if sum > <uint64_t>weight:
        place = draw(random) % (sum - weight)
        if place >= service.sums[one] - weight:
            place += weight
        two = holder(service, place)
    if not takes(&service.servers[one], loads):
        return two if takes(&service.servers[two], loads) else best(service, packet, loads, now)
    return better(service, packet, loads, one, two, now) if takes(&service.servers[two], loads) else one


cdef int32_t best(service_t* service, const packet_t* packet, const load_t* loads, uint32_t now) noexcept nogil:
    cdef int32_t found = -1
    cdef int32_t at
    for at in range(<int32_t>service.count):
        if takes(&service.servers[at], loads):
            found = at if found < 0 else better(service, packet, loads, found, at, now)
    return found


cdef inline int32_t holder(const service_t* service, uint64_t place) noexcept nogil:
    """The server that holds this place, each as many as its weight says."""
    cdef uint64_t mark = place >> service.guide_shift
    cdef int32_t low = <int32_t>service.guide[mark]
    cdef int32_t high = <int32_t>service.guide[mark + 1]
    cdef int32_t middle
    while low < high:
        middle = (low + high) // 2
        if place < service.sums[middle]:
            high = middle
        else:
            low = middle + 1
    return low


cdef inline int32_t better(const service_t* service, const packet_t* packet, const load_t* loads, int32_t one,
                           int32_t two, uint32_t now) noexcept nogil:
    cdef const server_t* first = &service.servers[one]
    cdef const server_t* second = &service.servers[two]
    cdef double mine = (under_way(packet, first, loads) + 1.0) / first.weight
    cdef double other = (under_way(packet, second, loads) + 1.0) / second.weight
    cdef uint32_t my_latency, other_latency
    if service.scheduler == EWMA:
        my_latency = latency_of(&loads[first.slot], now)
        other_latency = latency_of(&loads[second.slot], now)
        if my_latency and other_latency:
            if my_latency < other_latency and is_faded(&loads[first.slot], now):
                my_latency = other_latency
            elif other_latency < my_latency and is_faded(&loads[second.slot], now):
                other_latency = my_latency
            mine *= my_latency
            other *= other_latency
    return two if other < mine else one


cdef inline double under_way(const packet_t* packet, const server_t* server, const load_t* loads) noexcept nogil:
    """The packet says for which protocol: a service by mark has all of them."""
    return <double>(total_of(server, loads) if packet.protocol == UDP else active_of(server, loads))


# --- how long replies take --------------------------------------------------------------------------------------------

cdef inline bint is_faded(const load_t* load, uint32_t now) noexcept nogil:
    return now - load32(<unsigned int*>&load.measured, RELAXED) >= <uint32_t>HALF_LIFE


cdef uint32_t latency_of(const load_t* load, uint32_t now) noexcept nogil:
    """Microseconds, 0 where nothing is known."""
    cdef uint32_t latency = load32(<unsigned int*>&load.latency, RELAXED)
    cdef uint32_t halvings = (now - load32(<unsigned int*>&load.measured, RELAXED)) // <uint32_t>HALF_LIFE
    if latency == 0:
        return 0
    return max(<uint32_t>1, latency >> halvings if halvings < 32 else <uint32_t>0)


cdef void note_latency(load_t* load, uint32_t taken, uint32_t now) noexcept nogil:
    """Two workers may note at once: one of them is lost."""
    cdef uint32_t latency = latency_of(load, now)
    if latency == 0:
        latency = taken
    elif taken > latency:
        latency += (taken - latency) // 2
    else:
        latency -= (latency - taken) // 8
    store32(&load.latency, max(<uint32_t>1, latency), RELAXED)
    store32(&load.measured, now, RELAXED)


cdef void measure(load_t* load, connection_t* connection, const packet_t* packet, bint reply, uint32_t micro,
                  uint32_t now) noexcept nogil:
    """A packet of a connection whose `began` is set: that of its first packet, later that of its first ACK, to which
    the time of the handshake is added where replies do not pass. `nominated` is that ACK's number meanwhile.
    """
    cdef uint32_t taken = micro - connection.began
    cdef uint32_t number
    if packet.protocol != TCP:
        if reply:
            finish(load, connection, taken, now)
        return
    if packet.segment & RST:
        connection.began = connection.nominated = 0
        return
    if reply:
        if packet.segment & SYN:
            if connection.nominated == 0 and taken > latency_of(load, now):
                note_latency(load, taken, now)
        elif packet.segment & FIN or has_data(packet):
            finish(load, connection, taken, now)
        return
    if packet.segment & SYN:
        return
    number = get32(packet.data + packet.transport + TCP_ACKNOWLEDGEMENT) or 1
    if connection.nominated == 0:
        connection.nominated = number
        connection.began = (micro if connection.flags & METHOD == NAT else micro + taken) or 1
    elif connection.flags & NO_OUTPUT and number != connection.nominated:
        finish(load, connection, taken if <int32_t>taken > 0 else 1, now)
    elif connection.inpackets > <uint32_t>SILENT:
        connection.began = connection.nominated = 0


cdef inline bint has_data(const packet_t* packet) noexcept nogil:
    return packet.length > packet.transport + (packet.data[packet.transport + TCP_OFFSET] >> 4) * 4


cdef void finish(load_t* load, connection_t* connection, uint32_t taken, uint32_t now) noexcept nogil:
    note_latency(load, taken, now)
    connection.began = connection.nominated = 0
