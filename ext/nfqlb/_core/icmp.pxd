"""ICMP about connections: errors that others send, and answers of our own."""
from libc.stdint cimport uint32_t, uint64_t

from nfqlb._core.types cimport answer_t, connection_t, outbox_t, packet_t


cdef bint is_sound(const packet_t* error) noexcept nogil
cdef void nat_error(packet_t* error, packet_t* quoted, const connection_t* connection, bint reply) noexcept nogil
cdef void refuse(outbox_t* outbox, const packet_t* packet, answer_t answer, uint64_t now) noexcept nogil
cdef void tell_expired(outbox_t* outbox, const packet_t* packet, uint64_t now) noexcept nogil
cdef void tell_mtu(outbox_t* outbox, const packet_t* packet, uint64_t now) noexcept nogil
cdef void reissue(outbox_t* outbox, const packet_t* error, const packet_t* inside, uint32_t mtu,
                  uint64_t now) noexcept nogil
cdef uint32_t told_mtu(const packet_t* error) noexcept nogil
cdef bint is_unreachable(const packet_t* error) noexcept nogil
