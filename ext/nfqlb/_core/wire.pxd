"""The bytes of IPv4, IPv6, TCP, UDP, SCTP: get, set, and set with the checksum brought along.

Nothing here checks a length: `parse` did (packet.pyx), and after it no accessor can leave the packet. Offsets are
those of RFC 791, RFC 8200, RFC 9293, RFC 768 and RFC 9260. Integers come and go in host order, checksums stay as they
lie in memory.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from nfqlb._core.checksum cimport add_address, add_bytes, fold, remove_address, update
from nfqlb._core.crc32c cimport crc32c, shifted
from nfqlb._core.types cimport (
    CHECKSUM_NOT_READY,
    SCTP,
    SUPER_PACKET,
    TCP,
    UDP,
    address_t,
    packet_t,
)


cdef extern from "<arpa/inet.h>" nogil:
    uint16_t htons(uint16_t)
    uint16_t ntohs(uint16_t)
    uint32_t htonl(uint32_t)
    uint32_t ntohl(uint32_t)


cdef enum:
    IP4_SERVICE = 1              # DSCP and ECN
    IP4_TOTAL_LENGTH = 2
    IP4_FRAGMENT = 6             # flags and offset
    DONT_FRAGMENT = 0x4000
    MORE_FRAGMENTS = 0x2000
    IP4_PROTOCOL = 9
    IP4_CHECKSUM = 10
    IP4_SOURCE = 12
    IP4_DESTINATION = 16
    IP4_HEADER = 20

    IP6_PAYLOAD_LENGTH = 4
    IP6_NEXT_HEADER = 6
    IP6_SOURCE = 8
    IP6_DESTINATION = 24
    IP6_HEADER = 40

    SOURCE_PORT = 0
    DESTINATION_PORT = 2
    TCP_OFFSET = 12
    TCP_FLAGS = 13
    TCP_CHECKSUM = 16
    TCP_HEADER = 20
    END_OF_OPTIONS = 0           # options of one byte, of TCP (RFC 9293, 3.1) and IPv4 (RFC 791, 3.1)
    NO_OPERATION = 1
    MAXIMUM_SEGMENT_SIZE = 2
    MSS_LENGTH = 4
    UDP_LENGTH = 4
    UDP_CHECKSUM = 6
    UDP_HEADER = 8
    SCTP_TAG = 4                 # verification tag
    SCTP_CHECKSUM = 8
    SCTP_HEADER = 12
    CHUNK_LENGTH = 2
    CHUNK_HEADER = 4

    IP4_IDENTIFICATION = 4
    IP4_TTL = 8
    IP6_HOP_LIMIT = 7
    TCP_SEQUENCE = 4
    TCP_ACKNOWLEDGEMENT = 8
    ICMP_CHECKSUM = 2
    ICMP_HEADER = 8              # of every ICMP error, in front of the packet that it quotes

    FIN = 1
    SYN = 2
    RST = 4
    PSH = 8
    ACK = 16


cdef inline uint16_t get16(const uint8_t* at) noexcept nogil:
    cdef uint16_t value
    memcpy(&value, at, 2)
    return ntohs(value)


cdef inline void set16(uint8_t* at, uint16_t value) noexcept nogil:
    value = htons(value)
    memcpy(at, &value, 2)


cdef inline uint16_t get_raw16(const uint8_t* at) noexcept nogil:
    cdef uint16_t value
    memcpy(&value, at, 2)
    return value


cdef inline void set_raw16(uint8_t* at, uint16_t value) noexcept nogil:
    memcpy(at, &value, 2)


cdef inline uint32_t get32(const uint8_t* at) noexcept nogil:
    cdef uint32_t value
    memcpy(&value, at, 4)
    return ntohl(value)


cdef inline void set32(uint8_t* at, uint32_t value) noexcept nogil:
    value = htonl(value)
    memcpy(at, &value, 4)


cdef inline address_t get_address4(const uint8_t* at) noexcept nogil:
    cdef address_t address
    cdef uint8_t* low = <uint8_t*>&address.low
    address.high = 0
    low[0] = 0
    low[1] = 0
    low[2] = 0xff
    low[3] = 0xff
    memcpy(low + 4, at, 4)
    return address


cdef inline address_t get_address6(const uint8_t* at) noexcept nogil:
    cdef address_t address
    memcpy(&address, at, 16)
    return address


cdef inline address_t address_from(bytes packed) except *:
    """An address that came from Python; ValueError unless it has 16 bytes."""
    cdef address_t address
    if len(packed) != 16:
        raise ValueError(f"an address is 16 bytes, not {len(packed)}")
    memcpy(&address, <const char*>packed, 16)
    return address


cdef inline bint same(const address_t* a, const address_t* b) noexcept nogil:
    return ((a.high ^ b.high) | (a.low ^ b.low)) == 0


cdef inline uint32_t checksum_offset(const packet_t* packet) noexcept nogil:
    return packet.transport + (TCP_CHECKSUM if packet.protocol == TCP else UDP_CHECKSUM)


cdef inline uint16_t full_checksum(const packet_t* packet) noexcept nogil:
    """The transport checksum of the packet as it stands, pseudo header included (RFC 9293 3.1, RFC 8200 8.1)."""
    cdef const uint8_t* at = packet.data + packet.transport
    cdef uint32_t length = packet.length - packet.transport if packet.protocol == TCP else get16(at + UDP_LENGTH)
    cdef uint64_t total = add_address(add_address(htonl(length), &packet.source), &packet.destination)
    total += htons(packet.protocol)
    total += <uint16_t>~get_raw16(packet.data + checksum_offset(packet))      # takes the field itself out again
    return <uint16_t>~fold(add_bytes(total, at, length))


cdef inline uint32_t get_little32(const uint8_t* at) noexcept nogil:
    return at[0] | <uint32_t>at[1] << 8 | <uint32_t>at[2] << 16 | <uint32_t>at[3] << 24


cdef inline void set_little32(uint8_t* at, uint32_t value) noexcept nogil:
    at[0] = value & 0xff
    at[1] = value >> 8 & 0xff
    at[2] = value >> 16 & 0xff
    at[3] = value >> 24


cdef inline uint32_t full_crc(const uint8_t* at, uint32_t length) noexcept nogil:
    """The checksum of an SCTP packet of so many bytes, whatever stands in its place (RFC 9260, 6.8)."""
    cdef uint32_t crc = crc32c(at, SCTP_CHECKSUM, 0xffffffffU)
    crc = crc32c(b"\0\0\0\0", 4, crc)
    return ~crc32c(at + SCTP_HEADER, length - SCTP_HEADER, crc)


cdef inline void finish_sctp(packet_t* packet, uint32_t ports) noexcept nogil:
    """As finish_transport. A checksum of zero, where the ends agreed on none (RFC 9653), stays so."""
    cdef uint8_t* at = packet.data + packet.transport
    cdef uint32_t length = packet.length - packet.transport
    cdef uint32_t check = get_little32(at + SCTP_CHECKSUM)
    if packet.flags & CHECKSUM_NOT_READY:
        set_little32(at + SCTP_CHECKSUM, full_crc(at, length))
    elif ports != 0 and (check != 0 or full_crc(at, length) == 0):
        ports = htonl(ports)
        set_little32(at + SCTP_CHECKSUM, check ^ shifted(get_little32(<uint8_t*>&ports), length))


cdef inline void complete(packet_t* packet) noexcept nogil:
    """Compute a transport checksum that the sender left unfinished."""
    if packet.protocol == TCP or packet.protocol == UDP:
        set_raw16(packet.data + checksum_offset(packet), full_checksum(packet))
    elif packet.protocol == SCTP:
        finish_sctp(packet, 0)


cdef inline void finish_transport(packet_t* packet, uint64_t difference, uint32_t ports) noexcept nogil:
    """Bring the transport checksum along after addresses and ports changed by `difference`.

    Four cases: a super-packet is left to the kernel, which redoes each segment (net/ipv4/tcp_offload.c); a checksum
    that the sender left unfinished is computed whole; UDP over IPv4 without one keeps none (RFC 768); any other is
    updated. That of SCTP covers no address: only `ports`, the difference of the first four bytes as a number, counts.
    """
    cdef uint8_t* at
    cdef uint16_t check
    if packet.flags & SUPER_PACKET:
        return
    if packet.protocol == TCP:
        at = packet.data + packet.transport + TCP_CHECKSUM
        set_raw16(at, full_checksum(packet) if packet.flags & CHECKSUM_NOT_READY else update(get_raw16(at), difference))
        return
    if packet.protocol == SCTP:
        finish_sctp(packet, ports)
        return
    at = packet.data + packet.transport + UDP_CHECKSUM
    check = get_raw16(at)
    if packet.flags & CHECKSUM_NOT_READY:
        check = full_checksum(packet)
    elif check == 0:
        return
    else:
        check = update(check, difference)
    set_raw16(at, check or 0xffff)


cdef inline void set_destination(packet_t* packet, const address_t* address, uint16_t port) noexcept nogil:
    """Write destination address and port, and every checksum that covers them."""
    cdef uint8_t* data = packet.data
    cdef uint64_t difference = add_address(remove_address(0, &packet.destination), address)
    if packet.version == 4:
        memcpy(data + IP4_DESTINATION, <const uint8_t*>address + 12, 4)
        set_raw16(data + IP4_CHECKSUM, update(get_raw16(data + IP4_CHECKSUM), difference))
    else:
        memcpy(data + IP6_DESTINATION, address, 16)
    packet.destination = address[0]
    set16(data + packet.transport + DESTINATION_PORT, port)
    difference += <uint16_t>~htons(packet.dport)
    difference += htons(port)
    finish_transport(packet, difference, packet.dport ^ port)
    packet.dport = port


cdef inline void set_source(packet_t* packet, const address_t* address, uint16_t port) noexcept nogil:
    """Write source address and port, and every checksum that covers them."""
    cdef uint8_t* data = packet.data
    cdef uint64_t difference = add_address(remove_address(0, &packet.source), address)
    if packet.version == 4:
        memcpy(data + IP4_SOURCE, <const uint8_t*>address + 12, 4)
        set_raw16(data + IP4_CHECKSUM, update(get_raw16(data + IP4_CHECKSUM), difference))
    else:
        memcpy(data + IP6_SOURCE, address, 16)
    packet.source = address[0]
    set16(data + packet.transport + SOURCE_PORT, port)
    difference += <uint16_t>~htons(packet.sport)
    difference += htons(port)
    finish_transport(packet, difference, <uint32_t>(packet.sport ^ port) << 16)
    packet.sport = port


cdef inline bint is_mapped(const address_t* address) noexcept nogil:
    """Whether it is an IPv4 address (RFC 4291, 2.5.5.2)."""
    cdef uint32_t front
    memcpy(&front, &address.low, 4)
    return address.high == 0 and front == htonl(0xffff)


cdef inline uint8_t time_to_live(const packet_t* packet) noexcept nogil:
    return packet.data[IP4_TTL if packet.version == 4 else IP6_HOP_LIMIT]


cdef inline void count_hop(packet_t* packet) noexcept nogil:
    """Take one from TTL or hop limit, and bring an IPv4 header's checksum along."""
    cdef uint16_t check
    if packet.version == 6:
        packet.data[IP6_HOP_LIMIT] -= 1
        return
    packet.data[IP4_TTL] -= 1
    check = update(get_raw16(packet.data + IP4_CHECKSUM), <uint16_t>~htons(0x0100))     # TTL is a word's high byte
    set_raw16(packet.data + IP4_CHECKSUM, check)


