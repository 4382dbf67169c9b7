"""TCP, SCTP and UDP states, and how long a connection may be silent in each.

Strategy: every transition is a cell of one table (net/netfilter/ipvs/ip_vs_proto_tcp.c, tcp_states; SCTP has its own);
nothing else changes a state. There is no look at sequence numbers or tags, as in the kernel. A packet sets the state
and restarts the timer with the state's timeout. ActiveConn and InActConn of the real server follow the state. Two
workers may meet in one connection: the state word is exchanged with compare-and-swap, and who wins counts.
"""
from libc.stdint cimport uint8_t, uint32_t

from nfqlb._core.atomic cimport ACQUIRE, RELAXED, RELEASE, SEQUENTIAL, add32, load32, replace32, store32, subtract32
from nfqlb._core.connection cimport hasten
from nfqlb._core.ranking cimport note_load
from nfqlb._core.types cimport (
    ACTIVE_ASSOCIATION,
    ACTIVE_STATES,
    ANSWERED,
    ASSURED,
    EVENTS,
    INACTIVE,
    LIVE,
    SCTP,
    SCTP_KIND,
    STATE_MASK,
    STATE_SHIFT,
    TCP,
    TEMPLATE,
    UDP_KIND,
    connection_t,
    load_t,
    packet_t,
    snapshot_t,
    table_t,
)
from nfqlb._core.wire cimport ACK, FIN, RST, SYN

STATE_NAMES: tuple[str, ...] = (
    "NONE", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT", "TIME_WAIT", "CLOSE", "CLOSE_WAIT", "LAST_ACK", "LISTEN",
    "SYNACK",
)
ASSOCIATION_NAMES: tuple[str, ...] = (
    "NONE", "INIT1", "INIT", "C-SENT", "C-REPLIED", "C-WAIT", "COOKIE", "C-ECHOED", "ESTABLISHED", "S-SENT",
    "S-RECEIVED", "S-ACK-SENT", "REJECTED", "CLOSED",
)

# Rows: what came; columns: the state it came in; cells: the state after it.
#                      NO  ES  SS  SR  FW  TW  CL  CW  LA  LI  SA
TRANSITIONS: dict[str, dict[str, str]] = {
    "from client": {
        "syn":        "SR  ES  ES  SR  SR  SR  SR  SR  SR  SR  SR",
        "fin":        "CL  CW  SS  TW  TW  TW  CL  CW  LA  LI  TW",
        "ack":        "ES  ES  SS  ES  FW  TW  CL  CW  CL  LI  ES",
        "rst":        "CL  CL  CL  SR  CL  CL  CL  CL  LA  LI  SR",
    },
    "from server": {
        "syn":        "SS  ES  SS  SR  SS  SS  SS  SS  SS  LI  SR",
        "fin":        "TW  FW  SS  TW  FW  TW  CL  TW  LA  LI  TW",
        "ack":        "ES  ES  SS  ES  FW  TW  CL  CW  LA  ES  ES",
        "rst":        "CL  CL  SS  CL  CL  TW  CL  CL  CL  CL  CL",
    },
    "client only": {
        "syn":        "SR  ES  ES  SR  SR  SR  SR  SR  SR  SR  SR",
        "fin":        "CL  FW  SS  TW  FW  TW  CL  CW  LA  LI  TW",
        "ack":        "ES  ES  SS  ES  FW  TW  CL  CW  CL  LI  ES",
        "rst":        "CL  CL  CL  SR  CL  CL  CL  CL  LA  LI  CL",
    },
}
# With secure_tcp a client alone establishes nothing where the real server's answers pass here (tcp_states_dos).
SECURED: dict[str, dict[str, str]] = {
    "from client": {
        "syn":        "SR  ES  ES  SR  SR  SR  SR  SR  SR  SR  SA",
        "fin":        "CL  CW  SS  TW  TW  TW  CL  CW  LA  LI  SA",
        "ack":        "ES  ES  SS  SR  FW  TW  CL  CW  CL  LI  SA",
        "rst":        "CL  CL  CL  SR  CL  CL  CL  CL  LA  LI  CL",
    },
    "from server": {
        "syn":        "SS  ES  SS  SA  SS  SS  SS  SS  SS  LI  SA",
        "fin":        "TW  FW  SS  TW  FW  TW  CL  TW  LA  LI  TW",
        "ack":        "ES  ES  SS  ES  FW  TW  CL  CW  LA  ES  ES",
        "rst":        "CL  CL  SS  CL  CL  TW  CL  CL  CL  CL  CL",
    },
    "client only": {
        "syn":        "SA  ES  ES  SR  SA  SA  SA  SA  SA  SA  SA",
        "fin":        "CL  FW  SS  TW  FW  TW  CL  CW  LA  LI  TW",
        "ack":        "ES  ES  SS  ES  FW  TW  CL  CW  CL  LI  ES",
        "rst":        "CL  CL  CL  SR  CL  CL  CL  CL  LA  LI  CL",
    },
}
_SHORT = ("NO", "ES", "SS", "SR", "FW", "TW", "CL", "CW", "LA", "LI", "SA")

