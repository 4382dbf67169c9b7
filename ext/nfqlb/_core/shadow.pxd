"""A candidate beside the scheduler of a service: where the two differ."""
from libc.stdint cimport int32_t

from nfqlb._core.types cimport packet_t, service_t, shadow_t


cdef shadow_t* new_shadow(service_t* live, service_t* candidate) except NULL
cdef void remember(service_t* live, const service_t* previous) noexcept
cdef void free_shadow(shadow_t* shadow) noexcept
cdef void compare(service_t* live, const packet_t* packet, int32_t chosen, int32_t candidate) noexcept nogil
