"""The schedulers that take the better of two real servers, by connections or by how long replies take: p2c and ewma."""
from libc.stdint cimport int32_t, uint32_t, uint64_t

from nfqlb._core.types cimport connection_t, load_t, packet_t, service_t


cdef int fill_sums(service_t* service) except -1
cdef int32_t two_choices(service_t* service, const packet_t* packet, const load_t* loads, uint64_t* random,
                         uint32_t now) noexcept nogil
cdef uint32_t latency_of(const load_t* load, uint32_t now) noexcept nogil
cdef void measure(load_t* load, connection_t* connection, const packet_t* packet, bint reply, uint32_t micro,
                  uint32_t now) noexcept nogil


cdef inline uint64_t draw(uint64_t* random) noexcept nogil:
    """64 bits of splitmix64 (Steele, Lea, Flood, OOPSLA 2014): no secret, and each worker has its own."""
    cdef uint64_t value
    random[0] += 0x9E3779B97F4A7C15ULL
    value = random[0]
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9ULL
    value = (value ^ value >> 27) * 0x94D049BB133111EBULL
    return value ^ value >> 31
