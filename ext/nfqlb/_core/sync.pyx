"""The messages of the kernel's sync daemon (net/netfilter/ipvs/ip_vs_sync.c), versions 0 and 1.

Strategy: a cursor walks over a message and fills in one record after another; a draft takes records until one finds no
room. Nothing is allocated, nothing is believed: every length is held against the end of the message before it is used.
Both judge as the kernel's receiver does, which drops a message at the first record that makes no sense, and keeps what
came before. All integers are big endian. Records of version 1 begin at multiples of four bytes; what fills the gap does
not belong to them, and behind the last one there is none.
"""
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy, memset

from typing import NamedTuple

from nfqlb._core.types cimport address_t
from nfqlb._core.wire cimport (
    address_from,
    get16,
    get32,
    get_address4,
    get_address6,
    is_mapped,
    set16,
    set32,
)

cdef enum:                               # of a message
    ID = 1
    SIZE = 2
    COUNT1 = 4
    VERSION = 5
    SPARE = 6

    IP6 = 1                              # bit of a record's type (STYPE_F_INET6)

    PROTOCOL = 1                         # of a record, version 1 (struct ip_vs_sync_v4)
    LENGTH = 2
    FLAGS = 4
    STATE = 8
    PORTS = 10
    MARK = 16
    TIMEOUT = 20
    ADDRESSES = 24
    LENGTH_BITS = 12                     # above these, its version
    LENGTH_MASK = 0xfff

    PORTS0 = 2                           # version 0 (struct ip_vs_sync_conn_v0)
    ADDRESSES0 = 8
    FLAGS0 = 20
    STATE0 = 22

    SEQUENCE_DATA = 1                    # options (IPVS_OPT_*)
    ENGINE_DATA = 2
    ENGINE_NAME = 3
    MAY_IGNORE = 0x40
    NAME_MAX = 16

FAULTS: tuple[str, ...] = (
    "", "its length is wrong", "it is of no known version", "it has a wrong option", "it has an unknown option",
)


cdef fault_t open_message(cursor_t* cursor, const uint8_t* data, size_t size) noexcept nogil:
    """Begin to read; the size is that of the datagram."""
    if size < HEADER0 or size != get16(data + SIZE):
        return SHORT
    cursor.id = data[ID]
    cursor.end = data + size
    if size >= HEADER1 and data[0] == 0 and data[VERSION] == 1 and get16(data + SPARE) == 0:
        cursor.version = 1
        cursor.left = data[COUNT1]
        cursor.at = data + HEADER1
    else:
        cursor.version = 0
        cursor.left = data[0]
        cursor.at = data + HEADER0
    return GOOD


cdef fault_t next_record(cursor_t* cursor, record_t* record) noexcept nogil:
    """Read the next of `cursor.left`; any fault but UNKNOWN ends the message."""
    cursor.left -= 1
    memset(record, 0, sizeof(record_t))
    return next_old(cursor, record) if cursor.version == 0 else next_new(cursor, record)


cdef fault_t next_old(cursor_t* cursor, record_t* record) noexcept nogil:
    cdef const uint8_t* at = cursor.at
    if cursor.end - at < RECORD0:
        return SHORT
    record.version = 4
    record.protocol = at[PROTOCOL]
    record.cport = get16(at + PORTS0)
    record.vport = get16(at + PORTS0 + 2)
    record.dport = get16(at + PORTS0 + 4)
    record.client = get_address4(at + ADDRESSES0)
    record.virtual = get_address4(at + ADDRESSES0 + 4)
    record.server = get_address4(at + ADDRESSES0 + 8)
    record.flags = get16(at + FLAGS0)
    record.state = get16(at + STATE0)
    at += RECORD0
    if record.flags & SYNC_SEQUENCE:
        if cursor.end - at < SEQUENCE:
            return SHORT
        read_sequence(record, at)
        at += SEQUENCE
    cursor.at = at
    return GOOD


cdef fault_t next_new(cursor_t* cursor, record_t* record) noexcept nogil:
    cdef const uint8_t* at = cursor.at
    cdef const uint8_t* end
    cdef uint32_t length, base
    if cursor.end - at < RECORD4:
        return SHORT
    length = get16(at + LENGTH)
    if length >> LENGTH_BITS:
        return STRANGE
    base = RECORD6 if at[0] & IP6 else RECORD4
    if length < base or <size_t>(cursor.end - at) < length:
        return SHORT
    end = at + length
    record.version = 6 if at[0] & IP6 else 4
    record.protocol = at[PROTOCOL]
    record.flags = get32(at + FLAGS)
    record.state = get16(at + STATE)
    record.cport = get16(at + PORTS)
    record.vport = get16(at + PORTS + 2)
    record.dport = get16(at + PORTS + 4)
    record.mark = get32(at + MARK)
    record.timeout = get32(at + TIMEOUT)
    at += ADDRESSES
    if record.version == 6:
        record.client = get_address6(at)
        record.virtual = get_address6(at + 16)
        record.server = get_address6(at + 32)
        at += 48
    else:
        record.client = get_address4(at)
        record.virtual = get_address4(at + 4)
        record.server = get_address4(at + 8)
        at += 12
    # behind the last record there is no filling
    cursor.at = cursor.at + (length + 3 & ~3) if cursor.left else end
    return read_options(record, at, end)


