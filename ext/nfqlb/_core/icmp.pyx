"""ICMP about connections: errors that others send are rewritten like the packets they quote; clients that no real
server gets are told so.

Strategy. An error travels against the packet that it quotes, so it belongs to the same connection in the other
direction; its own address and the one inside change together (net/netfilter/ipvs/ip_vs_core.c, ip_vs_nat_icmp). These
packets are rare: checksums are summed up anew, after the old one was found right. Answers of our own come from the VIP,
quote as much as their standard allows, and are so many in a second and no more, as the kernel's are.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from nfqlb._core.checksum cimport add_address, add_bytes, fold, remove_address, update
from nfqlb._core.types cimport (
    ABORT_CAME,
    BATCH,
    COOKIE_ACK_CAME,
    ERROR_CAME,
    ICMP,
    ICMP6,
    INIT_CAME,
    MESSAGE,
    RESET,
    SCTP,
    SHUTDOWN_ACK_CAME,
    SHUTDOWN_COMPLETE_CAME,
    SILENCE,
    TCP,
    address_t,
    answer_t,
    connection_t,
    message_t,
    outbox_t,
    packet_t,
)
from nfqlb._core.wire cimport (
    ACK,
    CHUNK_HEADER,
    CHUNK_LENGTH,
    DESTINATION_PORT,
    FIN,
    ICMP_CHECKSUM,
    ICMP_HEADER,
    IP4_CHECKSUM,
    IP4_DESTINATION,
    IP4_FRAGMENT,
    IP4_HEADER,
    IP4_IDENTIFICATION,
    IP4_PROTOCOL,
    IP4_SOURCE,
    IP4_TOTAL_LENGTH,
    IP4_TTL,
    IP6_DESTINATION,
    IP6_HEADER,
    IP6_HOP_LIMIT,
    IP6_NEXT_HEADER,
    IP6_PAYLOAD_LENGTH,
    IP6_SOURCE,
    RST,
    SCTP_CHECKSUM,
    SCTP_HEADER,
    SCTP_TAG,
    SOURCE_PORT,
    SYN,
    TCP_ACKNOWLEDGEMENT,
    TCP_CHECKSUM,
    TCP_FLAGS,
    TCP_HEADER,
    TCP_OFFSET,
    TCP_SEQUENCE,
    full_crc,
    get32,
    get_raw16,
    htonl,
    htons,
    set16,
    set32,
    set_little32,
    set_raw16,
)


cdef enum:
    PER_SECOND = 1000            # answers, and as many at once after a quiet second (net.ipv4.icmp_msgs_per_sec)
    SECOND = 1_000_000_000
    QUOTED4 = 576                # bytes of an ICMP error over IPv4 at most (RFC 1812, 4.3.2.3)
    TTL = 64

    # chunks of SCTP, and a flag that these two have (RFC 9260, 3.3.7 and 3.3.13)
    ABORT = 6
    SHUTDOWN_COMPLETE = 14
    TAG_REFLECTED = 1

    # type and code as one number (RFC 792, RFC 1191; RFC 4443, 3.1 to 3.3)
    NO_PORT4 = 0x0303
    NO_PORT6 = 0x0104
    TOO_LONG4 = 0x0304
    TOO_LONG6 = 0x0200
    EXPIRED4 = 0x0b00
    EXPIRED6 = 0x0300


cdef uint64_t pseudo_header(const address_t* source, const address_t* destination, uint32_t length,
                            uint8_t protocol) noexcept nogil:
    return add_address(add_address(htonl(length), source), destination) + htons(protocol)


cdef uint16_t icmp_sum(const packet_t* error) noexcept nogil:
    """The sum over an ICMP message as it stands: 0xffff when its checksum is right."""
    cdef uint32_t length = error.length - error.transport
    cdef uint64_t total = 0
    if error.version == 6:                                   # RFC 4443 2.3; over IPv4 there is no pseudo header
        total = pseudo_header(&error.source, &error.destination, length, ICMP6)
    return fold(add_bytes(total, error.data + error.transport, length))


cdef bint is_sound(const packet_t* error) noexcept nogil:
    return icmp_sum(error) == 0xffff


cdef bint is_unreachable(const packet_t* error) noexcept nogil:
    """Whether it says that a packet did not get there: any code but that of a packet too long."""
    if error.version == 6:
        return error.data[error.transport] == 1
    return error.data[error.transport] == 3 and error.data[error.transport + 1] != 4


cdef void set_address(packet_t* packet, address_t* known, uint32_t at4, uint32_t at6,
                      const address_t* address) noexcept nogil:
    """Write an address into the IP header and into `known`, and bring an IPv4 header's checksum along."""
    cdef uint16_t check
    if packet.version == 4:
        check = update(get_raw16(packet.data + IP4_CHECKSUM), add_address(remove_address(0, known), address))
        set_raw16(packet.data + IP4_CHECKSUM, check)
        memcpy(packet.data + at4, <const uint8_t*>address + 12, 4)
    else:
        memcpy(packet.data + at6, address, 16)
    known[0] = address[0]


