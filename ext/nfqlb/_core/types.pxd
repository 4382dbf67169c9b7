"""Every struct that two modules share, once. Read this page first.

Addresses are 16 bytes in network order, IPv4 as ::ffff:a.b.c.d (RFC 4291, 2.5.5.2), so that nothing behind `parse` asks
for the family. Ports are host order. Time is in ticks of 100 ms of CLOCK_BOOTTIME, good for 13 years of uptime. Indices
stand where pointers would: 0 means none.
"""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from nfqlb._core.atomic cimport lock_t


cdef enum:
    TICK = 100_000_000           # nanoseconds
    BATCH = 64                   # packets that one system call brings

    # netfilter hooks (include/uapi/linux/netfilter.h)
    PREROUTING = 0
    INPUT = 1
    FORWARD = 2
    OUTPUT = 3

    # what NFQUEUE says of a packet (NFQA_SKB_INFO, include/uapi/linux/netfilter/nfnetlink_queue.h)
    CHECKSUM_NOT_READY = 1       # the sender left the transport checksum to the card
    SUPER_PACKET = 2             # GSO: one header, many segments; the kernel finishes the checksums of each
    CHECKSUM_NOT_VERIFIED = 4
    HEAD = 8                     # not NFQUEUE's: the queue copies what parse needs, the rest stays in the kernel

    TCP = 6
    UDP = 17
    SCTP = 132
    ICMP = 1
    ICMP6 = 58
    IP4_INSIDE = 4               # an IPv4 packet in an IP packet (RFC 2003)
    IP6_INSIDE = 41              # an IPv6 packet in an IP packet (RFC 2473)

    FTP = 21                     # control connections; data connections go to
    FTP_DATA = 20                # this port,
    UNPRIVILEGED = 1024          # or to one from here on, the first that anybody may bind


# What a packet of SCTP says to the state of its connection (ip_vs_proto_sctp.c, ipvs_sctp_event_t).
cdef enum chunk_t:
    DATA_CAME = 0                # and all else that changes nothing
    INIT_CAME
    INIT_ACK_CAME
    COOKIE_ECHO_CAME
    COOKIE_ACK_CAME
    SHUTDOWN_CAME
    SHUTDOWN_ACK_CAME
    SHUTDOWN_COMPLETE_CAME
    ERROR_CAME
    ABORT_CAME
    EVENTS


cdef enum verdict_t:
    ACCEPT = 0
    DROP = 1
    REWRITE = 2                  # accept with the changed bytes
    TRANSMIT = 3                 # drop, and send it as a frame to the real server (packet_t.hop)
    MARK = 4                     # accept with another mark (packet_t.mark), by which the kernel routes it


cdef enum method_t:              # forwarding method of a real server
    NAT = 0
    DIRECT = 1
    TUNNEL = 2


# Every way out of the data path. The names, meanings and verdicts are the table in telemetry.pyx.
cdef enum reason_t:
    FORWARDED = 0
    RETURNED
    MALFORMED
    TRUNCATED
    FRAGMENT
    ICMP_MESSAGE
    OTHER_PROTOCOL
    NO_SERVICE
    NO_CONNECTION
    NO_SERVER
    TABLE_FULL
    SERVER_GONE
    UNRELATED
    ERROR_FORWARDED
    ERROR_RETURNED
    BAD_CHECKSUM
    REFUSED
    ROUTED
    ERROR_ROUTED
    LOCAL
    NO_NEIGHBOUR
    TTL_EXCEEDED
    TOO_BIG
    TUNNELLED
    ERROR_REISSUED
    MARKED
    ERROR_MARKED
    SHED
    SERVER_DOWN
    DROP_PACKET
    LIMITED
    NO_CALL_ID
    STANDBY
    NOT_MASTER
    REASONS
    PARSED = 255                 # not an exit: the packet goes on


cdef struct address_t:
    uint64_t high                # bytes 0-7 as they lie in memory
    uint64_t low                 # bytes 8-15