cdef fault_t read_options(record_t* record, const uint8_t* at, const uint8_t* end) noexcept nogil:
    cdef uint32_t kind, length
    cdef fault_t fault = GOOD
    while at < end:
        if end - at < 2:
            return GARBLED
        kind = at[0]
        length = at[1]
        at += 2
        if length == 0 or <size_t>(end - at) < length:
            return GARBLED
        if kind & ~<uint32_t>MAY_IGNORE == SEQUENCE_DATA:
            if length != SEQUENCE or record.has_sequence:
                return GARBLED
            read_sequence(record, at)
        elif kind & ~<uint32_t>MAY_IGNORE == ENGINE_DATA:
            if record.data_length:
                return GARBLED
            record.data_length = length
            record.data = at
        elif kind & ~<uint32_t>MAY_IGNORE == ENGINE_NAME:
            if record.name_length or length > NAME_MAX:
                return GARBLED
            record.name_length = length
            record.name = at
        elif not kind & MAY_IGNORE:
            fault = UNKNOWN
        at += length
    return fault


cdef inline void read_sequence(record_t* record, const uint8_t* at) noexcept nogil:
    cdef int i
    record.has_sequence = True
    for i in range(6):
        record.sequence[i] = get32(at + 4 * i)


cdef void begin_message(draft_t* draft, uint8_t* at, uint32_t room, uint8_t version, uint8_t id) noexcept nogil:
    """Begin to write one of at most `room` bytes, which must hold a header."""
    draft.bytes = at
    draft.room = room
    draft.version = version
    draft.id = id
    draft.count = 0
    draft.size = HEADER1 if version else HEADER0


cdef bint add_record(draft_t* draft, const record_t* record) noexcept nogil:
    """False when there is no room for it, or version 0 cannot say it."""
    cdef uint32_t start = draft.size
    cdef uint32_t length
    if draft.count == RECORDS:
        return False
    if draft.version == 0:
        length = RECORD0 + (SEQUENCE if record.flags & SYNC_SEQUENCE else 0)
        if record.version != 4 or start + length > draft.room:
            return False
        write_old(draft.bytes + start, record)
    else:
        start = start + 3 & ~3
        length = (RECORD6 if record.version == 6 else RECORD4) + (2 + SEQUENCE if record.has_sequence else 0) \
            + (2 + record.data_length if record.data_length else 0) \
            + (2 + record.name_length if record.name_length else 0)
        if start + length > draft.room:
            return False
        memset(draft.bytes + draft.size, 0, start - draft.size)
        write_new(draft.bytes + start, record, length)
    draft.size = start + length
    draft.count += 1
    return True


cdef uint32_t end_message(draft_t* draft) noexcept nogil:
    """Write the header; how many bytes the message has."""
    cdef uint8_t* at = draft.bytes
    set16(at + SIZE, draft.size)
    at[ID] = draft.id
    at[0] = 0
    if draft.version == 0:
        at[0] = draft.count
    else:
        at[COUNT1] = draft.count
        at[VERSION] = 1
        set16(at + SPARE, 0)
    return draft.size


cdef void write_old(uint8_t* at, const record_t* record) noexcept nogil:
    at[0] = 0
    at[PROTOCOL] = record.protocol
    set16(at + PORTS0, record.cport)
    set16(at + PORTS0 + 2, record.vport)
    set16(at + PORTS0 + 4, record.dport)
    set_address4(at + ADDRESSES0, &record.client)
    set_address4(at + ADDRESSES0 + 4, &record.virtual)
    set_address4(at + ADDRESSES0 + 8, &record.server)
    set16(at + FLAGS0, record.flags)
    set16(at + STATE0, record.state)
    if record.flags & SYNC_SEQUENCE:
        write_sequence(at + RECORD0, record)