#                            NO ES   SS   SR  FW   TW   CL  CW  LA  LI   SA
TIMEOUTS: tuple[int, ...] = (2, 900, 120, 60, 120, 120, 10, 60, 30, 120, 120)

# The same of SCTP (net/netfilter/ipvs/ip_vs_proto_sctp.c, sctp_states), as its real server sees it; rows are chunks.
#                         NO  I1  IN  CS  CR  CW  CO  CE  ES  SS  SR  SA  RJ  CL
ASSOCIATIONS: dict[str, dict[str, str]] = {
    "from client": {
        "data":              "ES  I1  IN  CS  CR  CW  CO  CE  ES  SS  SR  SA  RJ  CL",
        "init":              "I1  IN  IN  CS  CR  CW  CO  CE  ES  SS  SR  SA  IN  IN",
        "init ack":          "CW  CW  CW  CS  CR  CO  CO  CE  ES  SS  SR  SA  RJ  CL",
        "cookie echo":       "CR  IN  IN  CR  CR  CW  CO  CE  ES  SS  SR  SA  RJ  CL",
        "cookie ack":        "ES  I1  IN  CS  CR  CW  CO  ES  ES  SS  SR  SA  RJ  CL",
        "shutdown":          "SR  I1  IN  CS  CR  CW  CO  CE  SR  SS  SR  SA  RJ  CL",
        "shutdown ack":      "CL  IN  IN  CS  CR  CW  CO  CE  ES  CL  SR  CL  RJ  CL",
        "shutdown complete": "CL  CL  CL  CS  CR  CW  CO  CE  ES  SS  SR  CL  RJ  CL",
        "error":             "CL  I1  IN  CS  CR  CW  CO  CL  ES  SS  SR  SA  RJ  CL",
        "abort":             "CL  CL  CL  CL  CL  RJ  CL  CL  CL  CL  CL  CL  CL  CL",
    },
    "from server": {
        "data":              "ES  I1  IN  CS  CR  CW  CO  CE  ES  SS  SR  SA  RJ  CL",
        "init":              "CW  CW  CW  CW  CW  CW  CW  CW  ES  CW  CW  CW  CW  CW",
        "init ack":          "CS  CS  CS  CS  CR  CW  CO  CE  ES  SS  SR  SA  RJ  CL",
        "cookie echo":       "CE  CE  CE  CE  CE  CE  CE  CE  ES  SS  SR  SA  RJ  CL",
        "cookie ack":        "ES  ES  ES  ES  ES  ES  ES  ES  ES  SS  SR  SA  RJ  CL",
        "shutdown":          "SS  SS  SS  SS  SS  SS  SS  SS  SS  SS  SR  SA  RJ  CL",
        "shutdown ack":      "SA  SA  SA  SA  SA  CW  CO  CE  ES  SA  SA  SA  RJ  CL",
        "shutdown complete": "CL  I1  IN  CS  CR  CW  CO  CE  ES  SS  SR  SA  RJ  CL",
        "error":             "CL  CL  CL  CL  CL  CW  CO  CE  ES  SS  SR  SA  RJ  CL",
        "abort":             "CL  RJ  CL  CL  CL  CL  CL  CL  CL  CL  CL  CL  CL  CL",
    },
    "client only": {
        "data":              "ES  I1  IN  CS  CR  ES  CO  CE  ES  SS  SR  SA  RJ  CL",
        "init":              "I1  IN  IN  IN  IN  IN  CO  CE  ES  SS  SR  SA  IN  IN",
        "init ack":          "CE  CE  CE  CE  CE  CE  CO  CE  ES  SS  SR  SA  RJ  CL",
        "cookie echo":       "ES  ES  ES  ES  ES  ES  CO  CE  ES  SS  SR  SA  RJ  CL",
        "cookie ack":        "ES  I1  IN  ES  ES  CW  ES  ES  ES  SS  SR  SA  RJ  CL",
        "shutdown":          "SR  I1  IN  CS  CR  CW  CO  CE  SR  SS  SR  SA  RJ  CL",
        "shutdown ack":      "CL  IN  IN  CS  CR  CW  CO  CE  CL  CL  SR  CL  RJ  CL",
        "shutdown complete": "CL  CL  CL  CL  CL  CW  CO  CE  ES  SS  CL  CL  RJ  CL",
        "error":             "CL  I1  IN  CS  CR  CW  CO  CE  ES  SS  SR  SA  RJ  CL",
        "abort":             "CL  CL  CL  CL  CL  RJ  CL  CL  CL  CL  CL  CL  CL  CL",
    },
}
_LINKS = ("NO", "I1", "IN", "CS", "CR", "CW", "CO", "CE", "ES", "SS", "SR", "SA", "RJ", "CL")

