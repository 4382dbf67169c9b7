"""lblc and lblcr: connections to one destination go to the real servers that had its connections before."""
from libc.stdint cimport int32_t, uint32_t

from nfqlb._core.types cimport load_t, locality_t, packet_t, service_t


cdef void clear(locality_t* locality) noexcept nogil
cdef int32_t locality_based(service_t* service, const packet_t* packet, const load_t* loads, uint32_t now,
                            bint replicated) noexcept nogil
cdef uint32_t collect(locality_t* locality, uint32_t now, bint all_unused) noexcept nogil