cdef void nat_error(packet_t* error, packet_t* quoted, const connection_t* connection, bint reply) noexcept nogil:
    """Send an error on along the connection: `reply` to the client, as if from the VIP; else to the real server.

    The checksum of the quoted segment stays as it was: most of the segment is not there.
    """
    if reply:
        set_address(error, &error.source, IP4_SOURCE, IP6_SOURCE, &connection.virtual)
        set_address(quoted, &quoted.destination, IP4_DESTINATION, IP6_DESTINATION, &connection.virtual)
        set16(quoted.data + quoted.transport + DESTINATION_PORT, connection.vport)
    else:
        set_address(error, &error.destination, IP4_DESTINATION, IP6_DESTINATION, &connection.server)
        set_address(quoted, &quoted.source, IP4_SOURCE, IP6_SOURCE, &connection.server)
        set16(quoted.data + quoted.transport + SOURCE_PORT, connection.sport)
    set_raw16(error.data + error.transport + ICMP_CHECKSUM, 0)
    set_raw16(error.data + error.transport + ICMP_CHECKSUM, <uint16_t>~icmp_sum(error))


cdef void refuse(outbox_t* outbox, const packet_t* packet, answer_t answer, uint64_t now) noexcept nogil:
    """Tell the sender of a packet that there is nobody: RESET (to TCP, and an ABORT to SCTP), else ICMP port
    unreachable.
    """
    cdef message_t* message
    if answer == SILENCE or (answer == RESET and packet.segment & RST):
        return
    if answer == RESET and packet.protocol == SCTP and not may_be_aborted(packet):
        return
    message = next_message(outbox, packet, now)
    if message == NULL:
        return
    if answer == RESET and packet.protocol == TCP:
        write_reset(message, packet)
    elif answer == RESET and packet.protocol == SCTP:
        write_abort(message, packet)
    else:
        write_error(message, packet, NO_PORT4 if packet.version == 4 else NO_PORT6, 0)


cdef void tell_expired(outbox_t* outbox, const packet_t* packet, uint64_t now) noexcept nogil:
    """Tell the sender that the packet's time to live ended here."""
    cdef message_t* message = next_message(outbox, packet, now)
    if message != NULL:
        write_error(message, packet, EXPIRED4 if packet.version == 4 else EXPIRED6, 0)


cdef void tell_mtu(outbox_t* outbox, const packet_t* packet, uint64_t now) noexcept nogil:
    """Tell the sender how long a packet may be on the way to its real server."""
    cdef message_t* message = next_message(outbox, packet, now)
    if message != NULL:
        write_error(message, packet, TOO_LONG4 if packet.version == 4 else TOO_LONG6, packet.hop.mtu)


