"""The table as peers have it: what they are told, and what they tell us.

Strategy. One thread calls all of this. What workers announced is read from the table when it is sent; a walk over the
whole table, a bounded part at a time, adds what no packet speaks of: connections that the kernel forwards by itself,
those that were established before they had the packets that the threshold wants, and those whose timer moved on so far
that peers would end them too early. A record that comes in is bound to a real server of the configuration that there is
now, or it is not entered: a connection never leads to a server that nobody asked for. Those without one are kept aside,
each once, and tried again when the configuration changes. What a peer told is known to be told, so two directors that
are master and backup of each other do not tell it each other over and over.
"""
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memset

from nfqlb._core.announce cimport RING, is_established, may_tell, ring_t
from nfqlb._core.atomic cimport ACQUIRE, RELAXED, RELEASE, SEQUENTIAL, load32, load_pointer, prefetch, store32
from nfqlb._core.connection cimport (
    abandon,
    enter,
    find,
    find_template,
    hasten,
    hold,
    leave,
    let_go,
    remove,
    show,
    take,
)
from nfqlb._core.datapath cimport Datapath, Worker, worker_t
from nfqlb._core.hash cimport hash_endpoint, hash_text
from nfqlb._core.load cimport is_overloaded, note_connection
from nfqlb._core.ranking cimport note_load
from nfqlb._core.snapshot cimport classify
from nfqlb._core.sync cimport (
    FORWARD_ROUTE,
    FORWARD_TUNNEL,
    GOOD,
    HEADER1,
    LONGEST_RECORD,
    SYNC_INACTIVE,
    SYNC_NO_CPORT,
    SYNC_NO_OUTPUT,
    SYNC_ONE_PACKET,
    SYNC_TEMPLATE,
    UNKNOWN,
    add_record,
    begin_message,
    cursor_t,
    draft_t,
    end_message,
    fault_t,
    next_record,
    open_message,
    record_t,
)
from nfqlb._core.tracking cimport ASSOCIATION_STATES, STATES, become, is_active, kind_of, timeouts_of
from nfqlb._core.types cimport (
    ASSURED,
    CALL,
    DIRECT,
    FTP,
    INACTIVE,
    LIFE,
    LIVE,
    LONGEST,
    METHOD,
    NAT,
    NO_OUTPUT,
    REQUEST,
    SCTP,
    STATE_MASK,
    STATE_SHIFT,
    TCP,
    TEMPLATE,
    TICK,
    TUNNEL,
    UDP,
    address_t,
    connection_t,
    packet_t,
    server_t,
    service_t,
    snapshot_t,
    table_t,
    told_t,
)
from nfqlb._core.wire cimport is_mapped, same

from nfqlb._core.sync import FAULTS

cdef enum:
    GROUP = 256                          # places in one batch: others' entries are used again in between
    STEP = 20                            # ticks that a timer may be behind at a peer
    OLD_TEMPLATE = 180                   # seconds of a template of version 0 (IP_VS_SYNC_CONN_TIMEOUT)
    CACHE = 4096                         # real servers found last, a power of two
    ASIDE_MAX = 65536                    # records without a server

cdef enum outcome_t:
    ENTERED = 0
    UPDATED
    STALE                                # of a connection that is over, and its ports are another's
    UNBOUND                              # its server is not one of ours
    REFUSED                              # it makes no sense here
    FULL
    OUTCOMES

OUTCOME_NAMES: tuple[str, ...] = ("entered", "updated", "stale", "unbound", "refused", "full")


cdef struct found_t:                     # a real server by its end, in the snapshot that is known
    const service_t* service
    uint32_t index


