"""Bytes to a checked packet, and a checked packet to a line for people."""
from libc.stdint cimport uint8_t

from nfqlb._core.types cimport packet_t


cdef uint8_t parse(packet_t* packet) noexcept nogil
cdef uint8_t parse_quoted(const packet_t* error, packet_t* quoted) noexcept nogil
cdef uint8_t parse_inside(const packet_t* error, packet_t* inside) noexcept nogil
cdef void load(packet_t* packet, uint8_t* data, Py_ssize_t captured, int hook, int flags, unsigned int mark)