cdef void reissue(outbox_t* outbox, const packet_t* error, const packet_t* inside, uint32_t mtu,
                  uint64_t now) noexcept nogil:
    """Tell the sender of a packet that was in a tunnel what `error` says of the tunnel: the same type and code.

    `mtu` stands where an error of that kind has one, else 0.
    """
    cdef const uint8_t* at = error.data + error.transport
    cdef message_t* message = next_message(outbox, inside, now)
    if message != NULL:
        write_error(message, inside, <uint16_t>at[0] << 8 | at[1], mtu)


cdef uint32_t told_mtu(const packet_t* error) noexcept nogil:
    """The MTU that an ICMP error tells (RFC 1191, RFC 4443 3.2), 0 when it is about something else."""
    cdef const uint8_t* at = error.data + error.transport
    cdef uint16_t kind = <uint16_t>at[0] << 8 | at[1]
    if kind != (TOO_LONG4 if error.version == 4 else TOO_LONG6):
        return 0
    return get32(at + 4) & (0xffff if error.version == 4 else 0xffffffffU)


cdef bint is_unicast(const packet_t* packet) noexcept nogil:
    """Whether the source can be answered (RFC 1122, 3.2.2)."""
    cdef const uint8_t* source = <const uint8_t*>&packet.source
    if packet.version == 4:
        return source[12] != 0 and source[12] < 224
    return source[0] != 0xff and (packet.source.high | packet.source.low) != 0


cdef message_t* next_message(outbox_t* outbox, const packet_t* packet, uint64_t now) noexcept nogil:
    """Room for an answer, or NULL: the sender cannot have one, or there were enough of them lately."""
    cdef uint64_t earned = (now - outbox.refilled) // (SECOND // PER_SECOND)
    if earned:
        outbox.credit = <uint32_t>min(<uint64_t>PER_SECOND, outbox.credit + earned)
        outbox.refilled = now
    if outbox.credit == 0 or outbox.count == BATCH or not is_unicast(packet):
        return NULL
    outbox.credit -= 1
    outbox.count += 1
    outbox.messages[outbox.count - 1].version = packet.version
    return &outbox.messages[outbox.count - 1]


cdef uint8_t* write_header(message_t* message, const packet_t* packet, uint8_t protocol,
                           uint32_t length) noexcept nogil:
    """An IP header back to the packet's sender, from where the packet went; returns what follows it."""
    cdef uint8_t* data = message.data
    if packet.version == 6:
        memset(data, 0, IP6_HEADER)
        data[0] = 0x60
        set16(data + IP6_PAYLOAD_LENGTH, length)
        data[IP6_NEXT_HEADER] = protocol
        data[IP6_HOP_LIMIT] = TTL
        memcpy(data + IP6_SOURCE, &packet.destination, 16)
        memcpy(data + IP6_DESTINATION, &packet.source, 16)
        message.length = IP6_HEADER + length
        return data + IP6_HEADER
    memset(data, 0, IP4_HEADER)
    data[0] = 0x45
    set16(data + IP4_TOTAL_LENGTH, IP4_HEADER + length)
    set16(data + IP4_IDENTIFICATION, 0)
    set16(data + IP4_FRAGMENT, 0x4000)
    data[IP4_TTL] = TTL
    data[IP4_PROTOCOL] = protocol
    memcpy(data + IP4_SOURCE, <const uint8_t*>&packet.destination + 12, 4)
    memcpy(data + IP4_DESTINATION, <const uint8_t*>&packet.source + 12, 4)
    set_raw16(data + IP4_CHECKSUM, <uint16_t>~fold(add_bytes(0, data, IP4_HEADER)))
    message.length = IP4_HEADER + length
    return data + IP4_HEADER


