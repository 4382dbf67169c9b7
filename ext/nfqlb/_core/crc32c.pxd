"""The checksum of SCTP: CRC32c (RFC 9260, appendix A), whole, or brought along with a change."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t


cdef uint32_t crc32c(const uint8_t* data, uint32_t length, uint32_t crc) noexcept nogil
cdef uint32_t shifted(uint32_t change, uint16_t length) noexcept nogil
