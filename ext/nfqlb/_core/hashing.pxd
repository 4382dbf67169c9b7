"""The schedulers that choose by a hash of an address: dh by the destination, sh, mh and hrw by the client."""
from libc.stdint cimport int32_t

from nfqlb._core.types cimport load_t, packet_t, service_t


cdef int fill_destination_hash(service_t* service) except -1
cdef int fill_source_hash(service_t* service) except -1
cdef int fill_maglev(service_t* service) except -1
cdef int fill_names(service_t* service) except -1
cdef int32_t destination_hash(service_t* service, const packet_t* packet, const load_t* loads) noexcept nogil
cdef int32_t source_hash(service_t* service, const packet_t* packet, const load_t* loads) noexcept nogil
cdef int32_t maglev(service_t* service, const packet_t* packet, const load_t* loads) noexcept nogil
cdef int32_t rendezvous(service_t* service, const packet_t* packet, const load_t* loads) noexcept nogil
