"""Established flows that the kernel forwards by itself: the maps of offload.bpf.c, which no other file knows."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from nfqlb._core.atomic cimport ACQUIRE, RELAXED, load32, load64, lock_t
from nfqlb._core.types cimport connection_t, hop_t


cdef extern from "offload.h" nogil:
    enum:
        OFFLOAD_NAT
        OFFLOAD_DIRECT
        OFFLOAD_TUNNEL
        OFFLOAD_REPLY
        OFFLOAD_FIN
        OFFLOAD_RST
        OFFLOAD_ENDS
        OFFLOAD_FIRST
        OFFLOAD_WORDS
    struct offload_key:
        uint32_t source[4]
        uint32_t destination[4]
        uint16_t sport
        uint16_t dport
        uint32_t protocol
    struct offload_flow:
        uint32_t place
        uint8_t way
        uint8_t reply
        uint16_t port
        uint32_t address[4]
        uint32_t address_change
        uint32_t port_change
    struct offload_direction:
        uint64_t packets
        uint64_t bytes
        uint16_t link[6]
        uint32_t interface
        uint32_t mtu
        uint16_t most
        uint32_t own[4]
        uint32_t ended
    struct offload_place:
        offload_direction direction[2]
    struct offload_control:
        uint32_t generation
        uint32_t paired[OFFLOAD_WORDS]
        uint32_t ethernet[OFFLOAD_WORDS]


cdef struct passed_t:
    uint64_t packets
    uint64_t bytes


cdef struct owner_t:                 # what we know of a place
    uint32_t connection              # index of the entry, 0: none
    uint32_t slot
    uint8_t method                   # method_t
    uint8_t marked                   # DIRECT, by a mark
    uint32_t followed                # of `ended`, what the connection was told
    uint32_t next                    # in the list of free or of released ones
    uint32_t released                # tick
    uint32_t turn                    # of the real server's hop
    uint32_t since                   # tick at which the kernel got its flow
    uint64_t noticed                 # packets of both ways when the follower last looked
    uint64_t requests                # those from the client
    passed_t counted[2]              # what the counters have of it


cdef struct offload_t:
    int flows                        # file descriptor
    uint32_t capacity                # places are [1 .. capacity]
    offload_place* places            # the kernel's own memory
    owner_t* owners
    offload_control* control
    lock_t lock                      # of the lists and numbers below
    uint32_t free
    uint32_t untouched               # places from here on were never used
    uint32_t released_first          # taken out, but a packet may be under way there still
    uint32_t released_last
    uint32_t used
    uint64_t installed               # flows since the start
    uint64_t refused                 # for which there was no room
    lock_t counting                  # of `counted` and the counters that it goes to
    uint64_t packets                 # counted since the start


cdef class Offload:
    cdef offload_t offload
    cdef int ring
    cdef size_t place_bytes
    cdef size_t control_bytes
    cdef size_t ring_bytes           # of the data
    cdef uint64_t* consumed          # position in the ring; ours
    cdef uint64_t* produced          # the kernel's
    cdef uint8_t* data


cdef bint install(offload_t* offload, connection_t* connection, uint32_t index, const hop_t* hop, uint32_t mtu,
                  bint marked, uint32_t turn, uint32_t now) noexcept nogil
cdef void take_out(offload_t* offload, connection_t* connection) noexcept nogil
cdef void reap(offload_t* offload, uint32_t place) noexcept nogil
cdef uint32_t first_released(offload_t* offload, uint32_t now) noexcept nogil
cdef uint32_t next_event(Offload offload) noexcept nogil


cdef inline uint64_t packets_of(const offload_t* offload, uint32_t place) noexcept nogil:
    """Packets of both ways that the kernel has forwarded for a place."""
    return load64(&offload.places[place].direction[0].packets, RELAXED) \
        + load64(&offload.places[place].direction[1].packets, RELAXED)


cdef inline bint is_opened(const offload_t* offload, uint32_t place) noexcept nogil:
    """Whether the kernel has forwarded a packet of the client's for a place."""
    return load64(&offload.places[place].direction[0].packets, RELAXED) != 0


cdef inline bint is_answered(const offload_t* offload, uint32_t place) noexcept nogil:
    """Whether the kernel has forwarded a packet of the real server's for a place."""
    return load64(&offload.places[place].direction[1].packets, RELAXED) != 0


cdef inline uint32_t ends_of(const offload_t* offload, uint32_t place) noexcept nogil:
    """What the ends of a place's flow have sent (enum offload_ending)."""
    return load32(&offload.places[place].direction[0].ended, ACQUIRE)


cdef inline bint is_busy(const offload_t* offload, uint32_t place) noexcept nogil:
    """Whether packets passed since the follower looked."""
    return packets_of(offload, place) != offload.owners[place].noticed
