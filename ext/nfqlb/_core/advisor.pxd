"""Schedulers in Python: whom the data path asks for the first packet of a connection, and for nothing else."""
from libc.stdint cimport int32_t, uint32_t, uint64_t

from nfqlb._core.connection cimport Table
from nfqlb._core.types cimport address_t, advisor_t, load_t, packet_t, service_t


cdef class Server:
    cdef Table table
    cdef uint32_t slot
    cdef address_t end
    cdef readonly int port
    cdef readonly int weight


cdef class Flow:
    cdef address_t source
    cdef address_t destination
    cdef readonly int client_port
    cdef readonly int virtual_port
    cdef readonly str protocol
    cdef readonly unsigned int mark


cdef class Advisor:
    cdef advisor_t advisor
    cdef readonly str name
    cdef public uint64_t budget          # nanoseconds
    cdef object function
    cdef tuple servers                   # those with a weight, in the order in which they were added
    cdef bint limited                    # some of them have a threshold
    cdef dict running                    # thread: nanosecond of CLOCK_MONOTONIC at which it began
    cdef set interrupted                 # threads
    cdef int row                         # failures since the last success
    cdef uint64_t chosen
    cdef uint64_t declined
    cdef uint64_t failed
    cdef uint64_t wrong
    cdef uint64_t late
    cdef uint64_t spent         # nanoseconds
    cdef uint64_t longest
    cdef str error

    cdef void bind(self, Table table, const service_t* service)
    cdef int32_t ask(self, service_t* service, const packet_t* packet, const load_t* loads, uint32_t now)
    cdef int32_t fail(self, str error, uint32_t now)


cdef int32_t advised(service_t* service, const packet_t* packet, const load_t* loads, uint32_t now) noexcept nogil
