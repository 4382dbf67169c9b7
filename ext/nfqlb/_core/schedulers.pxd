"""Which real server gets a new connection."""
from libc.stdint cimport int32_t, uint32_t, uint64_t

from nfqlb._core.types cimport load_t, packet_t, service_t


cdef inline uint64_t draw(uint64_t* random) noexcept nogil:
    """64 bits of splitmix64 (Steele, Lea, Flood, OOPSLA 2014): no secret, and each worker has its own."""
    cdef uint64_t value
    random[0] += 0x9E3779B97F4A7C15ULL
    value = random[0]
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9ULL
    value = (value ^ value >> 27) * 0x94D049BB133111EBULL
    return value ^ value >> 31


cdef int32_t pick(service_t* service, const packet_t* packet, const load_t* loads, uint32_t now,
                  uint64_t* random) noexcept nogil
cdef int prepare(service_t* service) except -1
cdef void succeed(service_t* service, const service_t* previous) noexcept
