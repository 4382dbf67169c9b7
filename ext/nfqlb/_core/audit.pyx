"""What must hold of packets after the core had them, and of the table between two batches: for tests, no part of the
data path.

Strategy: count again instead of asking. Checksums are summed up over all bytes as RFC 1071 writes it down, every list
of the table is walked to its end, every load is counted from the entries. Every walk is bounded, so that a list that
became a circle is a finding and not the end of the test.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy

from nfqlb._core.connection cimport find, flow_hash
from nfqlb._core.forward cimport is_bulk
from nfqlb._core.hash cimport hash_endpoint
from nfqlb._core.packet cimport parse, parse_quoted
from nfqlb._core.states cimport exists, is_active
from nfqlb._core.telemetry cimport VERDICTS
from nfqlb._core.types cimport (
    ASSURED,
    CALL,
    CHECKSUM_NOT_READY,
    FREE,
    ICMP_MESSAGE,
    INACTIVE,
    LEFT,
    LIFE,
    LIVE,
    MARK,
    MESSAGE,
    PARSED,
    REASONS,
    REQUEST,
    REWRITE,
    SCTP,
    STATE_MASK,
    STATE_SHIFT,
    SUPER_PACKET,
    TCP,
    TEMPLATE,
    TRANSMIT,
    UDP,
    WHEEL,
    bucket_t,
    connection_t,
    load_t,
    message_t,
    packet_t,
    table_t,
)
from nfqlb._core.wire cimport (
    IP4_CHECKSUM,
    IP4_HEADER,
    IP4_SOURCE,
    IP4_TOTAL_LENGTH,
    IP4_TTL,
    IP6_HEADER,
    IP6_HOP_LIMIT,
    IP6_PAYLOAD_LENGTH,
    IP6_SOURCE,
    SCTP_CHECKSUM,
    SCTP_HEADER,
    SYN,
    TCP_HEADER,
    TCP_OFFSET,
    TCP_SEQUENCE,
    UDP_HEADER,
    UDP_LENGTH,
    checksum_offset,
    get16,
    get_little32,
    time_to_live,
)


cdef enum:
    HEADER_RIGHT = 1             # the IPv4 header's checksum; IPv6 has none
    TRANSPORT_RIGHT = 2
    ALL_RIGHT = 3


cdef inline const char* unless(bint holds, const char* wrong) noexcept nogil:
    if holds:
        return NULL
    return wrong


# --- packets ---------------------------------------------------------------------------------------------------------

cdef uint32_t words(const uint8_t* data, uint32_t length) noexcept nogil:
    """The plain sum of 16-bit words in network order, an odd last byte padded with zero; up to 65,535 bytes fit."""
    cdef uint32_t total = 0
    cdef uint32_t i
    for i in range(length // 2):
        total += get16(data + 2 * i)
    return total + (<uint32_t>data[length - 1] << 8 if length & 1 else 0)


cdef bint is_ones(uint64_t total) noexcept nogil:
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return total == 0xffff


cdef bint right_crc(const uint8_t* data, uint32_t length) noexcept nogil:
    """Whether the checksum of an SCTP packet is right, bit by bit (RFC 9260, appendix A)."""
    cdef uint32_t crc = 0xffffffffU
    cdef uint32_t i
    for i in range(length):
        crc ^= 0 if <uint32_t>SCTP_CHECKSUM <= i < <uint32_t>SCTP_HEADER else data[i]
        for _ in range(8):
            crc = crc >> 1 ^ (0x82f63b78U if crc & 1 else 0)
    return ~crc == get_little32(data + SCTP_CHECKSUM)


cdef int right_sums(const packet_t* packet) noexcept nogil:
    """Which checksums of a parsed packet are right."""
    cdef const uint8_t* at = packet.data + packet.transport
    cdef uint32_t length = get16(at + UDP_LENGTH) if packet.protocol == UDP else packet.length - packet.transport
    cdef uint64_t total = words(at, length)
    cdef int right = HEADER_RIGHT
    if packet.protocol == SCTP:
        if packet.version == 4 and not is_ones(words(packet.data, (packet.data[0] & 15) * 4)):
            right = 0
        return right | (TRANSPORT_RIGHT if right_crc(at, length) else 0)
    if packet.version == 6:
        total += words(packet.data + IP6_SOURCE, 32) + length + packet.protocol
    else:
        right = HEADER_RIGHT if is_ones(words(packet.data, (packet.data[0] & 15) * 4)) else 0
        if packet.protocol == TCP or packet.protocol == UDP:
            total += words(packet.data + IP4_SOURCE, 8) + length + packet.protocol
    return right | (TRANSPORT_RIGHT if is_ones(total) else 0)


cdef const char* audit_packet(const packet_t* packet, uint8_t* original) noexcept nogil:
    """A packet after its batch, beside its bytes from before."""
    cdef packet_t came = packet[0]
    cdef packet_t went = packet[0]
    cdef const char* wrong
    cdef uint8_t kind
    came.data = original
    if packet.reason >= REASONS or packet.verdict != VERDICTS[packet.reason]:
        return "a verdict that its reason does not explain"
    if packet.verdict == TRANSMIT:
        return audit_sent(&came, &went)
    if packet.verdict != REWRITE:
        if memcmp(packet.data, original, packet.captured) != 0:
            return "a packet was changed that is not sent on"
        return unless(packet.verdict == MARK or packet.mark == 0, "a mark was changed without a word")
    kind = parse(&came)
    if parse(&went) != kind or (kind != PARSED and kind != ICMP_MESSAGE):
        return "a rewritten packet is of another kind"
    if went.version != came.version or went.protocol != came.protocol or went.segment != came.segment \
            or went.length != came.length or went.transport != came.transport:
        return "a rewritten packet reads otherwise"
    wrong = audit_sums(&came, &went, kind)
    if wrong != NULL:
        return wrong
    if kind == PARSED:
        take_lower_mss(&came, &went)
        return unless(
            not changed_behind_ports(&came, &went),
            "more was rewritten than addresses, ports, checksums and a SYN's MSS")
    return unless(
        not changed_in_quote(&came, &went),
        "more was rewritten in the quoted packet than addresses, ports and its header's checksum")


cdef inline uint32_t checksum_at(const packet_t* packet) noexcept nogil:
    return packet.transport + <uint32_t>SCTP_CHECKSUM if packet.protocol == SCTP else checksum_offset(packet)


cdef inline uint32_t checksum_size(const packet_t* packet) noexcept nogil:
    return 4 if packet.protocol == SCTP else 2


cdef const char* audit_sent(packet_t* came, packet_t* went) noexcept nogil:
    """A packet that goes to a real server as it is, in a tunnel or not: one hop older, a SYN's MSS lowered, and nothing
    else.
    """
    cdef uint8_t kind = parse(came)
    cdef uint32_t behind = IP6_HOP_LIMIT + 1
    cdef uint32_t after
    cdef int had
    if parse(went) != kind or (kind != PARSED and kind != ICMP_MESSAGE):
        return "a packet that is sent is of another kind"
    if time_to_live(went) != time_to_live(came) - 1:
        return "a packet that is sent is not one hop older"
    if went.version == 4:
        if right_sums(came) & ~right_sums(went) & HEADER_RIGHT:
            return "the checksum of the IP header was right, and is not"
        came.data[IP4_TTL] -= 1
        memcpy(came.data + IP4_CHECKSUM, went.data + IP4_CHECKSUM, 2)
        behind = 0
    if kind == PARSED and went.outer_length and not is_bulk(went):
        if came.flags & CHECKSUM_NOT_READY and not right_sums(went) & TRANSPORT_RIGHT:
            return "an unfinished checksum was finished wrong"
        after = checksum_at(came)
        if came.flags & CHECKSUM_NOT_READY:
            memcpy(came.data + after, went.data + after, checksum_size(came))
    elif kind == PARSED and came.protocol == SCTP and came.flags & CHECKSUM_NOT_READY:
        memcpy(came.data + checksum_at(came), went.data + checksum_at(came), checksum_size(came))
    had = right_sums(came)
    if kind == PARSED and take_lower_mss(came, went) and not came.flags & (CHECKSUM_NOT_READY | SUPER_PACKET):
        if had & ~right_sums(went) & TRANSPORT_RIGHT:
            return "a checksum was right, and is not"
        memcpy(came.data + checksum_offset(came), went.data + checksum_offset(came), 2)
    if memcmp(came.data, went.data, 0 if behind == 0 else IP6_HOP_LIMIT) != 0 \
            or memcmp(came.data + behind, went.data + behind, came.length - behind) != 0:
        return "more was changed than the time to live"
    return audit_outer(went)


cdef const char* audit_outer(packet_t* packet) noexcept nogil:
    cdef const uint8_t* outer = packet.outer
    if packet.outer_length == 0:
        return NULL
    if packet.version == 4:
        return unless(
            packet.outer_length == IP4_HEADER and get16(outer + IP4_TOTAL_LENGTH) == IP4_HEADER + packet.length
            and is_ones(words(outer, IP4_HEADER)), "the outer header is wrong")
    return unless(
        packet.outer_length == IP6_HEADER and get16(outer + IP6_PAYLOAD_LENGTH) == packet.length,
        "the outer header is wrong")


cdef bint take_lower_mss(packet_t* came, const packet_t* went) noexcept nogil:
    """Give a SYN as it came the MSS that it went with, where that is lower; whether it is."""
    cdef uint8_t* old = came.data + came.transport
    cdef const uint8_t* new = went.data + went.transport
    cdef uint32_t at = TCP_HEADER
    cdef uint32_t end
    if came.protocol != TCP or not came.segment & SYN:
        return False
    end = (old[TCP_OFFSET] >> 4) * 4
    while at + 4 <= end and old[at] != 0 and (old[at] != 2 or old[at + 1] != 4):
        if old[at] != 1 and old[at + 1] < 2:
            return False
        at += 1 if old[at] == 1 else old[at + 1]
    if at + 4 > end or old[at] != 2 or get16(new + at + 2) >= get16(old + at + 2):
        return False
    memcpy(old + at + 2, new + at + 2, 2)
    return True


cdef bint changed_behind_ports(const packet_t* came, const packet_t* went) noexcept nogil:
    cdef const uint8_t* old = came.data + came.transport
    cdef const uint8_t* new = went.data + went.transport
    cdef uint32_t size = came.length - came.transport
    cdef uint32_t check = checksum_at(came) - came.transport
    cdef uint32_t behind = check + checksum_size(came)
    return memcmp(old + TCP_SEQUENCE, new + TCP_SEQUENCE, check - TCP_SEQUENCE) != 0 \
        or memcmp(old + behind, new + behind, size - behind) != 0


cdef bint changed_in_quote(const packet_t* came, const packet_t* went) noexcept nogil:
    cdef packet_t old, new
    cdef uint32_t behind
    if parse_quoted(came, &old) != PARSED or parse_quoted(went, &new) != PARSED or old.transport != new.transport:
        return True
    if old.version == 4 and is_ones(words(old.data, old.transport)) and not is_ones(words(new.data, new.transport)):
        return True
    behind = old.transport + 4                               # its ports
    return memcmp(old.data, new.data, IP4_CHECKSUM if old.version == 4 else IP6_SOURCE) != 0 \
        or memcmp(old.data + behind, new.data + behind, old.length - behind) != 0


cdef const char* audit_sums(const packet_t* came, const packet_t* went, uint8_t kind) noexcept nogil:
    cdef int had = right_sums(came)
    cdef int has = right_sums(went)
    cdef uint16_t old, new
    if had & ~has & HEADER_RIGHT:
        return "the checksum of the IP header was right, and is not"
    if kind == ICMP_MESSAGE:
        return unless(has & TRANSPORT_RIGHT, "the checksum of an ICMP error is wrong")
    if came.protocol == SCTP:
        return audit_crc(came, went, had, has)
    old = get16(came.data + checksum_offset(came))
    new = get16(went.data + checksum_offset(went))
    if came.flags & SUPER_PACKET:
        return unless(old == new or has & TRANSPORT_RIGHT, "the checksum of a super-packet was touched")
    if came.flags & CHECKSUM_NOT_READY:
        return unless(has & TRANSPORT_RIGHT, "an unfinished checksum was finished wrong")
    if came.protocol == UDP and old == 0:
        return unless(new == 0, "a datagram without a checksum got one")
    if came.protocol == UDP and new == 0:
        return "a datagram lost its checksum"
    return unless(not had & ~has & TRANSPORT_RIGHT, "a checksum was right, and is not")


cdef const char* audit_crc(const packet_t* came, const packet_t* went, int had, int has) noexcept nogil:
    cdef uint32_t old = get_little32(came.data + checksum_at(came))
    if came.flags & SUPER_PACKET:
        return unless(old == get_little32(went.data + checksum_at(went)), "the checksum of a super-packet was touched")
    if came.flags & CHECKSUM_NOT_READY:
        return unless(has & TRANSPORT_RIGHT, "an unfinished checksum was finished wrong")
    if old == 0 and not had & TRANSPORT_RIGHT:
        return unless(get_little32(went.data + checksum_at(went)) == 0, "a packet without a checksum got one")
    return unless(had & TRANSPORT_RIGHT == has & TRANSPORT_RIGHT, "a checksum was right and is not, or became right")


cdef const char* audit_message(message_t* message) noexcept nogil:
    """A packet of our own."""
    cdef packet_t packet
    cdef uint8_t kind
    if message.length > MESSAGE or message.length < (IP6_HEADER if message.version == 6 else IP4_HEADER) + UDP_HEADER:
        return "an answer is too long or too short"
    packet.data = message.data
    packet.captured = message.length
    kind = parse(&packet)
    if (kind != PARSED and kind != ICMP_MESSAGE) or packet.version != message.version \
            or packet.length != message.length:
        return "an answer is no packet"
    return unless(right_sums(&packet) == ALL_RIGHT, "an answer has a wrong checksum")


# --- table -----------------------------------------------------------------------------------------------------------

cdef const char* audit_table(table_t* table) noexcept nogil:
    """The table while no worker is in a batch."""
    cdef const char* wrong = audit_entries(table)
    if wrong == NULL:
        wrong = audit_index(table)
    if wrong == NULL:
        wrong = audit_wheel(table)
    if wrong == NULL:
        wrong = audit_free(table)
    return wrong


cdef const char* audit_entries(table_t* table) noexcept nogil:
    """Every live entry makes sense, is found, is timed, and is counted for its server."""
    cdef const char* wrong = NULL
    cdef connection_t* entry
    cdef uint32_t i
    cdef uint32_t live = 0
    cdef load_t* loads = <load_t*>calloc(table.slot_count, sizeof(load_t))
    cdef uint32_t* totals = <uint32_t*>calloc(table.slot_count, sizeof(uint32_t))
    if loads == NULL or totals == NULL:
        free(loads)
        free(totals)
        return "no memory"
    for i in range(table.slot_count):
        loads[i].group = table.loads[i].group
    for i in range(1, table.untouched):
        entry = &table.entries[i]
        if entry.word == FREE:
            continue
        wrong = audit_entry(table, entry)
        if wrong != NULL:
            break
        live += 1
        totals[loads[entry.slot].group] += 0 if entry.flags & TEMPLATE else 1
        if entry.flags & TEMPLATE:
            loads[entry.slot].persistent += 1
        elif entry.word & INACTIVE:
            loads[entry.slot].inactive += 1
        else:
            loads[entry.slot].active += 1
    if wrong == NULL and live != table.used:
        wrong = "`used` is not the number of live entries"
    if wrong == NULL and memcmp(loads, table.loads, table.slot_count * sizeof(load_t)) != 0:
        wrong = "a server's ActiveConn, InActConn or PersistConn is not the number of its connections"
    if wrong == NULL and memcmp(totals, table.totals, table.slot_count * sizeof(uint32_t)) != 0:
        wrong = "a service's total is not the number of its connections"
    free(loads)
    free(totals)
    return wrong if wrong != NULL else audit_children(table)


cdef const char* audit_children(table_t* table) noexcept nogil:
    """Every template has as many children as connections name it."""
    cdef const char* wrong = NULL
    cdef uint32_t* children = <uint32_t*>calloc(table.capacity + 1, sizeof(uint32_t))
    cdef connection_t* entry
    cdef uint32_t i
    if children == NULL:
        return "no memory"
    for i in range(1, table.untouched):
        entry = &table.entries[i]
        if entry.word == FREE or entry.control == 0:
            continue
        if entry.control >= table.untouched or table.entries[entry.control].word == FREE \
                or not table.entries[entry.control].flags & TEMPLATE:
            wrong = "a connection names a template that is none"
            break
        children[entry.control] += 1
    for i in range(1, table.untouched):
        entry = &table.entries[i]
        if wrong == NULL and entry.word != FREE and entry.flags & TEMPLATE and entry.children != children[i]:
            wrong = "a template's count is not the number of its connections"
    free(children)
    return wrong


cdef const char* audit_template(table_t* table, const connection_t* entry) noexcept nogil:
    if entry.word & ~<uint32_t>(ASSURED << STATE_SHIFT) != (LIVE | INACTIVE):
        return "a template with a state word that does not exist"
    if entry.cport or entry.control:
        return "a template that looks like a connection"
    if not 0 < entry.slot < table.slot_count:
        return "a template of no slot"
    if entry.due == 0:
        return "a template without a timer"
    return unless(entry.flags & CALL or entry.hash == hash_endpoint(table.key, &entry.client, 0, entry.protocol),
                  "a template under a wrong hash")


cdef const char* audit_entry(table_t* table, const connection_t* entry) noexcept nogil:
    cdef packet_t request
    cdef uint32_t state = (entry.word & STATE_MASK) >> STATE_SHIFT
    cdef uint32_t active = is_active(entry.protocol, state)
    if entry.flags & TEMPLATE:
        return audit_template(table, entry)
    if entry.word & LIFE != LIVE or entry.word & ~<uint32_t>(LIFE | STATE_MASK | INACTIVE):
        return "a state word that does not exist"
    if not exists(entry.protocol, state):
        return "a protocol or state that does not exist"
    if active == (1 if entry.word & INACTIVE else 0):
        return "a connection counts as active, and is not, or the other way round"
    if not 0 < entry.slot < table.slot_count:
        return "a connection of no slot"
    if entry.due == 0:
        return "a connection without a timer"
    request.source = entry.client
    request.destination = entry.virtual
    request.sport = entry.cport
    request.dport = entry.vport
    request.protocol = entry.protocol
    if entry.hash != flow_hash(table, &request, False):
        return "a connection under a wrong hash"
    if entry.flags & LEFT:
        return NULL
    return unless(find(table, &request, entry.hash, REQUEST) != NULL, "a connection that its requests do not find")


cdef inline bint is_live(const table_t* table, uint32_t index) noexcept nogil:
    return 0 < index <= table.capacity and table.entries[index].word & LIFE == LIVE


cdef const char* audit_index(table_t* table) noexcept nogil:
    """As many places and links of the index as connections, all of them to live ones; no lock is held."""
    cdef bucket_t* bucket
    cdef uint64_t at
    cdef uint32_t index
    cdef uint32_t found = 0
    cdef int i
    for at in range(table.bucket_mask + 1):
        bucket = &table.buckets[at]
        if bucket.lock.held:
            return "a bucket is locked"
        for i in range(8):
            index = bucket.index[i]
            if index != 0:
                found += 1
                if not is_live(table, index):
                    return "the index has an entry that is not live"
        index = bucket.chain
        while index != 0:
            found += 1
            if not is_live(table, index) or found > table.used:
                return "a chain has an entry that is not live, or no end"
            index = table.entries[index].chain
    return unless(found == table.used, "the index has more or fewer entries than there are")


cdef const char* audit_wheel(table_t* table) noexcept nogil:
    """Every connection is in the wheel once, at the place that it believes."""
    cdef connection_t* entry
    cdef uint32_t place, index, previous
    cdef uint32_t found = 0
    if table.wheel_lock.held:
        return "the wheel is locked"
    for place in range(<uint32_t>WHEEL):
        previous = 0
        index = table.wheel[place]
        while index != 0:
            found += 1
            if not is_live(table, index) or found > table.used:
                return "the wheel has an entry that is not live, or no end"
            entry = &table.entries[index]
            if entry.timer_previous != previous or entry.due & (WHEEL - 1) != place:
                return "a timer is linked wrong"
            previous = index
            index = entry.timer_next
    return unless(found == table.used, "the wheel has more or fewer entries than there are")


cdef const char* audit_free(table_t* table) noexcept nogil:
    """What is not a connection is in the queue of free entries, or was never used."""
    cdef uint32_t index = table.free_head
    cdef uint32_t last = 0
    cdef uint32_t found = table.used + (table.capacity + 1 - table.untouched)
    if table.free_lock.held:
        return "the free list is locked"
    while index != 0:
        found += 1
        if index > table.capacity or table.entries[index].word != FREE or found > table.capacity:
            return "the free list has an entry that is not free, or no end"
        last = index
        index = table.entries[index].timer_next
    if last != table.free_tail:
        return "the free list ends elsewhere"
    return unless(found == table.capacity, "an entry is neither live nor free")
