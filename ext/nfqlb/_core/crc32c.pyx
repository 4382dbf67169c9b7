"""CRC32c, by tables that are made when the module is loaded.

Strategy. A CRC is linear: bits that change at the front of a packet change it by their own remainder, moved on by what
follows them. So a packet of any length costs two products of polynomials of 32 bits, a damaged packet stays a damaged
one, and only what nobody has summed up yet is gone through byte by byte. Bit 31 of a number here is the coefficient of
x^0, as in every reflected CRC; no instruction of any one processor is asked for.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t


cdef enum:
    POLYNOMIAL = 0x82f63b78              # 0x1edc6f41, reflected
    ONE = 0x80000000

cdef uint32_t[256] of_byte               # remainders of one byte
cdef uint32_t[256] low                   # x^(8 n) mod P
cdef uint32_t[256] high                  # x^(8 * 256 n) mod P


cdef inline uint32_t product(uint32_t one, uint32_t other) noexcept nogil:
    """one * other mod P."""
    cdef uint32_t total = 0
    for _ in range(32):
        total ^= other & (0 - (one >> 31))
        one <<= 1
        other = other >> 1 ^ (<uint32_t>POLYNOMIAL & (0 - (other & 1)))
    return total


cdef uint32_t crc32c(const uint8_t* data, uint32_t length, uint32_t crc) noexcept nogil:
    """The register behind `length` bytes; it begins with all ones, and its complement is the checksum."""
    cdef uint32_t i
    for i in range(length):
        crc = crc >> 8 ^ of_byte[(crc ^ data[i]) & 0xff]
    return crc


cdef uint32_t shifted(uint32_t change, uint16_t length) noexcept nogil:
    """By what a checksum over `length` bytes changes when the first four change by `change`, both little endian."""
    return product(change, product(low[length & 0xff], high[length >> 8]))


cdef void prepare() noexcept:
    cdef uint32_t i, value
    for i in range(256):
        value = i
        for _ in range(8):
            value = value >> 1 ^ (<uint32_t>POLYNOMIAL & (0 - (value & 1)))
        of_byte[i] = value
    low[0] = high[0] = ONE
    low[1] = <uint32_t>ONE >> 8
    for i in range(2, 256):
        low[i] = product(low[i - 1], low[1])
    high[1] = product(low[255], low[1])
    for i in range(2, 256):
        high[i] = product(high[i - 1], high[1])


prepare()