cdef class Mirror:
    """What a datapath and its peers tell each other. One thread at a time."""

    cdef Datapath datapath
    cdef Worker own                      # a reader of the table
    cdef dict aside                      # key -> (record as a message, tick at which it ends)
    cdef uint32_t walked                 # place at which the walk goes on
    cdef uint64_t counts[OUTCOMES]
    cdef uint64_t told                   # records
    cdef uint64_t malformed              # messages that came
    cdef uint64_t unkept                 # records without a server that found no room aside
    cdef const snapshot_t* known         # the snapshot of `found`
    cdef found_t found[CACHE]

    def __cinit__(self, Datapath datapath not None):
        self.datapath = datapath
        self.own = Worker(datapath, None)
        self.aside = {}
        self.walked = 1

    # --- what peers are told ------------------------------------------------------------------------------------------

    def collect(self, now: int, int version, int id, unsigned int room, int most = 64) -> list[bytes]:
        """Messages of at most `room` bytes about what workers announced since, about `most` of them."""
        cdef Worker worker
        cdef draft_t draft
        cdef uint32_t tick = now // TICK
        cdef bint full
        messages = []
        buffer = begin_draft(&draft, room, version, id)
        for worker in self.datapath.workers:
            full = worker.own_ring != NULL and len(messages) < most
            while full:
                with nogil:
                    begin(self, tick)
                    full = write_ring(self, &draft, worker.own_ring)
                    end(self)
                if full:
                    messages.append(bytes(buffer[:end_message(&draft)]))
                    buffer = begin_draft(&draft, room, version, id)
                    full = len(messages) < most
        if draft.count:
            messages.append(bytes(buffer[:end_message(&draft)]))
        return messages

    def walk(self, now: int, int version, int id, unsigned int room, unsigned int places, int most = 64) -> list[bytes]:
        """Messages about what peers ought to know among the next so many places of the table; it goes round and round.
        """
        messages, self.walked = self._write(now, version, id, room, self.walked, places, most, False)
        self.walked = self.walked or 1
        return messages

    def dump(self, now: int, int id, unsigned int room, unsigned int first, unsigned int places) \
            -> tuple[list[bytes], int]:
        """Messages about all that is among so many places from `first` on, and the place to go on with: 0 behind the
        last. For a peer that knows nothing.
        """
        return self._write(now, 1, id, room, max(1, first), places, 0x7fffffff, True)

    def _write(self, now, int version, int id, unsigned int room, unsigned int first, unsigned int places, int most,
               bint whole):
        cdef draft_t draft
        cdef uint32_t tick = now // TICK
        cdef uint32_t last
        cdef bint full
        messages = []
        if self.datapath.table.table.told == NULL:
            return messages, 0
        buffer = begin_draft(&draft, room, version, id)
        last = min(<uint64_t>first + places, load32(&self.datapath.table.table.untouched, RELAXED))
        while first < last and len(messages) < most:
            with nogil:
                begin(self, tick)
                full = write_places(self, &draft, &first, min(first + GROUP, last), whole)
                end(self)
            if full:
                messages.append(bytes(buffer[:end_message(&draft)]))
                buffer = begin_draft(&draft, room, version, id)
        if draft.count:
            messages.append(bytes(buffer[:end_message(&draft)]))
        return messages, (first if first < load32(&self.datapath.table.table.untouched, RELAXED) else 0)

    # --- what they tell us --------------------------------------------------------------------------------------------

    def apply(self, data: bytes, now: int, int id = 0, bint whole = False) -> int:
        """Enter a message; how many records it had. ValueError for one that makes no sense, or with another sync id
        than `id` (0: any). With `whole` it is part of a whole table, and what is known from packets here stays.
        """
        cdef cursor_t cursor
        cdef record_t record
        cdef uint32_t tick = now // TICK
        cdef fault_t fault = open_message(&cursor, data, len(data))
        cdef outcome_t outcome = ENTERED
        cdef int count = 0
        if self.datapath.table.table.told == NULL:
            raise ValueError("sync is off")
        if fault == GOOD and id and cursor.id != id:
            raise ValueError("it has another sync id")
        while fault == GOOD and cursor.left:
            with nogil:
                begin(self, tick)
                while cursor.left:
                    fault = next_record(&cursor, &record)
                    count += 1
                    if fault == UNKNOWN:
                        fault = GOOD
                        self.counts[<int>REFUSED] += 1
                        continue
                    if fault != GOOD:
                        break
                    outcome = take_in(self, &record, whole)
                    self.counts[<int>outcome] += 1
                    if outcome == UNBOUND:
                        break
                end(self)
            if outcome == UNBOUND and fault == GOOD:
                self._keep(&record, tick)
                outcome = ENTERED
        if fault != GOOD:
            self.malformed += 1
            raise ValueError(FAULTS[fault])
        return count

    cdef int _keep(self, const record_t* record, uint32_t tick) except -1:
        """Put a record whose server is unknown aside."""
        cdef draft_t draft
        cdef uint8_t buffer[HEADER1 + LONGEST_RECORD]
        cdef object until
        cdef tuple key = (
            record.protocol, record.flags & SYNC_TEMPLATE != 0, (<char*>&record.client)[:16], record.cport,
            (<char*>&record.virtual)[:16], record.vport, record.data[:record.data_length],
        )
        if len(self.aside) >= ASIDE_MAX and key not in self.aside:
            self.unkept += 1
            return 0
        begin_message(&draft, buffer, sizeof(buffer), 1, 0)
        add_record(&draft, record)
        until = tick + (min(record.timeout, <uint32_t>LONGEST // 10) or OLD_TEMPLATE) * 10
        self.aside[key] = (bytes(buffer[:end_message(&draft)]), until)
        return 0

    def bind(self, now: int) -> int:
        """Try those again that had no server, after the configuration changed; how many are left."""
        cdef cursor_t cursor
        cdef record_t record
        cdef uint32_t tick = now // TICK
        cdef outcome_t outcome
        cdef bytes data
        cdef uint32_t until
        cdef tuple key
        for key, (data, until) in list(self.aside.items()):
            if until > tick:
                open_message(&cursor, data, len(data))
                next_record(&cursor, &record)
                record.timeout = (until - tick + 9) // 10
                with nogil:
                    begin(self, tick)
                    outcome = take_in(self, &record, True)
                    end(self)
                if outcome == UNBOUND:
                    continue
                self.counts[<int>outcome] += 1
            del self.aside[key]
        return len(self.aside)

    @property
    def statistics(self) -> dict[str, int]:
        """Records told, announcements that found no place, messages that made no sense, and what became of records that
        came: entered, updated, stale, unbound (each time), refused, full. `aside` are without a server now.
        """
        cdef Worker worker
        cdef int i
        lost = 0
        for worker in self.datapath.workers:
            if worker.own_ring != NULL:
                lost += load32(&worker.own_ring.lost, RELAXED)
        found = {"told": self.told, "lost": lost, "malformed": self.malformed, "aside": len(self.aside)}
        found["unkept"] = self.unkept
        for i in range(<int>OUTCOMES):
            found[OUTCOME_NAMES[i]] = self.counts[i]
        return found


cdef bytearray begin_draft(draft_t* draft, unsigned int room, int version, int id):
    """Memory for a message of so many bytes."""
    cdef bytearray buffer
    if not HEADER1 + LONGEST_RECORD <= room <= 65535 or not 0 <= version <= 1 or not 0 <= id <= 255:
        raise ValueError(f"no message has {room} bytes, version {version} and sync id {id}")
    buffer = bytearray(room)
    begin_message(draft, buffer, room, version, id)
    return buffer


cdef void begin(Mirror mirror, uint32_t tick) noexcept nogil:
    """A batch without packets."""
    cdef worker_t* worker = &mirror.own.worker
    enter(worker.table, worker.reader)
    worker.now = tick
    worker.snapshot = <snapshot_t*>load_pointer(<void**>worker.published, SEQUENTIAL)
    if mirror.known != worker.snapshot:
        memset(mirror.found, 0, sizeof(mirror.found))
        mirror.known = worker.snapshot


cdef inline void end(Mirror mirror) noexcept nogil:
    leave(mirror.own.worker.table, mirror.own.worker.reader)


# --- from the table --------------------------------------------------------------------------------------------------

cdef bint write_ring(Mirror mirror, draft_t* draft, ring_t* ring) noexcept nogil:
    """Write GROUP of what a worker announced at most; False when there is no more, True when the draft is full."""
    cdef table_t* table = mirror.own.worker.table
    cdef uint32_t tail = ring.tail
    cdef uint32_t head = load32(&ring.head, ACQUIRE)
    while tail != head:
        if not write_one(mirror, draft, &table.entries[ring.entries[tail & (RING - 1)]]):
            break
        tail += 1
    store32(&ring.tail, tail, RELEASE)
    return tail != head


cdef bint write_places(Mirror mirror, draft_t* draft, unsigned int* first, uint32_t last, bint whole) noexcept nogil:
    """Write what is due, or all that may be told, up to `last`; True when the draft is full."""
    cdef table_t* table = mirror.own.worker.table
    cdef connection_t* entry
    cdef uint32_t word
    while first[0] < last:
        entry = &table.entries[first[0]]
        prefetch(&table.entries[min(first[0] + 8, table.capacity)].word)
        word = load32(&entry.word, ACQUIRE)
        if word & LIFE == LIVE and may_tell(entry, word) and (whole or is_due(mirror, entry, word)) \
                and not write_one(mirror, draft, entry):
            return True
        first[0] += 1
    return False


cdef bint is_due(Mirror mirror, const connection_t* entry, uint32_t word) noexcept nogil:
    """Whether peers do not know of a connection what they ought to: itself, its state, or that it goes on."""
    cdef const worker_t* worker = &mirror.own.worker
    cdef const told_t* told = &worker.table.told[entry - worker.table.entries]
    cdef uint32_t expires = entry.expires
    cdef uint32_t state = (word & STATE_MASK) >> STATE_SHIFT
    if expires <= worker.now or (mirror.datapath.rules.spares_children and entry.control != 0):
        return False
    if told.expires == 0:
        if entry.flags & TEMPLATE:
            return True
        if entry.protocol == UDP:
            return entry.inpackets >= mirror.datapath.rules.threshold
        return is_established(entry, state)
    if told.state != state:
        return True
    if expires <= told.expires + STEP:
        return False
    return told.expires <= worker.now or (told.expires - worker.now) * 2 < expires - worker.now


cdef bint write_one(Mirror mirror, draft_t* draft, connection_t* entry) noexcept nogil:
    """Write a connection as it is now, and note what peers know; False when there is no room. What has ended meanwhile,
    and what the version cannot say, is passed over.
    """
    cdef worker_t* worker = &mirror.own.worker
    cdef told_t* told = &worker.table.told[entry - worker.table.entries]
    cdef record_t record
    cdef uint32_t word = load32(&entry.word, ACQUIRE)
    cdef uint32_t expires = load32(&entry.expires, RELAXED)
    if word & LIFE != LIVE or expires <= worker.now or not may_tell(entry, word):
        return True
    describe(&record, worker.table, entry, word, expires - worker.now)
    if draft.version == 0 and record.version != 4:
        return True
    if not add_record(draft, &record):
        return False
    told.expires = expires
    told.state = (word & STATE_MASK) >> STATE_SHIFT
    mirror.told += 1
    return True


cdef void describe(record_t* record, const table_t* table, const connection_t* entry, uint32_t word,
                   uint32_t left) noexcept nogil:
    """A connection in the kernel's terms."""
    cdef uint8_t* virtual = <uint8_t*>&record.virtual
    cdef int i
    memset(record, 0, sizeof(record_t))
    record.version = 4 if is_mapped(&entry.client) else 6
    record.client = entry.client
    record.virtual = entry.virtual
    record.server = entry.server
    record.cport = entry.cport
    record.vport = entry.vport
    record.dport = entry.sport
    record.protocol = entry.protocol
    record.mark = table.slots[entry.slot].mark
    record.state = (word & STATE_MASK) >> STATE_SHIFT
    record.timeout = (left + 9) // 10
    if entry.flags & METHOD == DIRECT:
        record.flags = FORWARD_ROUTE | SYNC_NO_OUTPUT
    elif entry.flags & METHOD == TUNNEL:
        record.flags = FORWARD_TUNNEL | SYNC_NO_OUTPUT
    if entry.flags & TEMPLATE:
        record.flags |= SYNC_TEMPLATE
    if word & INACTIVE:
        record.flags |= SYNC_INACTIVE
    if record.version == 6 and entry.flags & TEMPLATE and record.mark != 0:
        memset(virtual, 0, 16)                               # the mark is the first word there
        for i in range(4):
            virtual[i] = record.mark >> (24 - 8 * i)


# --- into the table --------------------------------------------------------------------------------------------------

cdef outcome_t take_in(Mirror mirror, record_t* record, bint whole) noexcept nogil:
    """Enter a record, or bring its connection up to it (ip_vs_proc_conn)."""
    cdef worker_t* worker = &mirror.own.worker
    cdef service_t* service
    cdef connection_t* entry
    cdef packet_t packet
    cdef address_t client
    cdef uint64_t hash
    cdef int32_t at
    cdef bint ours
    if not is_sane(record):
        return REFUSED
    service = service_of(mirror, record, &packet)
    if service == NULL:
        return UNBOUND
    at = server_of(mirror, service, record)
    if at < 0:
        return UNBOUND
    client = record.client
    hash = hash_endpoint(worker.table.key, &client, record.cport, record.protocol)
    if record.data_length:
        hash = hash_text(worker.table.key, &client, record.data, record.data_length)
    while True:
        hold(worker.table, hash, hash)
        if record.flags & SYNC_TEMPLATE:
            entry = find_template(worker.table, service, &client, hash)
        else:
            entry = find(worker.table, &packet, hash, REQUEST)
        if entry == NULL:
            entry = new_entry(mirror, service, at, record, hash)
            let_go(worker.table, hash, hash)
            return FULL if entry == NULL else ENTERED
        let_go(worker.table, hash, hash)
        # since peers told it last, there were packets of it here
        ours = whole and entry.expires > worker.table.told[entry - worker.table.entries].expires
        if entry.slot == service.servers[at].slot and entry.sport == record.dport:
            if not ours:
                bring_up_to(mirror, entry, record)
            return UPDATED
        if ours or record.flags & (SYNC_INACTIVE | SYNC_TEMPLATE) == SYNC_INACTIVE:
            return STALE
        if record.flags & SYNC_TEMPLATE:
            abandon(worker.table, entry, worker.now)
        else:
            remove(worker.table, entry)


cdef inline bint is_sane(const record_t* record) noexcept nogil:
    """What the kernel refuses, and what cannot be kept up here: changed payloads, and engines that there are not."""
    if record.flags & SYNC_ONE_PACKET or record.flags & (SYNC_TEMPLATE | SYNC_NO_CPORT) > SYNC_TEMPLATE:
        return False
    if record.has_sequence and record.sequence[1] | record.sequence[2] | record.sequence[4] | record.sequence[5]:
        return False
    if (record.data_length or record.name_length) \
            and not (record.flags & SYNC_TEMPLATE and record.data_length and is_sip(record)):
        return False
    if record.flags & SYNC_TEMPLATE:
        return record.cport == 0 and record.state <= ASSURED
    if record.protocol == TCP:
        return record.state < STATES
    if record.protocol == SCTP:
        return record.state < ASSOCIATION_STATES
    return record.protocol == UDP and record.state == 0


cdef inline bint is_sip(const record_t* record) noexcept nogil:
    """Whether its engine is the one that there is here; its data are a Call-ID (ip_vs_pe_sip.c)."""
    return record.name_length == 3 and memcmp(record.name, b"sip", 3) == 0


cdef service_t* service_of(Mirror mirror, record_t* record, packet_t* packet) noexcept nogil:
    """The virtual service of a record, NULL where there is none; `packet` becomes one of its client's. Templates of FTP
    and of every port of a VIP look alike: their real servers tell them apart.
    """
    cdef const snapshot_t* snapshot = mirror.own.worker.snapshot
    cdef service_t* service
    memset(packet, 0, sizeof(packet_t))
    packet.source = record.client
    packet.destination = record.virtual
    packet.sport = record.cport
    packet.dport = record.vport
    packet.protocol = record.protocol
    packet.version = record.version
    if not record.flags & SYNC_TEMPLATE:
        packet.mark = record.mark
        service = classify(snapshot, packet, True)
        return service if service == NULL or service.mark == record.mark else NULL
    if record.mark == 0 and record.protocol == 0:            # version 0 says it by the address
        record.mark = <uint32_t>(<const uint8_t*>&record.virtual)[12] << 24 \
            | <uint32_t>(<const uint8_t*>&record.virtual)[13] << 16 \
            | <uint32_t>(<const uint8_t*>&record.virtual)[14] << 8 | (<const uint8_t*>&record.virtual)[15]
    packet.mark = record.mark
    service = classify(snapshot, packet, True)
    if record.vport == 0 and (service == NULL or server_of(mirror, service, record) < 0):
        packet.dport = FTP
        service = classify(snapshot, packet, True)
    if service == NULL or service.mark != record.mark or service.persistence == 0 \
            or service.template_port != record.vport or service.template_protocol != record.protocol \
            or service.by_call != (record.data_length != 0):
        return NULL
    return service


cdef int32_t server_of(Mirror mirror, const service_t* service, const record_t* record) noexcept nogil:
    """The index of the real server that a record names, -1 where the service has none such."""
    cdef found_t* found = &mirror.found[
        (record.server.low ^ record.server.low >> 29 ^ <uint64_t>record.dport * 40503 ^ <uint64_t>service >> 6)
        & (CACHE - 1)]
    cdef uint32_t i
    if found.service == service and fits(service, &service.servers[found.index], record):
        return found.index
    for i in range(service.count):
        if fits(service, &service.servers[i], record):
            found.service = service
            found.index = i
            return i
    return -1


cdef inline bint fits(const service_t* service, const server_t* server, const record_t* record) noexcept nogil:
    """Whether a connection of this record is one that could have begun here with this server (datapath.pyx, begin)."""
    cdef uint16_t port = server.port
    if not same(&server.address, &record.server):
        return False
    if not record.flags & SYNC_TEMPLATE and (port == 0 or (service.persistence and record.vport != service.port)):
        port = record.vport
    return port == record.dport


cdef connection_t* new_entry(Mirror mirror, service_t* service, int32_t at, const record_t* record,
                             uint64_t hash) noexcept nogil:
    """A connection that began elsewhere; NULL when the table is full. The caller holds its bucket."""
    cdef worker_t* worker = &mirror.own.worker
    cdef server_t* server = &service.servers[at]
    cdef connection_t* entry = take(worker.table)
    cdef uint32_t word = LIVE | <uint32_t>record.state << STATE_SHIFT
    if entry == NULL:
        return NULL
    entry.client = record.client
    entry.virtual = record.virtual
    entry.server = server.address
    entry.cport = record.cport
    entry.vport = record.vport
    entry.sport = record.dport
    entry.protocol = record.protocol
    entry.flags = server.method if server.method == NAT else server.method | NO_OUTPUT
    entry.slot = server.slot
    entry.inpackets = mirror.datapath.rules.threshold
    entry.control = entry.children = 0
    entry.hash = hash
    if record.flags & SYNC_TEMPLATE:
        entry.virtual = service.template_address
        entry.flags = TEMPLATE | server.method | (CALL if service.by_call else 0)
    if record.flags & SYNC_TEMPLATE or not is_active(record.protocol, record.state):
        word |= INACTIVE
    entry.expires = worker.now + ticks_of(worker, entry, record)
    note_told(worker, entry, record)
    is_overloaded(server, worker.table.loads)
    show(worker.table, entry, word)
    if not record.flags & SYNC_TEMPLATE and note_connection(service, server, worker.table.loads):
        note_load(worker.table, server.slot)
    return entry


cdef void bring_up_to(Mirror mirror, connection_t* entry, const record_t* record) noexcept nogil:
    """State and timer of a connection that is known."""
    cdef worker_t* worker = &mirror.own.worker
    cdef uint32_t expires
    if not become(worker.table, entry, record.state):
        return
    entry.inpackets = mirror.datapath.rules.threshold
    expires = worker.now + ticks_of(worker, entry, record)
    store32(&entry.expires, expires, RELAXED)
    if expires < load32(&entry.due, RELAXED):
        hasten(worker.table, entry)
    note_told(worker, entry, record)


cdef inline void note_told(worker_t* worker, connection_t* entry, const record_t* record) noexcept nogil:
    cdef told_t* told = &worker.table.told[entry - worker.table.entries]
    told.expires = entry.expires
    told.state = record.state
    told.retries = 0


cdef inline uint32_t ticks_of(const worker_t* worker, const connection_t* entry, const record_t* record) noexcept nogil:
    """How long a connection may be silent from now on: as the record says, else as its state is given here."""
    if record.timeout:
        return min(record.timeout, <uint32_t>LONGEST // 10) * 10
    if record.flags & SYNC_TEMPLATE:
        return OLD_TEMPLATE * 10
    return timeouts_of(worker.snapshot, entry)[kind_of(record.protocol, record.state)]
