"""Which connections peers are to hear of, and when: asked for each packet from a client while sync is on."""
from libc.stdint cimport uint8_t, uint32_t

from nfqlb._core.types cimport connection_t, table_t


cdef enum:
    RING = 8192                          # places of a worker's ring, a power of two


cdef struct rules_t:                     # one for all workers; its numbers may change under them
    uint32_t threshold                   # sync_threshold: "3 50" is 3 and
    uint32_t period
    uint32_t refresh                     # ticks; sync_refresh_period
    uint32_t retries
    uint32_t spares_children             # sync_persist_mode: connections of templates are not told


cdef struct ring_t:                      # one writer, one reader
    rules_t* rules
    uint32_t head                        # next to write, wraps
    uint32_t lost                        # found no place, wraps
    uint32_t reserved[12]
    uint32_t tail                        # next to read
    uint32_t reserved2[15]
    uint32_t entries[RING]               # indices of connections


cdef bint may_tell(const connection_t* connection, uint32_t word) noexcept nogil
cdef bint is_established(const connection_t* connection, uint8_t state) noexcept nogil
cdef void consider(ring_t* ring, table_t* table, connection_t* connection, uint32_t now) noexcept nogil
