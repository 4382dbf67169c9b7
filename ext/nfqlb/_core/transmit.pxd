"""What leaves this machine other than by a verdict."""
from nfqlb._core.types cimport outbox_t


cdef class Transmitter:
    cdef object sockets                  # keeps them open
    cdef int raw4
    cdef int raw6
    cdef readonly unsigned long lost     # messages that could not be sent


cdef void post(Transmitter transmitter, outbox_t* outbox) noexcept nogil
