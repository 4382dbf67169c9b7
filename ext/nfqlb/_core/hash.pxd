"""Keyed hash of a flow: SipHash-1-3 (Aumasson and Bernstein, 2012) over three 64-bit words.

The key is random for each table, so that nobody outside can choose flows that share a bucket.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from nfqlb._core.types cimport address_t


cdef inline uint64_t rotate(uint64_t value, int bits) noexcept nogil:
    return (value << bits) | (value >> (64 - bits))


cdef struct sip_t:
    uint64_t a
    uint64_t b
    uint64_t c
    uint64_t d


cdef inline void round_(sip_t* v) noexcept nogil:
    v.a += v.b
    v.b = rotate(v.b, 13) ^ v.a
    v.a = rotate(v.a, 32)
    v.c += v.d
    v.d = rotate(v.d, 16) ^ v.c
    v.a += v.d
    v.d = rotate(v.d, 21) ^ v.a
    v.c += v.b
    v.b = rotate(v.b, 17) ^ v.c
    v.c = rotate(v.c, 32)


cdef inline void begin(sip_t* v, uint64_t low, uint64_t high) noexcept nogil:
    v.a = low ^ 0x736f6d6570736575ULL
    v.b = high ^ 0x646f72616e646f6dULL
    v.c = low ^ 0x6c7967656e657261ULL
    v.d = high ^ 0x7465646279746573ULL


cdef inline void absorb(sip_t* v, uint64_t word) noexcept nogil:
    v.d ^= word
    round_(v)
    v.a ^= word


cdef inline uint64_t finish(sip_t* v) noexcept nogil:
    v.c ^= 0xff
    round_(v)
    round_(v)
    round_(v)
    return v.a ^ v.b ^ v.c ^ v.d


cdef inline uint32_t hash_word(uint64_t key, uint32_t word) noexcept nogil:
    """hsiphash() of a 64-bit kernel: of four bytes, with both halves of the key equal (lib/siphash.c)."""
    cdef sip_t v
    begin(&v, key, key)
    absorb(&v, <uint64_t>4 << 56 | word)                                  # 4 bytes of input
    return <uint32_t>finish(&v)


cdef inline uint64_t hash_endpoint(const uint64_t* key, const address_t* address, uint16_t port,
                                   uint8_t protocol) noexcept nogil:
    """Hash of one end of a flow: the client's for connections, the VIP's for services."""
    cdef sip_t v
    begin(&v, key[0], key[1])
    absorb(&v, address.high)
    absorb(&v, address.low)
    absorb(&v, <uint64_t>19 << 56 | <uint64_t>protocol << 16 | port)      # 19 bytes of input
    return finish(&v)


cdef inline uint64_t hash_text(const uint64_t* key, const address_t* address, const uint8_t* text,
                               uint32_t length) noexcept nogil:
    """Hash of an address and of so many bytes."""
    cdef sip_t v
    cdef uint64_t word
    cdef uint32_t at = 0
    begin(&v, key[0], key[1])
    absorb(&v, address.high)
    absorb(&v, address.low)
    while length - at >= 8:
        memcpy(&word, text + at, 8)
        absorb(&v, word)
        at += 8
    word = 0
    memcpy(&word, text + at, length - at)
    absorb(&v, <uint64_t>(16 + length & 0xff) << 56 | word)
    return finish(&v)
