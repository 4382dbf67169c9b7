"""Established flows that the kernel forwards by itself.

Strategy. The connection table stays the truth. A connection that is offloaded has a place: a number that stands in its
entry, and at which the kernel counts its packets in memory that is mapped here, so that reading needs no system call;
the next hops lie there, too. The map of flows holds its directions, each under what its packets look like. Two system
calls put a flow in, two take it out; whoever swaps the number out of the entry does so. A place that was given up rests
for a second before its last counts are taken and it is used again: a packet on another CPU may have found it just
before.

Formats: include/uapi/linux/bpf.h; offload.h. The ring is that of Documentation/bpf/ringbuf.rst.
"""
from libc.errno cimport errno
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap
from posix.time cimport CLOCK_BOOTTIME, clock_gettime, timespec

import os

from nfqlb._core.atomic cimport (
    ACQUIRE,
    RELEASE,
    SEQUENTIAL,
    load32,
    load64,
    lock,
    store32,
    store64,
    swap32,
    unlock,
)
from nfqlb._core.checksum cimport add_address, fold, remove_address
from nfqlb._core.types cimport DIRECT, METHOD, NAT, TICK, address_t, connection_t, hop_t
from nfqlb._core.wire cimport htons


cdef extern from "<sys/syscall.h>" nogil:
    long SYS_bpf

cdef extern from "<unistd.h>" nogil:
    long syscall(long, ...)

cdef extern from "<linux/bpf.h>" nogil:
    enum:
        BPF_MAP_UPDATE_ELEM
        BPF_MAP_DELETE_ELEM
        BPF_NOEXIST
        BPF_RINGBUF_BUSY_BIT
        BPF_RINGBUF_DISCARD_BIT
        BPF_RINGBUF_HDR_SZ
    union bpf_attr:
        uint32_t map_fd
        uint64_t key
        uint64_t value
        uint64_t flags

cdef enum:
    REST = 10                        # ticks between the end of a place and its next use

cdef size_t PAGE = os.sysconf("SC_PAGE_SIZE")


# -- flows ------------------------------------------------------------------------------------------------------------

cdef bint tell(const offload_t* offload, int command, const offload_key* key,
               const offload_flow* flow) noexcept nogil:
    """One change of the map of flows; False where the kernel refused."""
    cdef bpf_attr attributes
    memset(&attributes, 0, sizeof(bpf_attr))
    attributes.map_fd = offload.flows
    attributes.key = <uintptr_t>key
    if command == BPF_MAP_UPDATE_ELEM:
        attributes.value = <uintptr_t>flow
        attributes.flags = BPF_NOEXIST
    return syscall(SYS_bpf, command, &attributes, sizeof(bpf_attr)) == 0


cdef void request_key(const connection_t* connection, offload_key* key) noexcept nogil:
    """What the client's packets look like."""
    memcpy(key.source, &connection.client, 16)
    memcpy(key.destination, &connection.virtual, 16)
    key.sport = htons(connection.cport)
    key.dport = htons(connection.vport)
    key.protocol = connection.protocol


cdef void reply_key(const connection_t* connection, offload_key* key) noexcept nogil:
    """What the real server's packets look like."""
    memcpy(key.source, &connection.server, 16)
    memcpy(key.destination, &connection.client, 16)
    key.sport = htons(connection.sport)
    key.dport = htons(connection.cport)
    key.protocol = connection.protocol


cdef void translate(offload_flow* flow, const address_t* before, uint16_t port_before, const address_t* after,
                    uint16_t port_after) noexcept nogil:
    """NAT: what stands in the place of an address and a port, and what that adds to a checksum."""
    memcpy(flow.address, after, 16)
    flow.port = htons(port_after)
    flow.address_change = fold(add_address(remove_address(0, before), after))
    flow.port_change = 0
    if port_before != port_after:
        flow.port_change = fold(<uint64_t><uint16_t>~htons(port_before) + htons(port_after))


cdef bint put_flow(const offload_t* offload, const connection_t* connection, uint32_t place, const hop_t* hop,
                   uint32_t mtu) noexcept nogil:
    """Both directions of NAT, or the one that passes here. The place is told first, where nobody sees it yet."""
    cdef offload_direction* requests = &offload.places[place].direction[0]
    cdef offload_key key
    cdef offload_flow flow
    memset(&flow, 0, sizeof(offload_flow))
    flow.place = place
    request_key(connection, &key)
    if connection.flags & METHOD == NAT:                     # first the key that another may have: nothing is counted
        requests.most = <uint16_t>min(mtu, <uint32_t>0xffff)
        flow.way = OFFLOAD_REPLY
        flow.reply = 1
        translate(&flow, &connection.server, connection.sport, &connection.virtual, connection.vport)
        reply_key(connection, &key)
        if not tell(offload, BPF_MAP_UPDATE_ELEM, &key, &flow):
            return False
        flow.way = OFFLOAD_NAT
        flow.reply = 0
        translate(&flow, &connection.virtual, connection.vport, &connection.server, connection.sport)
        request_key(connection, &key)
        if tell(offload, BPF_MAP_UPDATE_ELEM, &key, &flow):
            return True
        reply_key(connection, &key)
        tell(offload, BPF_MAP_DELETE_ELEM, &key, NULL)
        return False
    flow.way = OFFLOAD_DIRECT if connection.flags & METHOD == DIRECT else OFFLOAD_TUNNEL
    memcpy(flow.address, &connection.server, 16)
    requests.interface = hop.interface
    requests.mtu = mtu
    memcpy(requests.link, hop.destination, 6)
    memcpy(&requests.link[3], hop.source, 6)
    memcpy(requests.own, &hop.own, 16)
    return tell(offload, BPF_MAP_UPDATE_ELEM, &key, &flow)


