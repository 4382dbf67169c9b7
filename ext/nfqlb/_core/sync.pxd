"""Messages of the kernel's sync daemon: bytes to records and back. No table, no socket."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t

from nfqlb._core.types cimport address_t


cdef enum:                           # IP_VS_CONN_F_* as they go over the wire (include/uapi/linux/ip_vs.h)
    FORWARD_MASK = 7
    FORWARD_MASQ = 0
    FORWARD_LOCAL = 1
    FORWARD_TUNNEL = 2
    FORWARD_ROUTE = 3
    SYNC_NO_OUTPUT = 0x80
    SYNC_INACTIVE = 0x100
    SYNC_SEQUENCE = 0x600            # OUT_SEQ | IN_SEQ: the payload's length was changed
    SYNC_NO_CPORT = 0x800
    SYNC_TEMPLATE = 0x1000
    SYNC_ONE_PACKET = 0x2000

cdef enum:
    HEADER0 = 4                      # bytes of a message's header, version 0
    HEADER1 = 8
    RECORD0 = 24                     # and of a record without options
    RECORD4 = 36
    RECORD6 = 72
    SEQUENCE = 24                    # of the two struct ip_vs_seq of a connection
    RECORDS = 255                    # of a message at most
    LONGEST_RECORD = RECORD6 + 2 + SEQUENCE + 2 + 255 + 2 + 16 + 3

cdef enum fault_t:                   # what is wrong with a message: all of it is dropped, but for UNKNOWN
    GOOD = 0
    SHORT                            # its length is not what it says, or a record ends behind it
    STRANGE                          # a version that there is not
    GARBLED                          # an option twice, or of an impossible length
    UNKNOWN                          # an option that must not be ignored: this record is dropped


cdef struct record_t:
    address_t client
    address_t virtual
    address_t server
    uint32_t flags
    uint32_t mark
    uint32_t timeout                 # seconds; 0: version 0 does not say
    uint16_t state
    uint16_t cport
    uint16_t vport
    uint16_t dport
    uint8_t protocol
    uint8_t version                  # 4 or 6
    uint8_t has_sequence
    uint8_t data_length              # of a persistence engine
    uint8_t name_length
    uint32_t sequence[6]             # in: init_seq, delta, previous_delta; out: the same
    const uint8_t* data              # in the message
    const uint8_t* name


cdef struct cursor_t:                # where reading a message is
    const uint8_t* at
    const uint8_t* end
    uint32_t left                    # records
    uint8_t version                  # of the message: 0 or 1
    uint8_t id                       # sync id


cdef struct draft_t:                 # a message that is written
    uint8_t* bytes
    uint32_t room
    uint32_t size
    uint32_t count
    uint8_t version
    uint8_t id


cdef fault_t open_message(cursor_t* cursor, const uint8_t* data, size_t size) noexcept nogil
cdef fault_t next_record(cursor_t* cursor, record_t* record) noexcept nogil
cdef void begin_message(draft_t* draft, uint8_t* at, uint32_t room, uint8_t version, uint8_t id) noexcept nogil
cdef bint add_record(draft_t* draft, const record_t* record) noexcept nogil
cdef uint32_t end_message(draft_t* draft) noexcept nogil
