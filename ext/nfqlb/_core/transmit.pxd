"""What leaves this machine other than by a verdict."""
from libc.stdint cimport uint32_t

from nfqlb._core.types cimport outbox_t, packet_t


cdef class Transmitter:
    cdef object sockets                  # keeps them open
    cdef int raw4
    cdef int raw6
    cdef int link
    cdef uint32_t identification         # of the last tunnel packet or datagram that was cut
    cdef readonly unsigned long lost     # packets that could not be sent


cdef void post(Transmitter transmitter, outbox_t* outbox) noexcept nogil
cdef void send_frames(Transmitter transmitter, packet_t* packets, int count) noexcept nogil