# The way to a real server: the route to it and its next hop for frames, or the mark by which the kernel routes there.
# Never written after it was made.
cdef struct hop_t:
    address_t own                # this machine's address on that route: the outer source of a tunnel
    uint32_t interface           # index
    uint32_t mtu                 # bytes of the longest IP packet
    uint8_t destination[6]       # link-layer addresses
    uint8_t source[6]
    uint8_t ethernet             # frames have a link-layer header
    uint8_t local                # the real server is this machine
    uint32_t mark
    uint32_t mask                # bits of a packet's mark that are replaced; 0: packets leave as frames


cdef enum:
    OUTER = 40                   # bytes of the longest header that a tunnel puts in front


cdef struct packet_t:
    uint8_t* data                # first byte of the IP header; rewritten in place
    uint32_t captured            # bytes at data
    uint32_t length              # IP total length, <= captured once parsed, but for HEAD: its headers are
    uint32_t transport           # offset of the transport header
    uint32_t mark                # netfilter mark; with verdict MARK the one that it goes on with
    uint32_t id                  # the queue's number for it, network order
    uint8_t hook
    uint8_t flags                # CHECKSUM_NOT_READY | SUPER_PACKET | CHECKSUM_NOT_VERIFIED | HEAD
    uint8_t version              # 4 or 6
    uint8_t protocol
    uint8_t segment              # TCP flags byte, 0 of all else
    uint8_t chunk                # of SCTP: chunk_t
    uint8_t reason
    uint8_t verdict
    uint16_t sport
    uint16_t dport
    address_t source
    address_t destination
    uint64_t hash                # of the flow, seen in the direction that the hook suggests
    hop_t hop                    # where to, with verdict TRANSMIT; `mtu` is that of the packet at data
    uint32_t outer_length        # bytes of the header in front, 0 without a tunnel
    uint8_t outer[OUTER]


cdef struct path_t:              # what ICMP told of the way to a real server
    uint32_t mtu                 # bytes of the longest IP packet in the tunnel
    uint32_t until               # tick at which that is forgotten


# One connection: 128 bytes, two cache lines. The first has all that an established packet needs.
cdef struct connection_t:
    address_t client
    address_t virtual
    address_t server
    uint16_t cport
    uint16_t vport
    uint16_t sport
    uint8_t protocol
    uint8_t flags                # method_t | NO_OUTPUT and so on
    uint32_t slot                # the real server's stable number
    uint32_t word                # life | state << 8 | INACTIVE: written last when it becomes visible
    uint32_t expires             # tick
    uint32_t due                 # tick at which the timer looks at it, 0: not in the wheel
    uint32_t timer_next
    uint32_t timer_previous
    uint32_t chain               # next in the bucket's overflow
    uint32_t inpackets           # from the client, wraps
    uint64_t hash
    uint64_t freed               # epoch in which it was removed
    uint32_t control             # its template, which does not go before it
    uint32_t children            # of a template: connections that it controls
    uint32_t place               # with the offload, 0: its packets come up
    uint32_t nominated           # tick at which it first could have one, or can again, 0: not yet; else see latency.pyx
    uint32_t outpackets          # from the real server, wraps
    uint32_t began               # microseconds, wraps; 0: nobody measures how fast its server is (latency.pyx)


cdef enum:
    FREE = 0
    LIVE = 1
    LIFE = 0xff                  # mask of the word's lowest byte
    STATE_SHIFT = 8
    STATE_MASK = 0xff00
    INACTIVE = 0x10000           # counted in InActConn, not in ActiveConn
    NEWBORN = 0x10001            # LIVE, state NONE, INACTIVE (ip_vs_conn_new): its first packet is tracked at once
    ACTIVE_STATES = 0x40e        # bit per TCP state that counts as active (tracking.pyx): ES, SS, SR, SA
    ACTIVE_ASSOCIATION = 0x100   # likewise of SCTP: ESTABLISHED
    LONGEST = 21474836           # ticks: no timeout is longer (2^31 milliseconds)

    METHOD = 3                   # mask of the forwarding method in the flags
    NO_OUTPUT = 4                # replies do not pass the director: the client's packets alone make its state
    LEFT = 8                     # no request finds it any more; replies of the server that the flow had still do
    LINGER = 30                  # ticks that they have
    TEMPLATE = 16                # no connection: where those of a client (or its network) to a service go. Port 0
    ONE_PACKET = 32              # not in the table, and over with its packet
    ANSWERED = 64                # its template was told
    CALL = 128                   # a template for one call (SIP): its hash says for which
    ASSURED = 1                  # state of a template: a connection of it was established, or answered
    REARM = 600                  # ticks that a template gets when it has connections still