cdef void write_new(uint8_t* at, const record_t* record, uint32_t length) noexcept nogil:
    at[0] = IP6 if record.version == 6 else 0
    at[PROTOCOL] = record.protocol
    set16(at + LENGTH, length)
    set32(at + FLAGS, record.flags)
    set16(at + STATE, record.state)
    set16(at + PORTS, record.cport)
    set16(at + PORTS + 2, record.vport)
    set16(at + PORTS + 4, record.dport)
    set32(at + MARK, record.mark)
    set32(at + TIMEOUT, record.timeout)
    at += ADDRESSES
    if record.version == 6:
        set_address6(at, &record.client)
        set_address6(at + 16, &record.virtual)
        set_address6(at + 32, &record.server)
        at += 48
    else:
        set_address4(at, &record.client)
        set_address4(at + 4, &record.virtual)
        set_address4(at + 8, &record.server)
        at += 12
    if record.has_sequence:
        at[0] = SEQUENCE_DATA
        at[1] = SEQUENCE
        write_sequence(at + 2, record)
        at += 2 + SEQUENCE
    if record.data_length:
        at[0] = ENGINE_DATA
        at[1] = record.data_length
        memcpy(at + 2, record.data, record.data_length)
        at += 2 + record.data_length
    if record.name_length:
        at[0] = ENGINE_NAME
        at[1] = record.name_length
        memcpy(at + 2, record.name, record.name_length)


cdef inline void set_address4(uint8_t* at, const address_t* address) noexcept nogil:
    memcpy(at, <const uint8_t*>address + 12, 4)


cdef inline void set_address6(uint8_t* at, const address_t* address) noexcept nogil:
    memcpy(at, address, 16)


cdef inline void write_sequence(uint8_t* at, const record_t* record) noexcept nogil:
    cdef int i
    for i in range(6):
        set32(at + 4 * i, record.sequence[i])


# --- as Python sees it -----------------------------------------------------------------------------------------------

class Record(NamedTuple):
    """A connection as a message has it. Addresses are 16 bytes, IPv4 mapped; ports host order; `timeout` seconds (0:
    version 0 does not say); `sequence` the six numbers of the two struct ip_vs_seq, or None.
    """

    protocol: int
    client: bytes
    cport: int
    virtual: bytes
    vport: int
    server: bytes
    dport: int
    flags: int
    state: int
    mark: int = 0
    timeout: int = 0
    sequence: tuple[int, ...] | None = None
    data: bytes = b""
    name: bytes = b""


class Message(NamedTuple):
    """`version` 0 or 1, the sync id, and the records."""

    version: int
    id: int
    records: list[Record]


def decode(data: bytes) -> Message:
    """Take a datagram apart. ValueError for one that the kernel would drop; records that must be left out, are."""
    cdef cursor_t cursor
    cdef record_t record
    cdef fault_t fault = open_message(&cursor, data, len(data))
    if fault != GOOD:
        raise ValueError(FAULTS[fault])
    records = []
    while cursor.left:
        fault = next_record(&cursor, &record)
        if fault == UNKNOWN:
            continue
        if fault != GOOD:
            raise ValueError(FAULTS[fault])
        records.append(Record(
            record.protocol, (<char*>&record.client)[:16], record.cport, (<char*>&record.virtual)[:16], record.vport,
            (<char*>&record.server)[:16], record.dport, record.flags, record.state, record.mark, record.timeout,
            tuple([record.sequence[i] for i in range(6)]) if record.has_sequence else None,
            record.data[:record.data_length] if record.data_length else b"",
            record.name[:record.name_length] if record.name_length else b"",
        ))
    return Message(cursor.version, cursor.id, records)


def encode(message: Message, unsigned int room = 65535) -> bytes:
    """Write a datagram. ValueError where it would be longer than `room`, or its version cannot say it."""
    cdef draft_t draft
    cdef record_t record
    cdef bytes data, name
    if room < HEADER1 or room > 65535:
        raise ValueError(f"{room} bytes are no length of a message")
    buffer = bytearray(room)
    begin_message(&draft, buffer, room, message.version, message.id)
    for one in message.records:
        memset(&record, 0, sizeof(record_t))
        record.protocol, record.cport, record.vport, record.dport = one.protocol, one.cport, one.vport, one.dport
        record.client, record.virtual = address_from(one.client), address_from(one.virtual)
        record.server = address_from(one.server)
        record.version = 4 if is_mapped(&record.client) else 6
        record.flags, record.state, record.mark, record.timeout = one.flags, one.state, one.mark, one.timeout
        if one.sequence is not None:
            record.has_sequence = True
            for i in range(6):
                record.sequence[i] = one.sequence[i]
        data, name = one.data, one.name
        if len(data) > 255 or len(name) > NAME_MAX:
            raise ValueError("what a persistence engine has to say is too long")
        record.data, record.data_length = data, len(data)
        record.name, record.name_length = name, len(name)
        if not add_record(&draft, &record):
            raise ValueError("the message does not hold its records")
    return bytes(buffer[:end_message(&draft)])
