"""A whole configuration as the data path reads it: immutable, but for the schedulers' own state."""
from nfqlb._core.advisor cimport Advisor
from nfqlb._core.types cimport hop_t, locality_t, packet_t, service_t, snapshot_t


cdef class Hop:
    cdef hop_t hop


cdef class Locality:
    cdef locality_t* locality


cdef class Service:
    cdef service_t* service
    cdef Locality locality               # of lblc and lblcr, else None
    cdef readonly Advisor advisor        # a scheduler in Python, or None
    cdef readonly Service shadow         # the candidate beside the scheduler, or None


cdef class Snapshot:
    cdef snapshot_t* snapshot
    cdef readonly tuple services         # keeps the compiled services alive
    cdef frozenset ranked                # those that are told of loads
    cdef frozenset advised               # those that ask Python


cdef service_t* classify(const snapshot_t* snapshot, const packet_t* packet, bint marked) noexcept nogil