# A real server of a virtual service, as the table file remembers it. The number of its place is its slot.
cdef struct slot_t:
    address_t virtual
    address_t server
    uint16_t vport               # first port of the service
    uint16_t last                # and its last
    uint16_t sport               # 0: that of the packet
    uint8_t protocol             # 0: any, with a mark
    uint8_t used
    uint32_t mark                # 0: the service has an address
    uint32_t reserved


cdef struct load_t:              # connections of a slot, for schedulers and listings; shared by all workers
    uint32_t active
    uint32_t inactive
    uint32_t persistent          # templates
    uint32_t group               # its service's place in table_t.totals
    uint32_t latency             # microseconds that it took for the last replies, 0: unknown
    uint32_t measured            # tick of the last of these
    uint32_t reserved[3]


cdef struct counter_t:           # what one worker counted for a slot
    uint64_t connections
    uint64_t inpackets
    uint64_t outpackets
    uint64_t inbytes             # IP length
    uint64_t outbytes
    uint64_t answered            # SYNs that the real server took up
    uint64_t refused             # SYNs that it reset, and packets that ICMP says did not get there
    uint64_t unanswered          # SYNs that the client had to repeat, and those that found no neighbour


cdef struct leaf_t:              # a real server as its ranking is told of it
    ranking_t* ranking
    uint32_t next                # as ranking_t.little
    uint32_t little              # it is on that list


cdef struct node_t:              # of a tournament: the winner below, who has the least cost / weight
    int64_t cost                 # twos: sum of the weights below
    uint32_t weight              # 0: nobody
    uint32_t index


cdef struct ranking_t:           # the servers of a service as a tree; but for the news all is under the service's lock
    uint32_t told                # how often somebody had news, wraps
    uint32_t reserved[15]
    uint64_t* news               # number << 32 | index of a server that has less to do now, by the number's last bits
    uint32_t news_mask
    uint32_t heard               # the first number not yet looked at
    leaf_t* leaves
    node_t* nodes                # [1] is the root, [i] has [2 * i] and [2 * i + 1] below, [width] is the first leaf
    uint32_t width               # a power of two, at least the number of servers
    uint32_t state
    uint32_t little              # lblc, lblcr: 1 + index of one that had less than half of what its weight says, or 0


cdef struct bucket_t:            # one cache line of the index: a tag of the hash sorts out nearly every wrong entry
    lock_t lock
    uint16_t tag[8]
    uint32_t index[8]
    uint32_t chain               # entries that found no place, linked by connection_t.chain
    uint32_t reserved


cdef struct header_t:            # first page of the table file, docs/table.md
    uint64_t magic
    uint64_t layout
    uint64_t capacity
    uint64_t slots
    uint64_t key[2]              # of the table's hashes
    uint8_t boot[16]
    uint64_t generation          # counts how often it was opened
    uint32_t clean
    uint32_t reserved


cdef struct reader_t:            # a worker as the reclaimer sees it, alone in its cache line
    uint64_t seen                # epoch at the start of its batch; IDLE outside
    uint64_t reserved[7]


cdef enum:
    TRIED = 9                    # packets of a connection that may be ended by chance: fewer than these


cdef struct defence_t:           # what a table defends itself by now (defence.pyx), alone in its cache line
    uint32_t drop_rate           # of so many first packets one is dropped, 0: none
    uint32_t left                # of first packets until that one
    uint32_t drops_entries       # connections are ended before their time
    uint32_t evicted             # how many were, wraps
    uint32_t tries[TRIED]        # by packets of a connection: those that stay until one is ended
    uint32_t reserved[3]


