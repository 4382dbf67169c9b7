"""Internet checksum: RFC 1071 (the sum) and RFC 1624 equation 3 (the update).

Sums are taken over 16-bit words as they lie in memory: the one's complement sum does not care for byte order (RFC
1071, 2B).
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from nfqlb._core.types cimport address_t


cdef inline uint16_t fold(uint64_t total) noexcept nogil:
    """The 16-bit one's complement of a sum's carries added in, not yet inverted."""
    total = <uint32_t>total + (total >> 32)
    total = <uint32_t>total + (total >> 32)
    total = <uint16_t>total + (total >> 16)
    total = <uint16_t>total + (total >> 16)
    return <uint16_t>total


cdef inline uint64_t add_bytes(uint64_t total, const uint8_t* data, uint32_t length) noexcept nogil:
    """Add `length` bytes, an odd last one padded with zero."""
    cdef uint32_t word
    cdef uint16_t half
    cdef uint32_t i
    cdef uint32_t words = length >> 2
    for i in range(words):
        memcpy(&word, data + 4 * i, 4)
        total += word
    data += 4 * words
    if length & 2:
        memcpy(&half, data, 2)
        total += half
        data += 2
    if length & 1:
        half = 0
        memcpy(&half, data, 1)
        total += half
    return total


cdef inline uint64_t add_address(uint64_t total, const address_t* address) noexcept nogil:
    """Add the 16 bytes; ::ffff: in front of an IPv4 address adds nothing, 0xffff being zero here."""
    total += <uint32_t>address.high + (address.high >> 32)
    return total + <uint32_t>address.low + (address.low >> 32)


cdef inline uint64_t remove_address(uint64_t total, const address_t* address) noexcept nogil:
    total += <uint32_t>~address.high + (~address.high >> 32)
    return total + <uint32_t>~address.low + (~address.low >> 32)


cdef inline uint16_t update(uint16_t check, uint64_t difference) noexcept nogil:
    """HC' = ~(~HC + ~m + m'), the last two summed up in `difference`; all as they lie in memory."""
    return ~fold(difference + <uint16_t>~check)