cdef uint32_t take_place(offload_t* offload) noexcept nogil:
    """A place without a flow, 0 where there is none."""
    cdef uint32_t place = 0
    lock(&offload.lock)
    if offload.free:
        place = offload.free
        offload.free = offload.owners[place].next
    elif offload.untouched <= offload.capacity:
        place = offload.untouched
        store32(&offload.untouched, place + 1, RELEASE)
    if place:
        offload.used += 1
        offload.installed += 1
    else:
        offload.refused += 1
    unlock(&offload.lock)
    return place


cdef bint install(offload_t* offload, connection_t* connection, uint32_t index, const hop_t* hop, uint32_t mtu,
                  bint marked, uint32_t turn, uint32_t now) noexcept nogil:
    """Have the kernel forward what comes of this connection from now on; False where it has no room.

    `mtu`: bytes of the longest packet, without an outer header; for NAT 0 where only the link has one. `hop` is for
    direct routing and tunnels; `turn` counts the server's hops; `now` in ticks. The caller looks afterwards whether
    the connection lives on, and else takes it out.
    """
    cdef uint32_t place = take_place(offload)
    cdef owner_t* owner
    if place == 0:
        return False
    owner = &offload.owners[place]
    owner.slot = connection.slot
    owner.method = connection.flags & METHOD
    owner.marked = marked
    owner.turn = turn
    owner.since = now
    store32(&owner.connection, index, RELEASE)
    if not put_flow(offload, connection, place, hop, mtu):
        give_up(offload, place, True)
        return False
    connection.nominated = 0
    store32(&connection.place, place, SEQUENTIAL)
    return True