cdef void write_error(message_t* message, const packet_t* packet, uint16_t kind, uint32_t rest) noexcept nogil:
    """An ICMP error that quotes the packet: type and code, and the second half of its header, in host order."""
    cdef bint wide = packet.version == 6
    cdef uint32_t quoted = min(min(packet.length, packet.captured), <uint32_t>(
        MESSAGE - IP6_HEADER - ICMP_HEADER if wide else QUOTED4 - IP4_HEADER - ICMP_HEADER))
    cdef uint8_t* at = write_header(message, packet, ICMP6 if wide else ICMP, ICMP_HEADER + quoted)
    cdef uint64_t total = 0
    set32(at, <uint32_t>kind << 16)
    set32(at + 4, rest)
    memcpy(at + ICMP_HEADER, packet.data, quoted)
    if wide:
        total = pseudo_header(&packet.source, &packet.destination, ICMP_HEADER + quoted, ICMP6)
    set_raw16(at + ICMP_CHECKSUM, <uint16_t>~fold(add_bytes(total, at, ICMP_HEADER + quoted)))


cdef inline bint may_be_aborted(const packet_t* packet) noexcept nogil:
    """Not what ends an association itself, nor a COOKIE ACK (RFC 9260, 8.4); an INIT wants its tag to be there."""
    cdef uint8_t chunk = packet.chunk
    if chunk == INIT_CAME:
        return packet.transport + SCTP_HEADER + CHUNK_HEADER + 4 <= min(packet.length, packet.captured)
    return chunk != ABORT_CAME and chunk != SHUTDOWN_COMPLETE_CAME and chunk != COOKIE_ACK_CAME and chunk != ERROR_CAME


cdef void write_abort(message_t* message, const packet_t* packet) noexcept nogil:
    """What the sender believes: an ABORT with the tag that its INIT asks for, else with its own and the T bit; to a
    SHUTDOWN ACK a SHUTDOWN COMPLETE (RFC 9260, 8.4 and 8.5.1).
    """
    cdef const uint8_t* segment = packet.data + packet.transport
    cdef uint8_t* at = write_header(message, packet, SCTP, SCTP_HEADER + CHUNK_HEADER)
    cdef bint init = packet.chunk == INIT_CAME
    set16(at + SOURCE_PORT, packet.dport)
    set16(at + DESTINATION_PORT, packet.sport)
    memcpy(at + SCTP_TAG, segment + (SCTP_HEADER + CHUNK_HEADER if init else SCTP_TAG), 4)
    at[SCTP_HEADER] = SHUTDOWN_COMPLETE if packet.chunk == SHUTDOWN_ACK_CAME else ABORT
    at[SCTP_HEADER + 1] = 0 if init else TAG_REFLECTED
    set16(at + SCTP_HEADER + CHUNK_LENGTH, CHUNK_HEADER)
    set_little32(at + SCTP_CHECKSUM, full_crc(at, SCTP_HEADER + CHUNK_HEADER))


cdef void write_reset(message_t* message, const packet_t* packet) noexcept nogil:
    """RFC 9293 3.10.7.1: a reset that the sender accepts."""
    cdef const uint8_t* segment = packet.data + packet.transport
    cdef uint8_t* at = write_header(message, packet, TCP, TCP_HEADER)
    cdef uint32_t used
    memset(at, 0, TCP_HEADER)
    set16(at + SOURCE_PORT, packet.dport)
    set16(at + DESTINATION_PORT, packet.sport)
    at[TCP_OFFSET] = TCP_HEADER // 4 << 4
    if packet.segment & ACK:
        at[TCP_FLAGS] = RST
        memcpy(at + TCP_SEQUENCE, segment + TCP_ACKNOWLEDGEMENT, 4)
    else:
        at[TCP_FLAGS] = RST | ACK
        used = packet.length - packet.transport - (segment[TCP_OFFSET] >> 4) * 4
        used += (1 if packet.segment & SYN else 0) + (1 if packet.segment & FIN else 0)
        set32(at + TCP_ACKNOWLEDGEMENT, get32(segment + TCP_SEQUENCE) + used)
    set_raw16(at + TCP_CHECKSUM, <uint16_t>~fold(
        add_bytes(pseudo_header(&packet.source, &packet.destination, TCP_HEADER, TCP), at, TCP_HEADER)))
