"""Which real server gets a new connection."""
from libc.stdint cimport int32_t, uint32_t, uint64_t

from nfqlb._core.types cimport load_t, packet_t, service_t


cdef int32_t pick(service_t* service, const packet_t* packet, const load_t* loads, uint32_t now,
                  uint64_t* random) noexcept nogil
cdef int prepare(service_t* service) except -1
cdef void succeed(service_t* service, const service_t* previous) noexcept