cdef void give_up(offload_t* offload, uint32_t place, bint refused) noexcept nogil:
    """Let a place rest: its flow, or the half of it that was in before the kernel `refused`, is out again. From
    now on, by the clock: the wheel is late in a mass of endings, and the packet that may be under way is not.
    """
    cdef owner_t* owner = &offload.owners[place]
    cdef timespec now
    clock_gettime(CLOCK_BOOTTIME, &now)
    store32(&owner.connection, 0, RELEASE)
    lock(&offload.lock)
    owner.released = <uint32_t>((<uint64_t>now.tv_sec * 1_000_000_000 + now.tv_nsec) // TICK)
    owner.next = 0
    if offload.released_last:
        offload.owners[offload.released_last].next = place
    else:
        offload.released_first = place
    offload.released_last = place
    offload.used -= 1
    offload.installed -= refused
    offload.refused += refused
    unlock(&offload.lock)


cdef void take_out(offload_t* offload, connection_t* connection) noexcept nogil:
    """Have packets of this connection come up again, if they don't."""
    cdef uint32_t place = swap32(&connection.place, 0, SEQUENTIAL)
    cdef offload_key key
    if place == 0:
        return
    connection.nominated = 0                                 # the next time is one of its own
    request_key(connection, &key)
    tell(offload, BPF_MAP_DELETE_ELEM, &key, NULL)
    if connection.flags & METHOD == NAT:
        reply_key(connection, &key)
        tell(offload, BPF_MAP_DELETE_ELEM, &key, NULL)
    give_up(offload, place, False)


cdef uint32_t first_released(offload_t* offload, uint32_t now) noexcept nogil:
    """A place that has rested, out of the list; 0: none. Its counts are final: take them, then `reap` it."""
    cdef uint32_t place
    lock(&offload.lock)
    place = offload.released_first
    if place and <int32_t>(now - offload.owners[place].released) >= REST:
        offload.released_first = offload.owners[place].next
        if offload.released_first == 0:
            offload.released_last = 0
    else:
        place = 0
    unlock(&offload.lock)
    return place


cdef void reap(offload_t* offload, uint32_t place) noexcept nogil:
    """Make a place free again."""
    memset(&offload.places[place], 0, sizeof(offload_place))
    memset(&offload.owners[place], 0, sizeof(owner_t))
    lock(&offload.lock)
    offload.owners[place].next = offload.free
    offload.free = place
    unlock(&offload.lock)


# -- the ring ---------------------------------------------------------------------------------------------------------

cdef uint32_t next_event(Offload offload) noexcept nogil:
    """The next place in which an end of a flow sent FIN or RST, 0: there is none."""
    cdef uint64_t at = offload.consumed[0]
    cdef uint32_t header
    cdef uint32_t place = 0
    while place == 0 and at < load64(offload.produced, ACQUIRE):
        header = load32(<uint32_t*>(offload.data + (at & (offload.ring_bytes - 1))), ACQUIRE)
        if header & BPF_RINGBUF_BUSY_BIT:
            break
        if not header & BPF_RINGBUF_DISCARD_BIT:
            memcpy(&place, offload.data + (at & (offload.ring_bytes - 1)) + BPF_RINGBUF_HDR_SZ, 4)
            if place > offload.offload.capacity:
                place = 0
        header &= ~<uint32_t>BPF_RINGBUF_DISCARD_BIT
        at += (BPF_RINGBUF_HDR_SZ + header + 7) & ~<uint64_t>7
        store64(offload.consumed, at, RELEASE)
    return place


# -- as Python sees it ------------------------------------------------------------------------------------------------

cdef void* map_memory(int fd, size_t size, int access, size_t offset) except NULL:
    cdef void* memory = mmap(NULL, size, access, MAP_SHARED, fd, offset)
    if memory == MAP_FAILED:
        raise OSError(errno, f"cannot map a BPF map: {os.strerror(errno)}")
    return memory


cdef inline size_t pages(size_t size) noexcept:
    """Bytes of memory that is mapped for so many."""
    return (size + PAGE - 1) // PAGE * PAGE


cdef int mark(uint32_t* words, interfaces) except -1:
    """Set the bits of these interfaces, and no others."""
    cdef uint32_t bits[OFFLOAD_WORDS]
    cdef uint32_t index
    memset(bits, 0, sizeof(bits))
    for index in interfaces:
        if index < 32 * OFFLOAD_WORDS:
            bits[index // 32] |= <uint32_t>1 << (index % 32)
    memcpy(words, bits, sizeof(bits))
    return 0


cdef class Offload:
    """The maps of one director's program, by file descriptor: flows, places and control, and the ring of events with so
    many bytes. `capacity`: flows, one less than the places. The descriptors stay the caller's. Raises OSError.
    """

    KEY = sizeof(offload_key)
    FLOW = sizeof(offload_flow)
    PLACE = sizeof(offload_place)
    CONTROL = sizeof(offload_control)

    def __cinit__(self, int flows, int places, int control, int ring, uint32_t ring_bytes, uint32_t capacity):
        self.offload.flows = flows
        self.offload.capacity = capacity
        self.offload.untouched = 1
        self.ring = ring
        self.ring_bytes = ring_bytes
        self.place_bytes = pages((<size_t>capacity + 1) * sizeof(offload_place))
        self.control_bytes = pages(sizeof(offload_control))
        self.offload.owners = <owner_t*>calloc(capacity + 1, sizeof(owner_t))
        if self.offload.owners == NULL:
            raise MemoryError
        self.offload.places = <offload_place*>map_memory(places, self.place_bytes, PROT_READ | PROT_WRITE, 0)
        self.offload.control = <offload_control*>map_memory(control, self.control_bytes, PROT_READ | PROT_WRITE, 0)
        self.consumed = <uint64_t*>map_memory(ring, PAGE, PROT_READ | PROT_WRITE, 0)
        self.produced = <uint64_t*>map_memory(ring, PAGE + 2 * self.ring_bytes, PROT_READ, PAGE)
        self.data = <uint8_t*>self.produced + PAGE
        self.offload.control.generation = 1

    def __dealloc__(self):
        if self.offload.places != NULL:
            munmap(self.offload.places, self.place_bytes)
        if self.offload.control != NULL:
            munmap(self.offload.control, self.control_bytes)
        if self.consumed != NULL:
            munmap(self.consumed, PAGE)
        if self.produced != NULL:
            munmap(self.produced, PAGE + 2 * self.ring_bytes)
        free(self.offload.owners)

    def look_again(self) -> None:
        """Routes or neighbours may have changed: every flow of NAT asks for its next hop once more."""
        self.offload.control.generation += 1

    def know(self, ethernet, paired) -> None:
        """These interfaces are Ethernet, and no others; packets that leave by the `paired` ones may begin at the other
        end. Heard at the next `look_again`.
        """
        mark(self.offload.control.ethernet, ethernet)
        mark(self.offload.control.paired, paired)

    def statistics(self) -> dict[str, int]:
        """Flows now, at most, since the start, and those for which there was no room; packets, as far as counted."""
        return {
            "flows": self.offload.used,
            "capacity": self.offload.capacity,
            "installed": self.offload.installed,
            "refused": self.offload.refused,
            "packets": self.offload.packets,
        }