#                                        NO I1 IN  CS  CR  CW  CO  CE  ES   SS  SR  SA  RJ CL
ASSOCIATION_TIMEOUTS: tuple[int, ...] = (2, 4, 61, 61, 61, 61, 61, 61, 900, 61, 61, 61, 4, 61)

cdef uint8_t[2][3][4][STATES] next_state                     # [1]: secured
for _secured, _table in enumerate((TRANSITIONS, SECURED)):
    for _direction, _rows in enumerate(_table.values()):
        for _row, _cells in enumerate(_rows.values()):
            for _column, _cell in enumerate(_cells.split()):
                next_state[_secured][_direction][_row][_column] = _SHORT.index(_cell)
cdef uint8_t[3][EVENTS][ASSOCIATION_STATES] next_association
for _direction, _rows in enumerate(ASSOCIATIONS.values()):
    for _row, _cells in enumerate(_rows.values()):
        for _column, _cell in enumerate(_cells.split()):
            next_association[_direction][_row][_column] = _LINKS.index(_cell)
assert ACTIVE_ASSOCIATION == 1 << ASSOCIATED == 1 << _LINKS.index("ES")
assert ACTIVE_STATES == sum(1 << _SHORT.index(_state) for _state in ("ES", "SS", "SR", "SA"))


# The timeouts that can be set: name and kind, those of `ipvsadm --set` first.
TIMEOUT_KINDS: dict[str, int] = {
    "tcp": ESTABLISHED,
    "tcp_fin": FIN_WAIT,
    "udp": UDP_KIND,
    "tcp_syn_sent": SYN_SENT,
    "tcp_syn_recv": SYN_RECV,
    "tcp_time_wait": TIME_WAIT,
    "tcp_close": CLOSE,
    "tcp_close_wait": CLOSE_WAIT,
    "tcp_last_ack": LAST_ACK,
    "tcp_listen": LISTEN,
    "tcp_synack": SYNACK,
    "tcp_none": NONE,
    "sctp": SCTP_KIND + ASSOCIATED,
    "sctp_none": SCTP_KIND,
    "sctp_init1": SCTP_KIND + INIT1,
    "sctp_init": SCTP_KIND + INIT,
    "sctp_cookie_sent": SCTP_KIND + 3,
    "sctp_cookie_replied": SCTP_KIND + 4,
    "sctp_cookie_wait": SCTP_KIND + 5,
    "sctp_cookie": SCTP_KIND + 6,
    "sctp_cookie_echoed": SCTP_KIND + 7,
    "sctp_shutdown_sent": SCTP_KIND + 9,
    "sctp_shutdown_received": SCTP_KIND + 10,
    "sctp_shutdown_ack_sent": SCTP_KIND + 11,
    "sctp_rejected": SCTP_KIND + 12,
    "sctp_closed": SCTP_KIND + CLOSED,
}


cdef void default_timeouts(uint32_t* timeouts) noexcept:
    """Fill in those of TCP and SCTP, in ticks."""
    cdef int state
    for state in range(STATES):
        timeouts[state] = TIMEOUTS[state] * 10
    for state in range(ASSOCIATION_STATES):
        timeouts[SCTP_KIND + state] = ASSOCIATION_TIMEOUTS[state] * 10


cdef int set_timeouts(uint32_t* timeouts, object seconds) except -1:
    """Fill in the timeouts by kind, in ticks, from seconds in the order of TIMEOUT_KINDS; not those that are left out.
    """
    for kind, value in zip(TIMEOUT_KINDS.values(), seconds, strict=False):
        timeouts[<int>kind] = value * 10
    return 0


cdef inline uint8_t after(const packet_t* packet, direction_t direction, uint8_t state, bint secured) noexcept nogil:
    """The state that a segment leads to. RST counts before SYN, FIN and ACK; with none of them the state is CLOSE."""
    cdef uint8_t segment = packet.segment
    cdef int row
    if segment & RST:
        row = 3
    elif segment & SYN:
        row = 0
    elif segment & FIN:
        row = 1
    elif segment & ACK:
        row = 2
    else:
        return CLOSE
    return next_state[secured][<int>direction][row][state]


