"""The Call-ID of a SIP message in a datagram, as the kernel's persistence engine reads it.

(net/netfilter/ipvs/ip_vs_pe_sip.c, get_callid; net/netfilter/nf_conntrack_sip.c, ct_sip_get_header; RFC 3261, 7.3 and
20.8.) Nothing is believed: every byte is within `length`.
"""
from libc.stdint cimport uint8_t, uint32_t


cdef enum:
    LONGEST_CALL_ID = 255                # IP_VS_PEDATA_MAXLEN


cdef inline bint is_letter(uint8_t byte) noexcept nogil:
    return c"a" <= (byte | 0x20) <= c"z"


cdef inline bint is_word(uint8_t byte) noexcept nogil:
    """iswordc(): letters, digits, and most signs; neither @ nor a space."""
    return is_letter(byte) or c"0" <= byte <= c"9" or byte == c"!" or byte == c'"' or byte == c"%" \
        or c"'" <= byte <= c"+" or c"-" <= byte <= c"/" or byte == c":" or byte == c"<" or c">" <= byte <= c"?" \
        or c"[" <= byte <= c"]" or byte == c"_" or byte == c"`" or byte == c"{" or c"}" <= byte <= c"~"


cdef inline uint32_t word_end(const uint8_t* data, uint32_t at, uint32_t length) noexcept nogil:
    while at < length and is_word(data[at]):
        at += 1
    return at


cdef inline uint32_t past_blanks(const uint8_t* data, uint32_t at, uint32_t length) noexcept nogil:
    while at < length and (data[at] == c" " or data[at] == c"\t"):
        at += 1
    return at


cdef inline uint32_t past_name(const uint8_t* data, uint32_t at, uint32_t length) noexcept nogil:
    """Behind `Call-ID` or the short `i` at the begin of a line, 0 where neither stands there."""
    cdef const char* name = b"call-id"
    cdef uint32_t i = 0
    while i < 7 and at + i < length and (data[at + i] | 0x20 if is_letter(data[at + i]) else data[at + i]) == name[i]:
        i += 1
    if i == 7:
        return at + 7
    if at + 1 < length and data[at] | 0x20 == c"i" and not is_letter(data[at + 1]):
        return at + 1
    return 0


cdef inline uint32_t find_call_id(const uint8_t* data, uint32_t length, uint32_t* size) noexcept nogil:
    """Where it begins in the payload, and its bytes; 0 where there is none that is followed by the end of its line."""
    cdef uint32_t at = 0
    cdef uint32_t begin, end
    while at < length:
        if data[at] != c"\r" and data[at] != c"\n":
            at += 1
            continue
        at += 2 if data[at] == c"\r" and at + 1 < length and data[at + 1] == c"\n" else 1
        begin = past_name(data, at, length)
        if begin == 0:
            continue
        begin = past_blanks(data, begin, length)
        if begin >= length or data[begin] != c":":
            return 0
        begin = past_blanks(data, begin + 1, length)
        end = word_end(data, begin, length)
        if begin < end < length and data[end] == c"@":
            at = end + 1
            end = word_end(data, at, length)
            if end == at:
                end = begin
        if end == begin:                                     # it is empty; there may be another one
            at = begin
            continue
        if end >= length or end - begin > LONGEST_CALL_ID or data[end] != c"\r" and data[end] != c"\n":
            return 0
        size[0] = end - begin
        return begin
    return 0