cdef enum:
    WHEEL = 16384                # places of the timer wheel, one tick each: 27 minutes
    READERS = 67                 # 64 workers at most, the offload's follower, who sweeps, and who syncs


cdef struct told_t:              # what peers know of a connection (announce.pyx)
    uint32_t expires             # tick at which it ends for them, 0: they know nothing
    uint8_t state
    uint8_t retries              # since it was told last
    uint8_t reserved[2]


# Begins at a cache line. The first two are read for every packet and never written; the others by first packets and
# endings, each under its lock.
cdef struct table_t:
    header_t* header
    slot_t* slots
    connection_t* entries        # [1 .. capacity]; the three above lie in the shared file, all else is rebuilt
    load_t* loads                # by slot
    bucket_t* buckets
    uint64_t bucket_mask
    uint64_t key[2]

    uint32_t* wheel
    leaf_t** watch               # by slot: who is told when its load changes, NULL for nobody
    void* offload                # offload_t, NULL: there is none
    uint32_t* totals             # by service (load_t.group): connections, active or not
    uint32_t capacity
    uint32_t slot_count
    uint32_t reader_count
    uint32_t secure              # TCP states go by the table that mistrusts handshakes (secure_tcp)
    told_t* told                 # by index, NULL where no peer was ever told anything
    uint32_t reserved[2]

    lock_t free_lock
    uint32_t free_head           # removed entries in the order of their removal, linked by timer_next
    uint32_t free_tail
    uint32_t untouched           # entries from here on were never used
    uint32_t used                # live now
    uint32_t reserved2[10]

    lock_t wheel_lock
    uint32_t wheel_tick          # next place to look at
    uint32_t expired             # removed by their timer, wraps
    uint32_t reserved3[12]

    defence_t defence

    uint64_t epoch
    uint64_t reserved4[7]
    reader_t readers[READERS]


cdef enum look_t:                # what a packet is looked up as
    REQUEST = 0
    REPLY = 1
    LATE_REPLY = 2               # from a real server that the flow has left


cdef enum:
    MESSAGE = 1280               # bytes of the longest packet of our own (RFC 4443, 2.4 c)


cdef struct message_t:           # a packet of our own to a client: an IP header and what follows
    uint16_t length
    uint8_t version
    uint8_t data[MESSAGE]


cdef struct outbox_t:            # what a batch wants sent beside its verdicts
    uint32_t count
    uint32_t credit              # messages that may still be written now
    uint64_t refilled            # nanoseconds
    message_t messages[BATCH]


cdef struct nominee_t:
    uint32_t connection          # index
    uint64_t hash


cdef struct nominees_t:          # connections of a batch that the kernel may forward from now on
    uint32_t count
    nominee_t nominees[BATCH]


cdef enum answer_t:              # to a packet that no real server gets
    PASS = 0
    SILENCE
    UNREACHABLE
    RESET


cdef struct server_t:
    address_t address
    uint32_t slot
    int32_t weight
    int32_t last_weight          # the last one that was not 0
    uint32_t upper               # connections from which on it gets no new ones, 0: no limit
    uint32_t lower               # fewer than these, and it gets some again
    uint16_t port                # 0: that of the packet
    uint8_t method               # method_t
    uint8_t overloaded           # between those two; written by whoever adds a connection or looks
    uint8_t is_new               # to its service, and nobody has looked yet how many it has
    uint8_t counts_total         # its service has COUNT_TOTAL


cdef enum scheduler_t:           # in the order of SCHEDULERS, schedulers.pyx
    RR = 0
    WRR
    LC
    WLC
    LBLC
    LBLCR
    DH
    SH
    MH
    SED
    NQ
    FO
    OVF
    TWOS
    P2C
    EWMA
    HRW