cdef inline void lower_mss(packet_t* packet, uint16_t most) noexcept nogil:
    """Have a SYN announce segments of at most so many bytes (RFC 9293, 3.7.1), 0 for any. One that announces none means
    536 (IPv6: 1220), and stays so.

    A checksum that is still to be made, here or by the card, is left alone: it will cover what stands here then.
    """
    cdef uint8_t* at = packet.data + packet.transport
    cdef uint32_t option = TCP_HEADER
    cdef uint32_t end
    cdef uint16_t before
    if most == 0:                                            # what is no TCP has no limit either
        return
    end = min((at[TCP_OFFSET] >> 4) * 4, packet.captured - packet.transport)
    while option + MSS_LENGTH <= end and at[option] != END_OF_OPTIONS:
        if at[option] == NO_OPERATION:
            option += 1
        elif at[option + 1] < 2:
            return
        elif at[option] == MAXIMUM_SEGMENT_SIZE and at[option + 1] == MSS_LENGTH:
            before = get16(at + option + 2)
            if before > most:
                set16(at + option + 2, most)
                if not packet.flags & (CHECKSUM_NOT_READY | SUPER_PACKET):
                    change_word(at + TCP_CHECKSUM, before, most, option & 1)
            return
        else:
            option += at[option + 1]


cdef inline void change_word(uint8_t* checksum, uint16_t before, uint16_t after, bint odd) noexcept nogil:
    """Bring a checksum along after a word changed; one at an odd offset counts with its bytes swapped (RFC 1071, 2)."""
    if odd:
        before = <uint16_t>(before << 8 | before >> 8)
        after = <uint16_t>(after << 8 | after >> 8)
    set_raw16(checksum, update(get_raw16(checksum), <uint64_t><uint16_t>~htons(before) + htons(after)))
