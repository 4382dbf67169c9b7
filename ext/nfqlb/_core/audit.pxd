"""What must hold, whatever came: NULL, or a sentence about what does not."""
from libc.stdint cimport uint8_t

from nfqlb._core.types cimport message_t, packet_t, table_t


cdef const char* audit_packet(const packet_t* packet, uint8_t* original) noexcept nogil
cdef const char* audit_message(message_t* message) noexcept nogil
cdef const char* audit_table(table_t* table) noexcept nogil