cdef enum:                       # what a scheduler does besides (ip_vs.h, IP_VS_SVC_F_SCHED1 and 2)
    FALLBACK = 1                 # sh, mh: another server where the one of the hash takes none
    HASH_PORT = 2                # sh, mh, hrw: the client's port counts, too
    COUNT_TOTAL = 1              # lc, wlc, lblc, lblcr, twos: 256 * ActiveConn + all connections, not the inactive ones


cdef struct scheduler_state_t:   # what packets change of a service
    lock_t lock
    int32_t cursor               # last server chosen, -1: the head of the list
    int32_t current              # wrr: weight that a server must have now
    uint32_t reserved[12]


cdef enum:
    DESTINATIONS = 24576         # that lblc and lblcr remember: 1.5 * 16 * 1024 (ip_vs_lblc.c)
    DESTINATION_BUCKETS = 1024


cdef struct member_t:            # a real server among those of a destination
    uint32_t slot
    uint32_t next


# A destination address and the real servers that its connections go to: one with lblc, several with lblcr.
cdef struct destination_t:
    address_t address
    uint32_t next                # in its bucket, or in the free list
    uint32_t members             # newest first
    uint32_t count
    uint32_t used                # tick of the last connection
    uint32_t changed             # tick at which a member came or went


cdef struct locality_t:          # what lblc and lblcr remember; handed on when the service changes
    lock_t lock
    uint32_t count               # of destinations
    uint32_t free_destination
    uint32_t free_member
    uint32_t buckets[DESTINATION_BUCKETS]
    destination_t destinations[DESTINATIONS + 1]
    member_t members[2 * DESTINATIONS + 1]


cdef struct advisor_t:           # a scheduler in Python, as the data path knows it
    void* object                 # the Advisor
    uint32_t rests               # tick until which it is not asked
    uint64_t rested              # choices that were made without it meanwhile


cdef struct advice_t:            # what was asked of Python before any lock was taken: indices of servers, -1 for none
    int32_t live
    int32_t candidate


cdef enum:
    DIFFERENCES = 8              # that a shadow remembers


cdef struct tally_t:             # connections of a server
    uint64_t live                # that it got
    uint64_t candidate           # that it would have got


cdef struct difference_t:        # a connection that two schedulers gave to different servers
    address_t client
    uint16_t port
    uint32_t live                # slots, 0 for none
    uint32_t candidate


cdef struct shadow_t:            # a scheduler that is compared with the one that counts
    lock_t lock
    service_t* service           # the same servers at the same places
    tally_t* tallies             # by place
    uint64_t compared
    uint64_t differed
    difference_t last[DIFFERENCES]       # by `differed`


cdef enum:                       # of timeouts: TCP states (tracking.pxd), and
    UDP_KIND = 11
    SCTP_KIND = 16               # + SCTP state
    KINDS = 32


cdef struct service_t:
    address_t address
    uint32_t mark                # netfilter mark; 0: the service has an address
    uint16_t port
    uint16_t last                # port and those up to here
    uint8_t protocol
    uint8_t scheduler
    uint8_t version              # of a service by mark: 4 or 6
    uint8_t flags                # of the scheduler: FALLBACK | HASH_PORT
    int32_t gcd                  # wrr: of all positive weights
    int32_t ceiling              # wrr: greatest weight - (gcd - 1)
    uint16_t mss                 # bytes that a SYN may announce at most, 0: as it comes
    uint32_t count
    server_t* servers            # newest first
    uint32_t* seats              # 1 + index of the server by its slot, open addressing; NULL where servers are few
    uint32_t seat_mask
    ranking_t* ranking           # or NULL: few servers, or the scheduler does not look at loads
    scheduler_state_t* state
    const load_t* loads          # by slot, once a server reached its threshold; or NULL
    uint32_t timeouts[KINDS]     # ticks as in snapshot_t, 0: as for all services
    uint32_t limit               # connections, 0: none
    uint8_t has_timeouts         # some are not 0
    uint32_t persistence         # ticks that a client stays with its server after its last connection began, or 0
    uint8_t one_packet           # each datagram is scheduled on its own
    uint8_t offload              # the kernel may forward what is established by itself
    uint8_t moves_quiesced       # a template does not lead to a server of weight 0
    uint8_t by_call              # a template is for a call (SIP), not for all that a client does
    uint8_t template_protocol    # with these, a template of a client says whose it is
    uint16_t template_port
    address_t template_address
    address_t mask               # of a client's network
    uint32_t* places             # dh, sh, mh: 1 + index of a server, 0 for none
    uint32_t place_count
    uint32_t maglev_size         # of mh's table; a prime
    uint64_t* names              # hrw: what each server is known by
    uint64_t hash_key[2]         # dh, sh, mh, hrw: of the hash of an address
    uint8_t keyed                # there is one
    uint64_t* sums               # p2c, ewma: of the weights up to each server
    uint32_t* guide              # and the first server whose sum is above n << guide_shift
    uint32_t guide_shift
    locality_t* locality         # lblc, lblcr
    advisor_t* advisor           # who is asked before the scheduler, or NULL
    shadow_t* shadow             # who is asked beside it, or NULL


