"""Which real server gets a new connection."""
from libc.stdint cimport int32_t

from nfqlb._core.types cimport load_t, service_t


cdef int32_t pick(service_t* service, const load_t* loads) noexcept nogil
cdef void prepare(service_t* service) noexcept
cdef void succeed(service_t* service, const service_t* previous) noexcept