cdef void assure(table_t* table, connection_t* connection) noexcept nogil:
    """Tell the template that a connection of it was answered (ip_vs_control_assure_ct)."""
    cdef connection_t* template = &table.entries[connection.control]
    cdef uint32_t word = load32(&template.word, ACQUIRE)
    connection.flags |= ANSWERED
    while word & 0xff == LIVE:
        if replace32(&template.word, &word, word | ASSURED << STATE_SHIFT, False, RELEASE, ACQUIRE):
            break


cdef inline bint change(table_t* table, connection_t* connection, uint32_t* word, uint32_t wanted) noexcept nogil:
    """Exchange the state word and count what that means; False when it was another one meanwhile: then `word` is that.
    """
    cdef load_t* load
    if not replace32(&connection.word, word, wanted, False, RELEASE, ACQUIRE):
        return False
    if (word[0] ^ wanted) & INACTIVE:
        load = &table.loads[connection.slot]
        if wanted & INACTIVE:
            subtract32(&load.active, 1, SEQUENTIAL)
            add32(&load.inactive, 1, SEQUENTIAL)
            note_load(table, connection.slot)
        else:
            add32(&load.active, 1, RELAXED)
            subtract32(&load.inactive, 1, RELAXED)
    return True


cdef inline void restart(table_t* table, connection_t* connection, uint32_t expires) noexcept nogil:
    if connection.expires != expires:
        store32(&connection.expires, expires, RELAXED)
        if expires < load32(&connection.due, RELAXED):
            hasten(table, connection)


cdef void track(table_t* table, const snapshot_t* snapshot, connection_t* connection, const packet_t* packet,
                direction_t direction, uint32_t now) noexcept nogil:
    """Bring state, timer and the server's ActiveConn/InActConn up to what this packet makes of them."""
    cdef uint32_t word = load32(&connection.word, ACQUIRE)
    cdef uint32_t wanted
    cdef uint8_t state
    if packet.protocol != TCP:
        track_other(table, snapshot, connection, packet, direction, now)
        return
    while True:
        state = after(packet, direction, (word & STATE_MASK) >> STATE_SHIFT, table.secure != 0)
        wanted = LIVE | <uint32_t>state << STATE_SHIFT | (0 if ACTIVE_STATES >> state & 1 else INACTIVE)
        if wanted == word:
            break
        if word & 0xff != LIVE:                          # expired while this packet was under way
            return
        if change(table, connection, &word, wanted):
            if state == ESTABLISHED and connection.control != 0 and not connection.flags & ANSWERED:
                assure(table, connection)
            break
    restart(table, connection, now + timeouts_of(snapshot, connection)[state])


cdef void track_other(table_t* table, const snapshot_t* snapshot, connection_t* connection, const packet_t* packet,
                      direction_t direction, uint32_t now) noexcept nogil:
    """As `track`, for SCTP and UDP."""
    cdef uint32_t word = load32(&connection.word, ACQUIRE)
    cdef uint32_t wanted
    cdef uint8_t state
    if packet.protocol != SCTP:
        if direction == FROM_SERVER and connection.control != 0 and not connection.flags & ANSWERED:
            assure(table, connection)
        restart(table, connection, now + timeouts_of(snapshot, connection)[UDP_KIND])
        return
    while True:
        if word & 0xff != LIVE:
            return
        state = next_association[<int>direction][packet.chunk][(word & STATE_MASK) >> STATE_SHIFT]
        wanted = LIVE | <uint32_t>state << STATE_SHIFT | (0 if state == ASSOCIATED else INACTIVE)
        if wanted == word:
            break
        if change(table, connection, &word, wanted):
            if state == ASSOCIATED and connection.control != 0 and not connection.flags & ANSWERED:
                assure(table, connection)
            break
    restart(table, connection, now + timeouts_of(snapshot, connection)[SCTP_KIND + state])


cdef bint become(table_t* table, connection_t* connection, uint8_t state) noexcept nogil:
    """Put a connection, or a template, into a state that was reached elsewhere; False when it has ended."""
    cdef uint32_t word = load32(&connection.word, ACQUIRE)
    cdef uint32_t wanted = LIVE | <uint32_t>state << STATE_SHIFT
    if connection.flags & TEMPLATE or not is_active(connection.protocol, state):
        wanted |= INACTIVE
    while wanted != word:
        if word & 0xff != LIVE:
            return False
        if change(table, connection, &word, wanted):
            return True
    return True
