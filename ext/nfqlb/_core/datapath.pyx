"""The data path: parse, connection look-up (miss: classify, schedule, insert), track, forward. One reason per exit.

Strategy. A packet is a struct on the batch; nothing here allocates, takes the GIL or asks Python. Time comes in as an
argument. A batch goes through in three passes so that memory is under way before it is needed: parse all and ask for
their buckets, ask for the entries behind them, then decide one by one. The configuration is read once a batch, by one
pointer: a change costs traffic nothing and is seen by whole batches only. Both directions of a flow land in one entry;
which one a packet is comes from the hook it was taken at, and where that guess fails, from the other look-up.
"""
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

import os
from typing import NamedTuple

from nfqlb._core.advisor cimport advised
from nfqlb._core.announce cimport consider, ring_t
from nfqlb._core.atomic cimport (
    ACQUIRE,
    RELAXED,
    RELEASE,
    SEQUENTIAL,
    add32,
    add64,
    load32,
    load_pointer,
    replace32,
    store32,
    store_pointer,
)
from nfqlb._core.connection cimport (
    Table,
    abandon,
    bring_up,
    enter,
    expire,
    find,
    find_template,
    flow_hash,
    hasten,
    hold,
    leave,
    let_go,
    new_reader,
    passed,
    remove,
    show,
    take,
    warm_bucket,
    warm_entry,
)
from nfqlb._core.callid cimport find_call_id
from nfqlb._core.defence cimport drops_packet, evict, weigh
from nfqlb._core.forward cimport direct, finish_bulk, is_bulk, nat_reply, nat_request, tunnel
from nfqlb._core.hash cimport hash_endpoint, hash_text
from nfqlb._core.icmp cimport is_sound, is_unreachable, nat_error, refuse, reissue, tell_expired, tell_mtu, told_mtu
from nfqlb._core.latency cimport measure
from nfqlb._core.load cimport is_overloaded, note_connection, recall
from nfqlb._core.offload cimport (
    OFFLOAD_ENDS,
    OFFLOAD_FIN,
    OFFLOAD_FIRST,
    OFFLOAD_RST,
    Offload,
    ends_of,
    install,
    is_answered,
    is_busy,
    is_opened,
    offload_t,
)
from nfqlb._core.memory cimport anonymous, cache_lines
from nfqlb._core.packet cimport load, parse, parse_inside, parse_quoted
from nfqlb._core.ranking cimport attach, detach, note_load, position
from nfqlb._core.schedulers cimport draw, pick
from nfqlb._core.shadow cimport compare
from nfqlb._core.snapshot cimport Hop, Service, Snapshot, classify
from nfqlb._core.telemetry cimport VERDICTS, count_in, count_out, telemetry_free, telemetry_new
from nfqlb._core.tracking cimport (
    CLIENT_ONLY,
    CLOSE,
    CLOSED,
    ESTABLISHED,
    FIN_WAIT,
    FROM_CLIENT,
    FROM_SERVER,
    INIT1,
    SYN_RECV,
    TIME_WAIT,
    become,
    kind_of,
    timeouts_of,
    track,
)
from nfqlb._core.types cimport (
    ABORT_CAME,
    ASSURED,
    AVAILABLE,
    BAD_CHECKSUM,
    CALL,
    DIRECT,
    DROP,
    DROP_PACKET,
    ERROR_FORWARDED,
    ERROR_MARKED,
    ERROR_REISSUED,
    ERROR_RETURNED,
    ERROR_ROUTED,
    EWMA,
    FORWARD,
    FORWARDED,
    ICMP_MESSAGE,
    INACTIVE,
    INIT_CAME,
    INPUT,
    KEEPS,
    LATE_REPLY,
    LEADS,
    LEARNS,
    LEFT,
    LIFE,
    LIMITED,
    NO_CALL_ID,
    LIVE,
    MARKED,
    MAY_OFFLOAD,
    METHOD,
    MOVES,
    NAT,
    NEWBORN,
    NO_CONNECTION,
    NO_NEIGHBOUR,
    NO_OUTPUT,
    NO_SERVER,
    NO_SERVICE,
    NOT_MASTER,
    ONE_PACKET,
    PARSED,
    PASS,
    PREROUTING,
    QUIESCED,
    REASONS,
    REFUSED,
    REPLY,
    REQUEST,
    RESET,
    RESETS,
    RETURNED,
    REUSE_FIN_WAIT,
    REWRITE,
    ROUTED,
    SCTP,
    SERVER_DOWN,
    SERVER_GONE,
    SHED,
    STANDBY,
    STATE_MASK,
    STATE_SHIFT,
    TABLE_FULL,
    TCP,
    TEMPLATE,
    TICK,
    TOO_BIG,
    TRANSMIT,
    TTL_EXCEEDED,
    TUNNEL,
    TUNNELLED,
    UDP,
    UNRELATED,
    address_t,
    advice_t,
    answer_t,
    connection_t,
    counter_t,
    hop_t,
    load_t,
    nominees_t,
    outbox_t,
    packet_t,
    path_t,
    server_t,
    service_t,
    snapshot_t,
    table_t,
    told_t,
)
from nfqlb._core.wire cimport (
    ACK,
    DONT_FRAGMENT,
    FIN,
    IP4_FRAGMENT,
    IP4_HEADER,
    IP6_HEADER,
    RST,
    SYN,
    UDP_HEADER,
    get16,
    is_mapped,
    lower_mss,
)
from nfqlb._core.telemetry import REASON_NAMES, VERDICT_NAMES


cdef enum:
    LEAST_MTU4 = 552                     # of a link, as we believe it (net.ipv4.route.min_pmtu)
    LEAST_MTU6 = 1280                    # (RFC 8200)
    PATH_LIFE = 6000                     # ticks: ten minutes (RFC 1191, 6.3)
    UNANSWERED = 8                       # datagrams of a client that make a flow without an answer
    PATIENCE = 2                         # ticks that a connection waits for an empty queue
    STALE = 10                           # and after which it waits anew: it was nominated another time
    RETRY = 10                           # until it is tried again where the kernel had no room
    GROUP = 256                          # places of the table that one batch goes through
    PART = 32                            # of the table: one is looked at in a second (ip_vs_random_dropentry)