cdef enum:
    AVAILABLE = 1
    MAY_OFFLOAD = 2              # its service lets the kernel forward what is established
    QUIESCED = 4                 # its weight is 0
    # of a server that belongs to its service no more, or is down; without any of them its packets are dropped
    KEEPS = 8                    # its connections go on
    RESETS = 16                  # their clients are reset
    MOVES = 32                   # they go on with another server, in mid-stream
    LEADS = 64                   # QUIESCED, and templates lead there all the same
    LEARNS = 128                 # the kernel's rules know its replies by the clients that they saw (kernel/ruleset.py)

    REUSE = 1                    # bits of conn_reuse_mode (Documentation/networking/ipvs-sysctl.rst)
    REUSE_FIN_WAIT = 2


cdef struct span_t:              # the services of one address and protocol that have more than one port
    address_t address
    service_t* whole             # that with every port, or NULL
    service_t** parts            # the others by their ports, which do not overlap
    uint32_t count
    uint8_t protocol


cdef struct snapshot_t:
    service_t** index            # of services with one port: open addressing, index_mask + 1 places
    uint64_t index_mask
    span_t* spans                # open addressing, span_mask + 1 places, free where there is no protocol; or NULL
    uint64_t span_mask
    service_t** marked           # by version and mark
    uint32_t marks
    uint8_t ftp                  # there is a persistent service on port 21
    uint64_t key[2]
    uint8_t* available           # by slot: AVAILABLE, it belongs to its service; MAY_OFFLOAD to LEARNS; or else why not
    uint16_t* mss                # by slot: that of its service
    uint32_t slot_count
    uint32_t timeouts[KINDS]     # ticks by TCP state; UDP_KIND; SCTP_KIND and what follows by SCTP state
    uint32_t** own_timeouts      # by slot: those of its service, or NULL; NULL where no service has any of its own
    uint32_t* own                # what they point to
    uint8_t no_server            # answer_t when a service has no real server: SILENCE, UNREACHABLE, or RESET for TCP
    uint8_t no_connection        # answer_t to mid-stream TCP without a connection: PASS, SILENCE or RESET
    uint8_t sloppy               # mid-stream TCP may begin a connection (net.ipv4.vs.sloppy_tcp)
    uint8_t sloppy_sctp          # and so may mid-stream SCTP
    uint8_t reuse                # 0: a SYN goes where its ports went before, REUSE, REUSE_FIN_WAIT
    uint8_t expires_orphans      # connections end with their real server, SYNs leave one of weight 0
    uint8_t moves_quiesced       # templates do not lead to real servers of weight 0, whatever their service says
    uint8_t moves_datagrams      # nor do UDP connections
    uint8_t drop_entry           # modes of the defences, 0 to 3 (defence.pyx)
    uint8_t drop_packet
    uint8_t secure_tcp
    uint32_t drop_rate           # of drop_packet in mode 3
    uint32_t least               # free places, fewer are too few; 0: one of SHARE
    uint32_t limit               # connections and templates of all services, 0: no limit but the table's
