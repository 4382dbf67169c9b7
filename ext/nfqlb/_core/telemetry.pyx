"""Counters and the table of reasons.

Strategy: every packet leaves the data path with one reason, and the reason alone says what becomes of it. The reasons
are the counters, the words of listings and the names of tests; a new way out is one row here. Workers count without
locks in memory of their own; a reader may see a count that is one batch old, never a torn or a lost one.
"""
from libc.stdlib cimport calloc, free
from libc.stdint cimport uint32_t

from nfqlb._core.memory cimport cache_lines
from nfqlb._core.types cimport (
    ACCEPT,
    BAD_CHECKSUM,
    DROP,
    DROP_PACKET,
    ERROR_FORWARDED,
    ERROR_MARKED,
    ERROR_REISSUED,
    ERROR_RETURNED,
    ERROR_ROUTED,
    FORWARDED,
    FRAGMENT,
    ICMP_MESSAGE,
    LIMITED,
    NO_CALL_ID,
    LOCAL,
    MALFORMED,
    MARK,
    MARKED,
    NO_CONNECTION,
    NO_NEIGHBOUR,
    NO_SERVER,
    NO_SERVICE,
    NOT_MASTER,
    OTHER_PROTOCOL,
    REASONS,
    REFUSED,
    RETURNED,
    REWRITE,
    ROUTED,
    SERVER_DOWN,
    SERVER_GONE,
    SHED,
    STANDBY,
    TABLE_FULL,
    TOO_BIG,
    TRANSMIT,
    TRUNCATED,
    TTL_EXCEEDED,
    TUNNELLED,
    UNRELATED,
    counter_t,
)

#        reason          name               verdict  meaning
_TABLE = (
    (FORWARDED,          "forwarded",        REWRITE, "client's packet, sent to the real server of its connection"),
    (RETURNED,           "returned",         REWRITE, "real server's reply, sent to the client from the VIP"),
    (MALFORMED,          "malformed",        DROP,    "headers that contradict themselves or the packet's length"),
    (TRUNCATED,          "truncated",        DROP,    "longer than the queue can copy: it cannot be rewritten"),
    (FRAGMENT,           "fragment",         DROP,    "IP fragment that the kernel did not reassemble"),
    (ICMP_MESSAGE,       "icmp",             ACCEPT,  "ICMP about no connection; echo is answered by the local stack"),
    (OTHER_PROTOCOL,     "other_protocol",   ACCEPT,  "neither TCP nor UDP nor SCTP"),
    (NO_SERVICE,         "no_service",       ACCEPT,  "to no virtual service"),
    (NO_CONNECTION,      "no_connection",    ACCEPT,  "mid-stream, without a connection: the local stack resets it"),
    (NO_SERVER,          "no_server",        DROP,    "no real server takes connections; the client is told"),
    (TABLE_FULL,         "table_full",       DROP,    "no room for a new connection: raise --connections"),
    (SERVER_GONE,        "server_gone",      DROP,    "the connection's real server was removed"),
    (UNRELATED,          "unrelated",        ACCEPT,  "from a real server, but not of a connection"),
    (ERROR_FORWARDED,    "error_forwarded",  REWRITE, "ICMP error about a reply, sent to the real server"),
    (ERROR_RETURNED,     "error_returned",   REWRITE, "ICMP error about a request, sent to the client from the VIP"),
    (BAD_CHECKSUM,       "bad_checksum",     DROP,    "ICMP error about a connection, damaged on its way"),
    (REFUSED,            "refused",          DROP,    "mid-stream, without a connection, as --no-connection asks"),
    (ROUTED,             "routed",          TRANSMIT, "client's packet, sent as it is to the real server's MAC (dr)"),
    (ERROR_ROUTED,       "error_routed",    TRANSMIT, "ICMP error about a reply, sent as requests are (dr, tun)"),
    (LOCAL,              "local",            ACCEPT,  "the real server is this machine: for the local stack (dr, tun)"),
    (NO_NEIGHBOUR,       "no_neighbour",     DROP,    "real server without a route or an answer to ARP or ND"),
    (TTL_EXCEEDED,       "ttl_exceeded",     DROP,    "its time to live ends here (dr, tun); the client is told"),
    (TOO_BIG,            "too_big",          DROP,    "longer than the next MTU and not to be cut; the client is told"),
    (TUNNELLED,          "tunnelled",       TRANSMIT, "client's packet, sent to the server inside another one (tun)"),
    (ERROR_REISSUED,     "error_reissued",   ACCEPT,  "ICMP error about a packet in a tunnel; the client is told"),
    (MARKED,             "marked",           MARK,    "client's packet, routed to the real server by the kernel (dr)"),
    (ERROR_MARKED,       "error_marked",     MARK,    "ICMP error about a reply, sent as requests are (dr)"),
    (SHED,               "shed",             DROP,    "a new connection's, while more comes than can be taken"),
    (SERVER_DOWN,        "server_down",      DROP,    "the connection's real server is down; the client is reset"),
    (DROP_PACKET,        "drop_packet",      DROP,    "a new connection's: one of so many, while places are few"),
    (LIMITED,            "limited",          DROP,    "a new connection's, beyond connections_max"),
    (NO_CALL_ID,         "no_call_id",       DROP,    "a new connection's, without the Call-ID that SIP messages have"),
    (STANDBY,            "standby",          ACCEPT,  "to a backup with backup_only: for the local stack"),
    (NOT_MASTER,         "not_master",       DROP,    "to a backup with backup_only: of another server's connection"),
)

REASON_NAMES: tuple[str, ...] = tuple(name for _, name, _, _ in _TABLE)
MEANINGS: dict[str, str] = {name: meaning for _, name, _, meaning in _TABLE}
VERDICT_NAMES: tuple[str, ...] = ("accept", "drop", "rewrite", "transmit", "mark")

for _reason, _, _verdict, _ in _TABLE:
    VERDICTS[_reason] = _verdict
assert [row[0] for row in _TABLE] == list(range(REASONS))


cdef telemetry_t* telemetry_new(uint32_t slot_count) except NULL:
    cdef telemetry_t* telemetry = <telemetry_t*>cache_lines(sizeof(telemetry_t))
    if telemetry == NULL:
        raise MemoryError
    telemetry.slots = <counter_t*>calloc(slot_count, sizeof(counter_t))
    if telemetry.slots == NULL:
        free(telemetry)
        raise MemoryError
    return telemetry


cdef void telemetry_free(telemetry_t* telemetry) noexcept:
    if telemetry != NULL:
        free(telemetry.slots)
        free(telemetry)