cdef void run_batch(worker_t* worker, packet_t* packets, int count, uint64_t now, int budget) noexcept nogil:
    """Give each packet its reason and verdict, rewritten where it stands; then end what timed out, `budget` steps
    long.
    """
    cdef packet_t* packet
    cdef bint standby = load32(&worker.standby[0], RELAXED)
    cdef int i
    enter(worker.table, worker.reader)
    worker.now = now // TICK
    worker.micro = <uint32_t>(now // 1000)
    worker.outbox.count = 0
    if worker.nominees != NULL:
        worker.nominees.count = 0
    worker.snapshot = <snapshot_t*>load_pointer(<void**>worker.published, SEQUENTIAL)
    for i in range(count):
        packet = &packets[i]
        packet.reason = parse(packet)
        if packet.reason == PARSED:
            packet.hash = flow_hash(worker.table, packet, from_server(packet))
            warm_bucket(worker.table, packet.hash)
    for i in range(count):
        if packets[i].reason == PARSED:
            warm_entry(worker.table, packets[i].hash)
    for i in range(count):
        packet = &packets[i]
        if standby and not from_server(packet):
            if packet.reason == PARSED:
                packet.reason = stand_by(worker, packet)
        elif packet.reason == PARSED:
            packet.reason = decide(worker, packet)
            if VERDICTS[packet.reason] == DROP:
                explain(worker, packet, now)
        elif packet.reason == ICMP_MESSAGE:
            packet.reason = relate(worker, packet)
        packet.verdict = VERDICTS[packet.reason]
        worker.telemetry.reasons[packet.reason] += 1
    worker.telemetry.packets += count
    worker.telemetry.batches += count != 0
    expire(worker.table, worker.now, budget)
    leave(worker.table, worker.reader)


cdef uint8_t stand_by(worker_t* worker, const packet_t* packet) noexcept nogil:
    """A request that comes to a backup comes from the master, for the local service (ip_vs_core.c, ip_vs_in_hook), or
    from the router, as the VIP has just come here: the local stack must not reset connections of other servers then.
    """
    cdef const connection_t* connection
    if packet.protocol == TCP and not packet.segment & SYN:
        connection = find(worker.table, packet, packet.hash, REQUEST)
        if connection != NULL and (connection.word & STATE_MASK) >> STATE_SHIFT == ESTABLISHED \
                and not is_here(worker, connection):
            return NOT_MASTER
    return STANDBY


cdef void explain(worker_t* worker, const packet_t* packet, uint64_t now) noexcept nogil:
    """Tell the sender of a dropped packet why, where there is a word for it."""
    if packet.reason == NO_SERVER:
        refuse(worker.outbox, packet, <answer_t>worker.snapshot.no_server, now)
    elif packet.reason == SERVER_DOWN:
        refuse(worker.outbox, packet, RESET, now)
    elif packet.reason == REFUSED:
        refuse(worker.outbox, packet, <answer_t>worker.snapshot.no_connection, now)
    elif packet.reason == TTL_EXCEEDED:
        tell_expired(worker.outbox, packet, now)
    elif packet.reason == TOO_BIG:
        tell_mtu(worker.outbox, packet, now)


cdef uint8_t decide(worker_t* worker, packet_t* packet) noexcept nogil:
    """Everything behind parse, for one packet."""
    cdef bint reply = from_server(packet)
    cdef connection_t* connection = find(worker.table, packet, packet.hash, REPLY if reply else REQUEST)
    cdef bint moved = False
    cdef uint32_t before
    cdef uint8_t reason
    if connection == NULL:
        connection = look_up(worker, packet, not reply)
        if connection != NULL:
            reply = not reply
    if connection != NULL and connection.place != 0:
        catch_up(worker, connection)
        if not reply and is_first(packet):                   # its old place tells nothing of what begins now
            bring_up(worker.table, connection)
    if connection != NULL and not reply and outlived(worker, connection, packet):
        if packet.protocol != UDP:
            moved = fate_of(worker, connection) & MOVES != 0
            remove(worker.table, connection)
        else:
            abandon(worker.table, connection, worker.now)
        connection = NULL
    if connection == NULL:
        reply = False
        reason = admit(worker, packet, moved, &connection)
        if reason == NO_SERVICE or reason == UNRELATED:
            return answer_late(worker, packet, reason)
        if reason != PARSED:
            return reason
    before = connection.word
    if connection.began != 0:
        measure(&worker.table.loads[connection.slot], connection, packet, reply, worker.micro, worker.now)
    if packet.protocol == TCP and (before & STATE_MASK) >> STATE_SHIFT == SYN_RECV:
        note_handshake(&worker.telemetry.slots[connection.slot], packet, reply, connection.flags & NO_OUTPUT != 0)
    if reply:
        track(worker.table, worker.snapshot, connection, packet, FROM_SERVER, worker.now)
        count_out(worker.telemetry, connection, packet)
        if worker.ring != NULL and connection.word != before:
            announce(worker, connection)
        if worker.nominees != NULL:
            if is_answer(worker, connection, packet):
                hand_down(worker, connection)
            elif is_steady(worker, connection, packet):
                nominate(worker, connection)
        lower_mss(packet, allowed_mss(worker, packet, connection))
        return reply_on(packet, connection)
    if not has_server(worker, connection):
        return cut_off(worker, connection, packet)
    if not connection.flags & ONE_PACKET:
        track(worker.table, worker.snapshot, connection, packet,
              CLIENT_ONLY if connection.flags & NO_OUTPUT else FROM_CLIENT, worker.now)
    count_in(worker.telemetry, connection, packet)
    if worker.ring != NULL:
        announce(worker, connection)
    if worker.nominees != NULL and is_steady(worker, connection, packet):
        nominate(worker, connection)
    if connection.flags & METHOD == NAT:
        lower_mss(packet, allowed_mss(worker, packet, connection))
        reason = nat_request(packet, connection)
        if reason == FORWARDED and is_bulk(packet) and is_here(worker, connection):
            finish_bulk(packet)
        return reason
    reason = send_on(worker, packet, connection, allowed_mss(worker, packet, connection))
    if reason == NO_NEIGHBOUR and packet.segment & SYN:
        worker.telemetry.slots[connection.slot].unanswered += 1
    return reason


cdef inline void announce(worker_t* worker, connection_t* connection) noexcept nogil:
    """Peers may have to hear of a connection now."""
    cdef ring_t* ring = <ring_t*>load_pointer(<void**>&worker.ring, ACQUIRE)
    if ring != NULL:                                         # it may just have been switched off
        consider(ring, worker.table, connection, worker.now)


cdef void note_handshake(counter_t* counter, const packet_t* packet, bint reply, bint one_way) noexcept nogil:
    """Count what a packet of a connection that opens says of its real server. Where replies pass elsewhere, the client
    says by its ACK that it was answered, and by its second SYN that it was not.
    """
    if reply:
        counter.refused += packet.segment & RST != 0
        counter.answered += packet.segment & (SYN | RST) == SYN
    elif packet.segment & SYN:
        counter.unanswered += 1
    elif one_way:
        counter.answered += packet.segment & (ACK | RST) == ACK


cdef uint8_t cut_off(worker_t* worker, connection_t* connection, const packet_t* packet) noexcept nogil:
    """A request of a connection whose server is down or gone. Who is reset has a connection that is over."""
    if not fate_of(worker, connection) & RESETS:
        return SERVER_GONE
    if packet.protocol != UDP:
        follow(worker, connection, RST, True)
    return SERVER_DOWN


cdef uint8_t send_on(worker_t* worker, packet_t* packet, const connection_t* connection, uint16_t mss) noexcept nogil:
    """To a real server whose replies do not come back this way."""
    cdef const hop_t* hop = <hop_t*>load_pointer(<void**>&worker.hops[connection.slot], SEQUENTIAL)
    if connection.flags & METHOD == DIRECT:
        return direct(packet, hop, mss)
    return tunnel(packet, connection, hop, &worker.paths[connection.slot], worker.now, mss)


# -- established flows that the kernel may forward by itself -----------------------------------------------------------

cdef bint is_steady(worker_t* worker, const connection_t* connection, const packet_t* packet) noexcept nogil:
    """Whether all that is left to do for a connection is the same for every packet: it is established, and was answered
    where answers pass here; datagrams go on, UNANSWERED of them where nobody answers. Where the rules know replies by
    the clients that they saw, it is a client's packet.
    """
    cdef bint both_ways = connection.flags & METHOD == NAT
    if connection.place != 0 or connection.began != 0 or connection.flags & (ONE_PACKET | LEFT) \
            or connection.slot >= worker.snapshot.slot_count \
            or not worker.snapshot.available[connection.slot] & MAY_OFFLOAD \
            or (packet.hook != PREROUTING and (
                packet.hook != FORWARD or worker.snapshot.available[connection.slot] & LEARNS)):
        return False
    if packet.protocol == SCTP:
        return False
    if packet.protocol != TCP:
        if both_ways and connection.outpackets == 0:
            return connection.inpackets >= UNANSWERED
        return connection.inpackets + connection.outpackets > (2 if both_ways else 1)
    if both_ways and connection.outpackets == 0:
        return False
    return (connection.word & STATE_MASK) >> STATE_SHIFT == ESTABLISHED and not packet.segment & (SYN | FIN | RST)


cdef bint is_answer(worker_t* worker, const connection_t* connection, const packet_t* packet) noexcept nogil:
    """Whether a connection of NAT may be handed down at once: this is the real server's SYN-ACK, which the client has
    not seen, so nothing of it can be under way. Floods leave half of the places to those that are established.
    """
    cdef const offload_t* offload = <offload_t*>worker.table.offload
    return packet.segment & (SYN | ACK) == SYN | ACK and packet.protocol == TCP \
        and connection.place == 0 and connection.began == 0 \
        and connection.flags & METHOD == NAT and not connection.flags & (ONE_PACKET | LEFT) \
        and connection.slot < worker.snapshot.slot_count \
        and worker.snapshot.available[connection.slot] & MAY_OFFLOAD != 0 \
        and packet.hook == FORWARD and (connection.word & STATE_MASK) >> STATE_SHIFT == SYN_RECV \
        and offload.used < offload.capacity // 2


cdef void nominate(worker_t* worker, connection_t* connection) noexcept nogil:
    cdef nominees_t* nominees = worker.nominees
    if connection.nominated == 0 or <int32_t>(worker.now - connection.nominated) > STALE:
        connection.nominated = worker.now
    elif <int32_t>(worker.now - connection.nominated) < 0:   # the kernel took none of it just now
        return
    nominees.nominees[nominees.count].connection = <uint32_t>(connection - worker.table.entries)
    nominees.nominees[nominees.count].hash = connection.hash
    nominees.count += 1


cdef void settle(worker_t* worker, bint drained) noexcept nogil:
    """After the verdicts of a batch: have the kernel forward the connections that were nominated.

    Not while a packet of one may wait in the queue, which those that follow would overtake; `drained` says that it is
    empty. Under a load that never lets it be, a connection is taken after PATIENCE, and those that wait come late.
    """
    cdef nominees_t* nominees = worker.nominees
    cdef connection_t* connection
    cdef uint32_t i
    enter(worker.table, worker.reader)
    for i in range(nominees.count):
        connection = &worker.table.entries[nominees.nominees[i].connection]
        if load32(&connection.word, ACQUIRE) & LIFE == LIVE and connection.hash == nominees.nominees[i].hash \
                and connection.place == 0 \
                and (drained or <int32_t>(worker.now - connection.nominated) >= PATIENCE):
            hand_down(worker, connection)
    nominees.count = 0
    leave(worker.table, worker.reader)


cdef void hand_down(worker_t* worker, connection_t* connection) noexcept nogil:
    cdef uint32_t turn = load32(&worker.turns[connection.slot], SEQUENTIAL)
    cdef const hop_t* hop = <hop_t*>load_pointer(<void**>&worker.nexts[connection.slot], SEQUENTIAL)
    cdef const hop_t* own = <hop_t*>load_pointer(<void**>&worker.hops[connection.slot], SEQUENTIAL)
    cdef const path_t* path = &worker.paths[connection.slot]
    cdef uint32_t mtu = 0
    if load32(&worker.standby[0], SEQUENTIAL):
        return
    if connection.flags & METHOD != NAT:
        if hop == NULL or hop.local or not hop.ethernet:
            return
        mtu = hop.mtu
        if connection.flags & METHOD == TUNNEL:
            mtu -= IP4_HEADER if is_mapped(&connection.client) else IP6_HEADER
            if worker.now < path.until:
                mtu = min(mtu, path.mtu)
    elif own != NULL and own.local:
        return
    elif hop != NULL:
        mtu = hop.mtu
    if not install(<offload_t*>worker.table.offload, connection, <uint32_t>(connection - worker.table.entries), hop,
                   mtu, own != NULL and own.mask != 0, turn, worker.now):
        connection.nominated = worker.now + RETRY
    elif load32(&connection.word, SEQUENTIAL) & LIFE != LIVE or connection.flags & LEFT:
        bring_up(worker.table, connection)                   # it ended at the same moment


cdef void catch_up(worker_t* worker, connection_t* connection) noexcept nogil:
    """Bring the state of a connection up to what the kernel forwarded since: what opens it, FIN and RST.

    The caller is in a batch.
    """
    cdef uint32_t place = load32(&connection.place, ACQUIRE)
    if place != 0 and worker.table.offload != NULL:
        track_place(worker, connection, place)


cdef void come_up(worker_t* worker, connection_t* connection) noexcept nogil:
    """Have packets of a connection come up again, and miss nothing that it did until then. The caller is in a batch."""
    cdef uint32_t place = load32(&connection.place, ACQUIRE)
    bring_up(worker.table, connection)
    if place != 0 and worker.table.offload != NULL:
        track_place(worker, connection, place)


cdef void track_place(worker_t* worker, connection_t* connection, uint32_t place) noexcept nogil:
    """What is known in a place that a connection has, or had just now."""
    cdef offload_t* offload = <offload_t*>worker.table.offload
    cdef uint32_t ended, followed
    cdef int first
    ended = ends_of(offload, place)                          # before the counts, which the kernel writes first
    if connection.protocol == TCP and (connection.word & STATE_MASK) >> STATE_SHIFT == SYN_RECV \
            and is_opened(offload, place) and is_busy(offload, place):
        follow(worker, connection, 0, False)
        if (connection.word & STATE_MASK) >> STATE_SHIFT == SYN_RECV and is_answered(offload, place):
            follow(worker, connection, 0, True)              # secure_tcp went up since: its server has to say so
    followed = load32(&offload.owners[place].followed, ACQUIRE)
    if not ended & ~followed or not replace32(
            &offload.owners[place].followed, &followed, followed | ended, False, RELEASE, ACQUIRE):
        return                                               # it is known, or somebody else is at it
    ended &= ~followed | ~<uint32_t>OFFLOAD_ENDS
    first = 1 if ended & OFFLOAD_FIRST << 1 else 0
    if ended & OFFLOAD_FIN << first:
        follow(worker, connection, FIN, first)
    if ended & OFFLOAD_FIN << 1 - first:
        follow(worker, connection, FIN, 1 - first)
    if ended & OFFLOAD_RST << first:
        follow(worker, connection, RST, first)
    if ended & OFFLOAD_RST << 1 - first:
        follow(worker, connection, RST, 1 - first)


cdef void follow(worker_t* worker, connection_t* connection, uint8_t segment, bint reply) noexcept nogil:
    """Track a segment, beside its ACK, of one end that did not come up; of SCTP it is an ABORT."""
    cdef packet_t packet
    memset(&packet, 0, sizeof(packet_t))
    packet.protocol = connection.protocol
    packet.chunk = ABORT_CAME
    packet.segment = segment | ACK
    track(worker.table, worker.snapshot, connection, &packet,
          FROM_SERVER if reply else CLIENT_ONLY if connection.flags & NO_OUTPUT else FROM_CLIENT, worker.now)


# -- first packets ----------------------------------------------------------------------------------------------------

cdef uint8_t answer_late(worker_t* worker, packet_t* packet, uint8_t reason) noexcept nogil:
    """A reply that was under way when its flow went on with another real server; `reason` when it is none."""
    cdef connection_t* connection = find(worker.table, packet, flow_hash(worker.table, packet, True), LATE_REPLY)
    if connection == NULL:
        return reason
    count_out(worker.telemetry, connection, packet)
    return reply_on(packet, connection)


cdef uint8_t reply_on(packet_t* packet, const connection_t* connection) noexcept nogil:
    """To the client, which may be this machine."""
    cdef uint8_t reason = nat_reply(packet, connection)
    if reason == RETURNED and is_bulk(packet) and packet.hook == INPUT:
        finish_bulk(packet)
    return reason


cdef inline bint is_here(worker_t* worker, const connection_t* connection) noexcept nogil:
    """Whether the real server is this machine."""
    cdef const hop_t* hop = <hop_t*>load_pointer(<void**>&worker.hops[connection.slot], SEQUENTIAL)
    return hop != NULL and hop.local


cdef uint8_t admit(worker_t* worker, const packet_t* packet, bint moved, connection_t** connection) noexcept nogil:
    """A packet without a connection: find its service, let the scheduler choose, insert. PARSED when there is one
    now. One whose connection is `moved` need not begin it.
    """
    cdef table_t* table = worker.table
    cdef service_t* service = classify(worker.snapshot, packet, not from_server(packet))
    cdef address_t network
    cdef advice_t advice
    cdef uint64_t hash, root
    cdef uint8_t reason = PARSED
    if service == NULL:
        return UNRELATED if from_server(packet) else NO_SERVICE
    if packet.protocol != UDP and not moved and not begins(worker.snapshot, packet):
        return NO_CONNECTION if worker.snapshot.no_connection == PASS else REFUSED
    if worker.behind:
        return SHED
    if drops_packet(&table.defence):
        return DROP_PACKET
    if is_full(worker, service):
        return LIMITED
    hash = root = flow_hash(table, packet, False)
    if service.persistence:
        network.high = packet.source.high & service.mask.high
        network.low = packet.source.low & service.mask.low
        root = hash_endpoint(table.key, &network, 0, service.template_protocol)
        if service.by_call and not hash_call(table, packet, &network, &root):
            return NO_CALL_ID
    ask(worker, service, packet, &network, root, &advice)
    hold(table, hash, root)
    connection[0] = find(table, packet, hash, REQUEST)        # another worker may have been first
    if connection[0] == NULL:
        if service.persistence:
            reason = stay(worker, service, packet, hash, &network, root, &advice, connection)
        else:
            reason = begin(worker, service, packet, hash, choose(worker, service, packet, &advice), connection)
    let_go(table, hash, root)
    return reason


cdef bint hash_call(const table_t* table, const packet_t* packet, const address_t* network,
                    uint64_t* hash) noexcept nogil:
    """The hash of a call: of a client, or its network, and the Call-ID of its datagram; False where it has none."""
    cdef uint32_t begin = packet.transport + UDP_HEADER
    cdef uint32_t at, size
    if packet.protocol != UDP or packet.length <= begin or packet.captured < packet.length:
        return False
    at = find_call_id(packet.data + begin, packet.length - begin, &size)
    if at == 0:
        return False
    hash[0] = hash_text(table.key, network, packet.data + begin + at, size)
    return True


cdef inline void ask(worker_t* worker, service_t* service, const packet_t* packet, const address_t* network,
                     uint64_t root, advice_t* advice) noexcept nogil:
    """Have schedulers in Python choose, unless the client has its server. The caller holds no lock."""
    cdef bint keeps = False
    advice.live = advice.candidate = -1
    if service.advisor == NULL and (service.shadow == NULL or service.shadow.service.advisor == NULL):
        return
    if service.persistence:
        hold(worker.table, root, root)
        keeps = kept(worker, service, find_template(worker.table, service, network, root)) >= 0
        let_go(worker.table, root, root)
    if not keeps:
        advice.live = advised(service, packet, worker.table.loads, worker.now)
        if service.shadow != NULL:
            advice.candidate = advised(service.shadow.service, packet, worker.table.loads, worker.now)


cdef inline int32_t choose(worker_t* worker, service_t* service, const packet_t* packet,
                           const advice_t* advice) noexcept nogil:
    """The server for a new connection, or -1: what was advised, else what the scheduler says. A shadow is asked, too.
    """
    cdef const load_t* loads = worker.table.loads
    cdef service_t* shadow
    cdef int32_t chosen = advice.live
    cdef int32_t candidate = advice.candidate
    if chosen < 0:
        chosen = pick(service, packet, loads, worker.now, &worker.random)
    if service.shadow != NULL:
        shadow = service.shadow.service
        if candidate < 0:
            candidate = pick(shadow, packet, loads, worker.now, &worker.random)
        compare(service, packet, chosen, candidate)
    return chosen


cdef inline int32_t kept(worker_t* worker, const service_t* service, const connection_t* template) noexcept nogil:
    """The server that a template leads to, -1 where there is none, or it is not to lead there any more."""
    cdef int32_t at
    if template == NULL:
        return -1
    at = position(service, template.slot)
    if at < 0 or not worker.snapshot.available[template.slot] & AVAILABLE \
            or (service.servers[at].weight == 0 and (service.moves_quiesced or worker.snapshot.moves_quiesced)):
        return -1
    return at


cdef inline bint is_full(worker_t* worker, const service_t* service) noexcept nogil:
    """Whether the service, or all of them, have as many connections as they may; each worker may add one at that."""
    cdef table_t* table = worker.table
    cdef uint32_t slot
    if worker.snapshot.limit != 0 and load32(&table.used, RELAXED) >= worker.snapshot.limit:
        return True
    if service.limit == 0 or service.count == 0:
        return False
    slot = service.servers[0].slot
    return load32(&table.totals[table.loads[slot].group], RELAXED) >= service.limit


cdef uint8_t begin(worker_t* worker, service_t* service, const packet_t* packet, uint64_t hash, int32_t chosen,
                   connection_t** connection) noexcept nogil:
    """A connection with the real server that was chosen; the caller holds its bucket."""
    cdef connection_t* entry = &worker.single
    cdef bint single = service.one_packet and packet.protocol == UDP
    cdef server_t* server
    if chosen < 0:
        return NO_SERVER
    if not single:
        entry = take(worker.table)
    if entry == NULL:
        return TABLE_FULL
    server = &service.servers[chosen]
    entry.client = packet.source
    entry.virtual = packet.destination
    entry.server = server.address
    entry.cport = packet.sport
    entry.vport = packet.dport
    entry.sport = server.port or packet.dport
    if service.persistence and packet.dport != service.port:
        entry.sport = packet.dport                            # (ip_vs_sched_persist)
    entry.protocol = packet.protocol
    entry.flags = server.method if server.method == NAT else server.method | NO_OUTPUT
    entry.slot = server.slot
    entry.inpackets = 0
    entry.control = entry.children = 0
    entry.hash = hash
    if service.scheduler == EWMA and not single:
        entry.began = worker.micro or 1
    # where its first packet will put it (ip_vs_conn_new says 3 s, until that packet is tracked)
    entry.expires = worker.now + timeouts_of(worker.snapshot, entry)[
        kind_of(packet.protocol, SYN_RECV if packet.protocol == TCP else INIT1)]
    is_overloaded(server, worker.table.loads)                 # not any more, perhaps: nobody looks who was not chosen
    if service.shadow != NULL:
        is_overloaded(&service.shadow.service.servers[chosen], worker.table.loads)
    if single:
        entry.flags |= ONE_PACKET
    else:
        show(worker.table, entry, NEWBORN)
    if note_connection(service, server, worker.table.loads):
        note_load(worker.table, server.slot)
    if service.shadow != NULL:
        note_connection(service.shadow.service, &service.shadow.service.servers[chosen], worker.table.loads)
    worker.telemetry.slots[server.slot].connections += 1
    connection[0] = entry
    return PARSED


cdef uint8_t stay(worker_t* worker, service_t* service, const packet_t* packet, uint64_t hash,
                  const address_t* network, uint64_t root, const advice_t* advice,
                  connection_t** connection) noexcept nogil:
    """A connection with the real server that the client, or its network, had before: its template says which, whatever
    the server's weight and thresholds (ip_vs_sched_persist). Without a template the scheduler chooses, and there is one
    from now on. The caller holds the buckets of both.
    """
    cdef table_t* table = worker.table
    cdef connection_t* template = find_template(table, service, network, root)
    cdef int32_t chosen = kept(worker, service, template)
    cdef bint again = chosen >= 0
    cdef uint8_t reason
    if not again:
        if template != NULL:
            abandon(table, template, worker.now)
        chosen = choose(worker, service, packet, advice)
        if chosen < 0:
            return NO_SERVER
        template = take(table)
        if template == NULL:
            return TABLE_FULL
        lead(template, service, network, chosen)
        template.hash = root
        template.expires = worker.now + service.persistence
        show(table, template, LIVE | INACTIVE)
    reason = begin(worker, service, packet, hash, chosen, connection)
    if reason != PARSED:
        return reason
    if not connection[0].flags & ONE_PACKET:
        add32(&template.children, 1, RELAXED)
        connection[0].control = <uint32_t>(template - table.entries)
    elif again:
        become(table, template, ASSURED)                     # it has no connections that could be answered
    store32(&template.expires, worker.now + service.persistence, RELAXED)
    if template.expires < load32(&template.due, RELAXED):
        hasten(table, template)
    return PARSED


cdef void lead(connection_t* template, const service_t* service, const address_t* network,
               int32_t chosen) noexcept nogil:
    """Fill in where connections of this network to this service go."""
    cdef const server_t* server = &service.servers[chosen]
    template.client = network[0]
    template.virtual = service.template_address
    template.server = server.address
    template.cport = 0
    template.vport = service.template_port
    template.sport = server.port
    template.protocol = service.template_protocol
    template.flags = TEMPLATE | server.method | (CALL if service.by_call else 0)
    template.slot = server.slot
    template.inpackets = 0
    template.control = template.children = 0


cdef uint8_t relate(worker_t* worker, packet_t* error) noexcept nogil:
    """An ICMP error goes the way of the connection whose packet it quotes; state and timer stay as they are."""
    cdef bint reply = from_server(error)
    cdef connection_t* connection
    cdef packet_t quoted, turned
    cdef uint8_t reason
    if parse_quoted(error, &quoted) != PARSED:
        return relate_tunnel(worker, error)
    turned = quoted                                          # a packet that goes the way of the error
    turned.source, turned.destination = quoted.destination, quoted.source
    turned.sport, turned.dport = quoted.dport, quoted.sport
    connection = look_up(worker, &turned, reply)
    if connection == NULL:
        reply = not reply
        connection = look_up(worker, &turned, reply)
    if connection == NULL:
        return ICMP_MESSAGE
    if not is_sound(error):
        return BAD_CHECKSUM
    if reply:
        count_out(worker.telemetry, connection, error)
        worker.telemetry.slots[connection.slot].refused += is_unreachable(error)
    elif not has_server(worker, connection):
        return SERVER_GONE
    else:
        count_in(worker.telemetry, connection, error)
    if connection.flags & METHOD != NAT:
        reason = send_on(worker, error, connection, 0)
        if reason == MARKED:
            return ERROR_MARKED
        return ERROR_ROUTED if reason == ROUTED or reason == TUNNELLED else reason
    nat_error(error, &quoted, connection, reply)
    return ERROR_RETURNED if reply else ERROR_FORWARDED


cdef uint8_t relate_tunnel(worker_t* worker, const packet_t* error) noexcept nogil:
    """An ICMP error about a packet of a tunnel comes to us, its sender; the client hears of it in its own terms, a
    smaller MTU is kept for PATH_LIFE. What the client did not forbid to cut is cut from now on, and not worth a word.
    """
    cdef packet_t inside
    cdef connection_t* connection
    cdef path_t* path
    cdef uint32_t mtu
    if parse_inside(error, &inside) != PARSED:
        return ICMP_MESSAGE
    connection = look_up(worker, &inside, False)
    if connection == NULL or connection.flags & METHOD != TUNNEL:
        return ICMP_MESSAGE
    if not is_sound(error):
        return BAD_CHECKSUM
    mtu = told_mtu(error)
    if mtu:
        if error.version == 4:
            mtu = max(<uint32_t>LEAST_MTU4, mtu) - IP4_HEADER
        else:
            mtu = max(<uint32_t>LEAST_MTU6, mtu) - IP6_HEADER
        path = &worker.paths[connection.slot]
        path.mtu = mtu
        path.until = worker.now + PATH_LIFE
        catch_up(worker, connection)
        come_up(worker, connection)                          # its next place has that MTU
        if error.version == 4 and not get16(inside.data + IP4_FRAGMENT) & DONT_FRAGMENT:
            return ERROR_REISSUED
    reissue(worker.outbox, error, &inside, mtu, <uint64_t>worker.now * TICK)
    return ERROR_REISSUED


cdef inline connection_t* look_up(worker_t* worker, const packet_t* packet, bint reply) noexcept nogil:
    return find(worker.table, packet, flow_hash(worker.table, packet, reply), REPLY if reply else REQUEST)


cdef inline uint16_t allowed_mss(worker_t* worker, const packet_t* packet,
                                 const connection_t* connection) noexcept nogil:
    """What a SYN or SYN/ACK may announce by its service; 0: anything, or the packet is neither."""
    return worker.snapshot.mss[connection.slot] if packet.segment & SYN and has_server(worker, connection) else 0


cdef inline bint begins(const snapshot_t* snapshot, const packet_t* packet) noexcept nogil:
    """Whether a TCP segment may begin a connection: a SYN; any but RST where mid-stream segments may, too. Of SCTP
    INIT, and any but ABORT.
    """
    if packet.protocol == SCTP:
        return packet.chunk == INIT_CAME or (snapshot.sloppy_sctp and packet.chunk != ABORT_CAME)
    return packet.segment & (RST if snapshot.sloppy else SYN | RST) == (0 if snapshot.sloppy else SYN)


cdef inline bint from_server(const packet_t* packet) noexcept nogil:
    """Replies are taken where they are forwarded, or delivered to the director's own clients."""
    return packet.hook == FORWARD or packet.hook == INPUT


cdef inline uint8_t fate_of(worker_t* worker, const connection_t* connection) noexcept nogil:
    """What the snapshot says of its real server: AVAILABLE, or what becomes of its connections."""
    return worker.snapshot.available[connection.slot] if connection.slot < worker.snapshot.slot_count else 0


cdef inline bint has_server(worker_t* worker, const connection_t* connection) noexcept nogil:
    return fate_of(worker, connection) & (AVAILABLE | KEEPS) != 0


cdef inline bint is_first(const packet_t* packet) noexcept nogil:
    """Whether a packet that is no datagram can only begin a connection: a SYN, an INIT."""
    return packet.chunk == INIT_CAME if packet.protocol == SCTP else packet.segment & (SYN | RST) == SYN


cdef inline bint ends(const packet_t* packet) noexcept nogil:
    return packet.chunk == ABORT_CAME if packet.protocol == SCTP else packet.segment & RST != 0


cdef inline bint outlived(worker_t* worker, const connection_t* connection, const packet_t* packet) noexcept nogil:
    """Whether a request starts anew on the ports of an old connection: then it is scheduled as a new one, at once.

    A SYN on a connection that closes, unless a template holds it (ip_vs_core.c, is_new_conn_expected); and, unlike the
    kernel, whatever may start a connection when the real server was removed, instead of dropping it until it expires.
    With `expires_orphans` a SYN leaves a real server of weight 0, too, and what starts nothing outlives one that was
    removed. Of one that is down datagrams go elsewhere, and segments where its connections move.
    """
    cdef const snapshot_t* snapshot = worker.snapshot
    cdef uint8_t fate = fate_of(worker, connection)
    if not fate & AVAILABLE:
        if packet.protocol == UDP or is_first(packet):
            return True
        if fate & MOVES:
            return not ends(packet)
        return fate == 0 and snapshot.expires_orphans
    if packet.protocol == UDP:
        return snapshot.moves_datagrams and fate & QUIESCED and may_leave(worker, connection, fate)
    if not is_first(packet):
        return False
    return (snapshot.expires_orphans and fate & QUIESCED) \
        or (snapshot.reuse and connection.control == 0 and closes(connection, snapshot.reuse))


cdef inline bint may_leave(worker_t* worker, const connection_t* connection, uint8_t fate) noexcept nogil:
    """Whether a flow that leaves a real server of weight 0 gets another one: its template would lead it back else."""
    return not fate & LEADS or connection.control == 0 or worker.table.entries[connection.control].flags & LEFT


cdef inline bint closes(const connection_t* connection, uint8_t reuse) noexcept nogil:
    """Whether the client may use its port for something new: FIN_WAIT is the last that is seen of a connection whose
    replies do not pass here.
    """
    cdef unsigned int state = (connection.word & STATE_MASK) >> STATE_SHIFT
    if connection.protocol == SCTP:
        return state == CLOSED
    return state == TIME_WAIT or state == CLOSE \
        or (state == FIN_WAIT and reuse & REUSE_FIN_WAIT and connection.flags & NO_OUTPUT)


# -- connections that go without a packet -----------------------------------------------------------------------------

cdef inline void enter_anew(worker_t* worker) noexcept nogil:
    """A batch without packets, by the configuration that there is now."""
    enter(worker.table, worker.reader)
    worker.snapshot = <snapshot_t*>load_pointer(<void**>worker.published, SEQUENTIAL)


cdef int sweep_group(worker_t* worker, uint32_t first, uint32_t now) noexcept nogil:
    """Go through GROUP places of the table; how many connections were ended."""
    cdef connection_t* connection
    cdef uint32_t index
    cdef uint8_t fate
    cdef int gone = 0
    enter_anew(worker)
    for index in range(first, min(first + GROUP, load32(&worker.table.untouched, RELAXED))):
        connection = &worker.table.entries[index]
        if load32(&connection.word, ACQUIRE) & LIFE != LIVE or connection.flags & (TEMPLATE | LEFT):
            continue
        fate = fate_of(worker, connection)
        if connection.protocol == UDP and (not fate & AVAILABLE or (
                worker.snapshot.moves_datagrams and fate & QUIESCED and may_leave(worker, connection, fate))):
            abandon(worker.table, connection, now)
            gone += 1
        elif connection.protocol != UDP and worker.snapshot.expires_orphans and fate == 0:
            gone += remove(worker.table, connection)
    leave(worker.table, worker.reader)
    return gone


class Result(NamedTuple):
    """What became of a packet: verdict "accept", "drop", "rewrite", "transmit" or "mark", the reason's name, and the
    bytes that go on instead (rewrite) or to the real server as a frame (transmit).
    """

    verdict: str
    reason: str
    packet: bytes | None


class Drained(NamedTuple):
    """Totals since the start: packets by reason, and for each slot
    (connections, packets in, packets out, bytes in, bytes out, ActiveConn, InActConn, PersistConn, microseconds to
    reply as ewma reckons, 0 where nothing is known).
    """

    reasons: dict[str, int]
    slots: dict[int, tuple[int, int, int, int, int, int, int, int, int]]
    batches: int
    packets: int


cdef class Datapath:
    """One director's data path over a connection table. `publish`, `aim` and `drain` are all that the control plane
    does to it.
    """

    def __cinit__(self, Table table not None):
        self.table = table
        self.ways = {}
        self.beyond = {}
        self.offload = None
        self.hops = <hop_t**>calloc(table.table.slot_count, sizeof(hop_t*))
        self.nexts = <hop_t**>calloc(table.table.slot_count, sizeof(hop_t*))
        self.turns = <uint32_t*>calloc(table.table.slot_count, sizeof(uint32_t))
        self.paths = <path_t*>calloc(table.table.slot_count, sizeof(path_t))
        self.seen = <uint64_t*>calloc(table.table.slot_count, sizeof(uint64_t))
        if self.hops == NULL or self.nexts == NULL or self.turns == NULL or self.paths == NULL or self.seen == NULL:
            raise MemoryError
        self.retired = []
        self.workers = []
        memset(self.table.table.watch, 0, self.table.table.slot_count * sizeof(void*))
        self.publish(Snapshot(()))

    def __dealloc__(self):
        free(self.hops)
        free(self.nexts)
        free(self.turns)
        free(self.paths)
        free(self.seen)

    def publish(self, Snapshot snapshot not None) -> None:
        """Put a configuration before the workers; their next batch goes by it. Never waits for them."""
        cdef Service service
        for service in snapshot.services:
            while service is not None:
                recall(service.service, self.table.table.loads)
                service = service.shadow
        self._watch(snapshot)
        store_pointer(<void**>&self.published, <void*>snapshot.snapshot, SEQUENTIAL)
        self._retire(self.current)
        self.current = snapshot
        if self.follower is not None:                        # flows that do not fit any more come up
            self.follower.look()

    def aim(self, uint32_t slot, Hop hop) -> None:
        """From the next batch on, packets for the real server of this slot go that way; None: there is no way."""
        if slot >= self.table.table.slot_count:
            raise IndexError(slot)
        store_pointer(<void**>&self.hops[slot], NULL if hop is None else <void*>&hop.hop, SEQUENTIAL)
        self._retire(self.ways.pop(slot, None))
        if hop is not None:
            self.ways[slot] = hop

    def release(self, uint32_t slot) -> bool:
        """Let another real server have a slot that no snapshot names since long ago, and its counters begin anew;
        False, and nothing is done, while a connection or a template is there.
        """
        cdef Worker worker
        if not 0 < slot < self.table.table.slot_count:
            raise IndexError(slot)
        if not self.table.free_slot(slot):
            return False
        self.aim(slot, None)
        self.lead(slot, None)
        memset(&self.paths[slot], 0, sizeof(path_t))
        for worker in self.workers:
            memset(&worker.worker.telemetry.slots[slot], 0, sizeof(counter_t))
        self.seen[slot] = 0
        return True

    def _watch(self, Snapshot snapshot) -> None:
        """Have the rankings of its services told of loads, and its advisors know their servers, instead of the last's.
        """
        cdef Service service
        old = set() if self.current is None else self.current.ranked
        for service in old - snapshot.ranked:
            detach(self.table.table, service.service)
        for service in snapshot.ranked - old:
            attach(self.table.table, service.service)
        old = set() if self.current is None else self.current.advised
        for service in snapshot.advised - old:
            while service is not None:
                if service.advisor is not None:
                    service.advisor.bind(self.table, service.service)
                service = service.shadow

    def lead(self, uint32_t slot, Hop hop) -> None:
        """Where flows to the real server of this slot leave when the kernel forwards them by itself; None: they don't.
        For NAT, which the kernel routes, only its MTU counts. Those that go another way now come up.
        """
        if slot >= self.table.table.slot_count:
            raise IndexError(slot)
        store_pointer(<void**>&self.nexts[slot], NULL if hop is None else <void*>&hop.hop, SEQUENTIAL)
        add32(&self.turns[slot], 1, SEQUENTIAL)
        self._retire(self.beyond.pop(slot, None))
        if hop is not None:
            self.beyond[slot] = hop
        if self.follower is not None:
            self.follower.look()

    def hand_down(self, Offload offload not None) -> None:
        """Let the kernel forward what is established from now on. Once, and the offload stays."""
        cdef Worker worker
        if self.offload is not None:
            raise ValueError("there is an offload already")
        self.offload = offload
        store_pointer(&self.table.table.offload, &offload.offload, SEQUENTIAL)
        for worker in self.workers:
            worker.worker.nominees = <nominees_t*>calloc(1, sizeof(nominees_t))
            if worker.worker.nominees == NULL:
                raise MemoryError

    def announce(self, unsigned int threshold = 3, unsigned int period = 50, unsigned int refresh = 0,
                 unsigned int retries = 0, bint spares_children = False) -> None:
        """Have workers say which connections peers are to hear of; the numbers are those of the kernel's
        sync_threshold, sync_refresh_period (seconds), sync_retries and sync_persist_mode. A Mirror sends them.
        """
        cdef Worker worker
        cdef table_t* table = self.table.table
        cdef told_t* told = table.told
        self.rules.threshold = threshold
        self.rules.period = period
        self.rules.refresh = refresh * 10
        self.rules.retries = retries
        self.rules.spares_children = spares_children
        if told == NULL:
            told = <told_t*>anonymous((<size_t>table.capacity + 1) * sizeof(told_t))
            if told == NULL:
                raise MemoryError
            store_pointer(<void**>&table.told, told, SEQUENTIAL)
        elif not self.announces:                             # what peers knew is of another time
            memset(told, 0, (<size_t>table.capacity + 1) * sizeof(told_t))
        self.announces = True
        for worker in self.workers:
            worker.speak()

    def stand_by(self, on: bool) -> None:
        """While it is on, requests are for the local stack: this director is a backup, and a real server of the master
        (net.ipv4.vs.backup_only). What the kernel forwards by itself comes up.
        """
        cdef uint32_t slot
        cdef bint turned = on and not self.standby
        store32(&self.standby, 1 if on else 0, SEQUENTIAL)
        if turned:                                           # after it: what looks at the turn first goes no further
            for slot in range(self.table.table.slot_count):
                add32(&self.turns[slot], 1, SEQUENTIAL)
        if self.follower is not None:
            self.follower.look()

    def fall_silent(self) -> None:
        """Announce nothing any more."""
        cdef Worker worker
        self.announces = False
        for worker in self.workers:
            store_pointer(<void**>&worker.worker.ring, NULL, SEQUENTIAL)

    def _retire(self, old) -> None:
        """Keep what a batch may still read, and let go what none can."""
        self.retired = [(epoch, kept) for epoch, kept in self.retired if not passed(self.table.table, epoch)]
        if old is not None:
            self.retired.append((add64(&self.table.table.epoch, 1, SEQUENTIAL), old))

    def sweep(self, now: int) -> int:
        """End what the configuration lets go at once, without waiting for its next packet: UDP of real servers that are
        gone, and where the options say so of those of weight 0, and TCP of those that are gone; how many (ip_vs_conn.c,
        ip_vs_expire_nodest_conn_flush). One caller at a time; packets go on meanwhile.
        """
        cdef uint32_t tick = now // TICK
        cdef uint32_t index
        cdef int gone = 0
        if self.sweeper is None:
            self.sweeper = Worker(self, None)
        cdef worker_t* worker = &self.sweeper.worker
        with nogil:
            index = 1
            while index < load32(&worker.table.untouched, RELAXED):
                gone += sweep_group(worker, index, tick)
                index += GROUP
        return gone

    def defend(self, now: int) -> int:
        """Once a second: say which defences are up, and where drop_entry is, end some connections before their time;
        how many. One caller at a time, and none of `sweep` meanwhile.
        """
        cdef uint32_t tick = now // TICK
        cdef uint32_t groups, first
        cdef int gone = 0
        if self.sweeper is None:
            self.sweeper = Worker(self, None)
        cdef worker_t* worker = &self.sweeper.worker
        with nogil:
            groups = (load32(&worker.table.untouched, RELAXED) + GROUP - 2) // GROUP
            enter_anew(worker)
            weigh(worker.table, worker.snapshot)
            leave(worker.table, worker.reader)
            if groups != 0 and worker.table.defence.drops_entries:
                for _ in range((groups + PART - 1) // PART):
                    first = 1 + GROUP * <uint32_t>(draw(&worker.random) % groups)
                    enter_anew(worker)
                    gone += evict(worker.table, worker.snapshot, first,
                                  min(first + GROUP, load32(&worker.table.untouched, RELAXED)), tick)
                    leave(worker.table, worker.reader)
        return gone

    @property
    def defences(self) -> dict[str, int]:
        """Whether drop_entry and secure_tcp are up, of how many first packets drop_packet drops one (0: none), and how
        many connections ended before their time, modulo 2**32.
        """
        cdef table_t* table = self.table.table
        return {
            "drop_entry": table.defence.drops_entries, "drop_packet": table.defence.drop_rate,
            "secure_tcp": table.secure, "evicted": table.defence.evicted,
        }

    def worker(self, *, seed: int | None = None) -> Worker:
        """A new worker; each belongs to one thread at a time. What it leaves to chance follows from the 64-bit `seed`,
        if there is one.
        """
        worker = Worker(self, seed)
        self.workers.append(worker)
        if self.announces:
            worker.speak()
        return worker

    def drain(self) -> Drained:
        """Read all counters. They only grow; reading takes nothing away."""
        cdef Worker worker
        cdef int i
        reasons = [0] * REASONS
        batches = packets = 0
        if self.follower is not None:
            self.follower.count()
        for worker in self.workers:
            for i in range(<int>REASONS):
                reasons[i] += worker.worker.telemetry.reasons[i]
            batches += worker.worker.telemetry.batches
            packets += worker.worker.telemetry.packets
        return Drained(dict(zip(REASON_NAMES, reasons)), self.counted(self.table.numbers.values()), batches, packets)

    def counted(self, slots: Iterable[int]) -> dict[int, tuple]:
        """The rows of these slots, as in Drained."""
        cdef Worker worker
        cdef counter_t* counter
        cdef counter_t total
        cdef load_t* now
        cdef uint32_t slot
        found = {}
        for slot in slots:
            if slot >= self.table.table.slot_count:
                raise IndexError(slot)
            memset(&total, 0, sizeof(counter_t))
            for worker in self.workers:
                counter = &worker.worker.telemetry.slots[slot]
                total.connections += counter.connections
                total.inpackets += counter.inpackets
                total.outpackets += counter.outpackets
                total.inbytes += counter.inbytes
                total.outbytes += counter.outbytes
            now = &self.table.table.loads[slot]
            found[slot] = (
                total.connections, total.inpackets, total.outpackets, total.inbytes, total.outbytes,
                now.active, now.inactive, now.persistent, now.latency,
            )
        return found

    def handshakes(self, slots: Iterable[int]) -> dict[int, tuple[int, int, int]]:
        """Of each of these slots: connections answered, refused, and not answered, since the start."""
        cdef Worker worker
        cdef counter_t* counter
        cdef uint64_t answered, refused, unanswered
        cdef uint32_t slot
        found = {}
        for slot in slots:
            if slot >= self.table.table.slot_count:
                raise IndexError(slot)
            answered = refused = unanswered = 0
            for worker in self.workers:
                counter = &worker.worker.telemetry.slots[slot]
                answered += counter.answered
                refused += counter.refused
                unanswered += counter.unanswered
            found[slot] = (answered, refused, unanswered)
        return found

    def moved(self) -> dict[int, tuple]:
        """The rows of the slots that had connections or packets since this was called last."""
        cdef Worker worker
        cdef counter_t* counter
        cdef uint32_t slot
        cdef uint64_t total
        found = []
        for slot in range(1, self.table.table.slot_count):
            total = 0
            for worker in self.workers:
                counter = &worker.worker.telemetry.slots[slot]
                total += counter.connections + counter.inpackets + counter.outpackets
            if total != self.seen[slot]:
                self.seen[slot] = total
                found.append(slot)
        return self.counted(found)


cdef class Worker:
    """One thread's way through the data path. Get one from Datapath.worker()."""

    def __cinit__(self, Datapath datapath not None, seed: int | None):
        self.datapath = datapath
        self.worker.table = datapath.table.table
        self.worker.published = &datapath.published
        self.worker.hops = datapath.hops
        self.worker.nexts = datapath.nexts
        self.worker.turns = datapath.turns
        self.worker.standby = &datapath.standby
        self.worker.paths = datapath.paths
        self.worker.telemetry = telemetry_new(datapath.table.table.slot_count)
        self.worker.outbox = <outbox_t*>calloc(1, sizeof(outbox_t))
        if self.worker.outbox == NULL:
            raise MemoryError
        self.worker.reader = new_reader(datapath.table.table)
        self.worker.random = int.from_bytes(os.urandom(8)) if seed is None else seed

    def __dealloc__(self):
        telemetry_free(self.worker.telemetry)
        free(self.worker.outbox)
        free(self.worker.nominees)
        free(self.own_ring)

    cdef int speak(self) except -1:
        """Have a ring for what peers are to hear of."""
        if self.own_ring == NULL:
            self.own_ring = <ring_t*>cache_lines(sizeof(ring_t))
            if self.own_ring == NULL:
                raise MemoryError
            self.own_ring.rules = &self.datapath.rules
        store_pointer(<void**>&self.worker.ring, self.own_ring, SEQUENTIAL)
        return 0

    def process(self, packet: bytes, now: int, *, int hook = 0, unsigned int mark = 0, int flags = 0,
                bint behind = False) -> Result:
        """One packet as a batch of its own, at `now` (CLOCK_BOOTTIME, nanoseconds); pure but for the table and
        counters.

        `hook` is netfilter's (0 PREROUTING, 1 INPUT, 2 FORWARD, 3 OUTPUT), `flags` those of NFQA_SKB_INFO and HEAD (8).
        While `behind`, more comes than can be taken, and no connection is begun.
        Everything that timed out by `now` is gone before the packet is looked at.
        """
        cdef uint64_t when = now
        self.expire(now)
        self.buffer = bytearray(packet)
        self.worker.behind = behind
        load(&self.packet, self.buffer, len(self.buffer), hook, flags, mark)
        with nogil:
            run_batch(&self.worker, &self.packet, 1, when, 0)
        new = None
        if self.packet.verdict == REWRITE or self.packet.verdict == TRANSMIT:
            new = bytes(self.packet.outer[:self.packet.outer_length]) + bytes(self.buffer)
        return Result(VERDICT_NAMES[self.packet.verdict], REASON_NAMES[self.packet.reason], new)

    @property
    def mark(self) -> int:
        """The netfilter mark of the last packet that `process` had; with verdict "mark", the one to go on with."""
        return self.packet.mark

    def outgoing(self) -> list[bytes]:
        """Packets of our own that the last batch wants sent: answers to clients that no real server gets."""
        cdef outbox_t* outbox = self.worker.outbox
        cdef uint32_t i
        packets = []
        for i in range(outbox.count):
            packets.append(outbox.messages[i].data[:outbox.messages[i].length])
        return packets

    def expire(self, now: int, int budget = 0x7fffffff) -> int:
        """End what timed out by `now`, `budget` steps long; returns how many connections ended."""
        cdef uint32_t tick = now // TICK
        cdef int gone
        with nogil:
            enter(self.worker.table, self.worker.reader)
            gone = expire(self.worker.table, tick, budget)
            leave(self.worker.table, self.worker.reader)
        return gone

    def settle(self, drained: bool) -> None:
        """After the verdict of `process`: have the kernel forward its connection, if it is one to hand down. `drained`
        says that no other packet waits.
        """
        if self.worker.nominees != NULL:
            settle(&self.worker, drained)
