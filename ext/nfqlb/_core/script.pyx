"""Scripts of packets, changes and pauses, played through the core without Python between two packets: for tests/fuzz,
no part of the data path.

Strategy: a script is a string of steps of 8 bytes. Any bytes are a script, and what a fuzzer cuts, joins or swaps is
one again. A step names a packet that the player was given, and what is different this time: the flow, the hook, the
worker, a byte, the end. Each packet is played in memory of its own, to the byte as long as it is, where
AddressSanitizer sees one byte too many; after each batch, and at the end, everything is audited.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from nfqlb._core.audit cimport audit_message, audit_packet, audit_table
from nfqlb._core.checksum cimport add_bytes, fold, update
from nfqlb._core.connection cimport enter, leave, new_reader, take
from nfqlb._core.datapath cimport Datapath, Worker, run_batch, worker_t
from nfqlb._core.transmit cimport Transmitter, send_frames
from nfqlb._core.types cimport BATCH, FREE, HEAD, ICMP, ICMP6, LONGEST, REARM, TICK, connection_t, packet_t, table_t
from nfqlb._core.wire cimport (
    ICMP_CHECKSUM,
    ICMP_HEADER,
    IP4_HEADER,
    IP4_PROTOCOL,
    IP4_TOTAL_LENGTH,
    IP6_HEADER,
    IP6_NEXT_HEADER,
    IP6_PAYLOAD_LENGTH,
    IP6_SOURCE,
    get16,
    get_raw16,
    htonl,
    htons,
    set16,
    set_raw16,
)


cdef enum:
    STEP = 8
    LONGEST_PACKET = 2048
    EXPIRE_BUDGET = 512          # as the fast engine has it
    HOOKS = 4
    FLAGS = 8                    # the combinations of three
    OVERRIDE = 0x80
    END = 4000000000             # tick; no script goes on behind it, the core's ticks reach 2^32

    # the bytes of a step
    KIND = 0                     # kind_t
    BASE = 1                     # which packet, snapshot, or entry
    FLOW = 2                     # the first one's distance to the packet's own client port
    COUNT = 3                    # packets of as many flows, less one
    WAY = 4                      # OVERRIDE | worker << 5 | flags << 2 | hook; without OVERRIDE, those of the packet
    PLACE = 5                    # of the byte that is changed
    VALUE = 6                    # what is XORed in
    CUT = 7                      # bytes less at the end; with MEND, the packet says so
    MEND = 0x80

cdef enum kind_t:                # of steps; all above send, too
    SEND = 0
    WAIT                         # BASE << VALUE ticks; with an odd FLOW, everything that ended is removed at once
    PUBLISH                      # another configuration
    STAND_BY                     # a further worker begins its batch, or ends it; it relies on entry BASE meanwhile
    KINDS = 8


cdef struct base_t:
    uint8_t data[LONGEST_PACKET]
    uint32_t length
    uint32_t port_at             # of the client's port, 0: it stays
    uint32_t check_at            # of a checksum that covers it, 0: none does
    uint8_t hook
    uint8_t flags


cdef class Player:
    """Plays on workers of one data path. Afterwards `packets` says how many went through, `now` what time it is.

    `snapshots` are what a script may publish; `bases` its packets: bytes, hook, flags, and where the client's port and
    a checksum over it stand (0: nowhere). Every call raises AssertionError with what does not hold.
    """

    cdef readonly Datapath datapath
    cdef list workers
    cdef Transmitter transmitter     # makes frames, and can send none
    cdef tuple snapshots
    cdef base_t* bases
    cdef uint32_t base_count
    cdef packet_t batch[BATCH]
    cdef uint8_t originals[BATCH][LONGEST_PACKET]
    cdef int bystander           # the reader that stands by
    cdef connection_t* relied    # on this entry, while it does; it looked so:
    cdef connection_t memory
    cdef bint standing
    cdef readonly uint64_t now
    cdef readonly uint64_t packets

    def __cinit__(self, Datapath datapath not None, workers: Sequence[Worker], snapshots: Sequence[Snapshot],
                  bases: Sequence[tuple[bytes, int, int, int, int]], uint64_t now):
        cdef base_t* base
        if not workers or not snapshots or not bases:
            raise ValueError("needs workers, snapshots and packets")
        self.datapath = datapath
        self.workers = list(workers)
        self.snapshots = tuple(snapshots)
        self.now = now
        self.bystander = new_reader(datapath.table.table)
        self.transmitter = Transmitter(True)
        self.bases = <base_t*>calloc(len(bases), sizeof(base_t))
        if self.bases == NULL:
            raise MemoryError
        for data, hook, flags, port_at, check_at in bases:
            if len(data) > LONGEST_PACKET:
                raise ValueError(f"a packet of {len(data)} bytes: at most {LONGEST_PACKET}")
            base = &self.bases[self.base_count]
            memcpy(base.data, <const char*><bytes>data, len(data))
            base.length = <uint32_t>len(data)
            base.hook, base.flags, base.port_at, base.check_at = hook, flags, port_at, check_at
            self.base_count += 1

    def __dealloc__(self):
        free(self.bases)

    def play(self, script: bytes) -> None:
        """All whole steps of a script."""
        cdef const uint8_t* step
        cdef Py_ssize_t at
        for at in range(0, len(script) - STEP + 1, STEP):
            step = <const uint8_t*><const char*>script + at
            kind = step[KIND] % KINDS
            if kind == WAIT:
                self._wait(step)
            elif kind == PUBLISH:
                self.datapath.publish(self.snapshots[step[BASE] % len(self.snapshots)])
            elif kind == STAND_BY:
                self._stand_by(step[BASE])
            else:
                check(send(self, worker_of(self, step[WAY] >> 5 & 3), step))

    def every_way(self, packet: bytes) -> None:
        """One packet under every configuration, at every hook, with all that NFQUEUE may say of its checksum; as it
        is, and mended; as a whole one, and as the head of one.
        """
        cdef const uint8_t* data = packet
        cdef uint32_t length = min(<uint32_t>len(packet), <uint32_t>LONGEST_PACKET)
        cdef int way
        cdef uint8_t flags
        for number in range(2 * len(self.snapshots)):
            self.datapath.publish(self.snapshots[number // 2])
            for way in range(2 * HOOKS * FLAGS):
                flags = way // HOOKS % FLAGS | (HEAD if number % 2 else 0)
                if put(self, way, data, length, way % HOOKS, flags) == NULL:
                    raise MemoryError
                if way >= HOOKS * FLAGS:
                    mend(self.batch[way].data, length)
                    memcpy(self.originals[way], self.batch[way].data, length)
            check(run(self, worker_of(self, number), 2 * HOOKS * FLAGS))

    def audit(self) -> None:
        """The table and the counters, between two batches."""
        check(audit_table(self.datapath.table.table))
        drained = self.datapath.drain()
        if drained.packets != self.packets or sum(drained.reasons.values()) != self.packets:
            raise AssertionError("packets were counted more or less than once")

    def finish(self) -> None:
        """Wait until everything is over: then nothing is left, and every entry can be had."""
        cdef table_t* table = self.datapath.table.table
        cdef int had = 0
        if self.standing:
            self._stand_by(0)
        self.audit()
        self.now += <uint64_t>LONGEST * TICK
        self._expire()
        self.now += <uint64_t>(REARM + 1) * TICK             # a template goes after its connections
        self._expire()
        if table.used:
            raise AssertionError("a connection outlives the longest timeout")
        self.audit()
        while take(table) != NULL:
            had += 1
        if had != self.datapath.table.capacity:
            raise AssertionError(f"{had} entries can be had after all {self.datapath.table.capacity} ended")

    def _wait(self, const uint8_t* step):
        self.now = min(self.now + (<uint64_t>step[BASE] << step[VALUE] % 16) * TICK, <uint64_t>END * TICK)
        if step[FLOW] & 1:
            self._expire()

    def _expire(self):
        """End all that is over, and see that it did."""
        cdef table_t* table = self.datapath.table.table
        cdef uint32_t tick = self.now // TICK
        cdef uint32_t i
        (<Worker>self.workers[0]).expire(self.now)
        for i in range(1, table.untouched):
            if table.entries[i].word != FREE and table.entries[i].expires <= tick:
                raise AssertionError("a connection outlives its timeout")

    def _stand_by(self, uint32_t entry):
        """Begin or end a batch: an entry that it found live stays what it was, whatever others do."""
        cdef table_t* table = self.datapath.table.table
        if self.standing:
            if self.relied != NULL and not is_same(self.relied, &self.memory):
                raise AssertionError("an entry became another connection under a worker that was in its batch")
            leave(table, self.bystander)
        else:
            enter(table, self.bystander)
            self.relied = &table.entries[1 + entry % table.capacity]
            self.memory = self.relied[0]
            if self.memory.word == FREE:
                self.relied = NULL
        self.standing = not self.standing


cdef bint is_same(const connection_t* entry, const connection_t* memory) noexcept:
    return entry.hash == memory.hash and entry.cport == memory.cport and entry.slot == memory.slot \
        and entry.protocol == memory.protocol and entry.vport == memory.vport and entry.sport == memory.sport


cdef worker_t* worker_of(Player player, unsigned int number) except NULL:
    cdef Worker worker = player.workers[number % len(player.workers)]
    return &worker.worker


cdef int check(const char* wrong) except -1:
    if wrong != NULL:
        raise AssertionError((<bytes>wrong).decode())
    return 0


cdef const char* send(Player player, worker_t* worker, const uint8_t* step) noexcept nogil:
    """One step's packets as one batch."""
    cdef const base_t* base = &player.bases[step[BASE] % player.base_count]
    cdef bint override = step[WAY] & OVERRIDE != 0
    cdef uint8_t hook = step[WAY] & 3 if override else base.hook
    cdef uint8_t flags = step[WAY] >> 2 & 7 if override else base.flags
    cdef uint32_t length = base.length - min(<uint32_t>step[CUT] & ~<uint32_t>MEND, base.length)
    cdef uint32_t count = step[COUNT] % BATCH + 1
    cdef uint32_t i
    cdef uint8_t* data
    for i in range(count):
        data = put(player, i, base.data, length, hook, flags)
        if data == NULL:
            return "no memory"
        move(data, length, base, <uint16_t>(step[FLOW] + i))
        if length:
            data[step[PLACE] % length] ^= step[VALUE]
        if step[CUT] & MEND:
            mend(data, length)
        memcpy(player.originals[i], data, length)
    return run(player, worker, count)


cdef void move(uint8_t* data, uint32_t length, const base_t* base, uint16_t by) noexcept nogil:
    """Make it a packet of another flow, its checksum right if it was."""
    cdef uint16_t old, new
    if base.port_at == 0 or base.port_at + 2 > length:
        return
    old = get16(data + base.port_at)
    new = <uint16_t>(old + by)
    set16(data + base.port_at, new)
    if base.check_at and base.check_at + 2 <= length:
        set_raw16(data + base.check_at,
                  update(get_raw16(data + base.check_at), <uint64_t>htons(new) + <uint16_t>~htons(old)))


cdef void mend(uint8_t* data, uint32_t length) noexcept nogil:
    """Have the IP header say the length that there is, and an ICMP message bear the checksum of what it is."""
    cdef uint32_t at = IP6_HEADER
    cdef uint64_t total = 0
    if length < IP4_HEADER:
        return
    if data[0] >> 4 == 4:
        set16(data + IP4_TOTAL_LENGTH, <uint16_t>length)
        at = (data[0] & 15) * 4
        if data[IP4_PROTOCOL] != ICMP:
            return
    elif length < IP6_HEADER:
        return
    else:
        set16(data + IP6_PAYLOAD_LENGTH, <uint16_t>(length - IP6_HEADER))
        if data[IP6_NEXT_HEADER] != ICMP6:
            return
        total = add_bytes(htonl(length - IP6_HEADER) + htons(ICMP6), data + IP6_SOURCE, 32)
    if at + ICMP_HEADER <= length:
        set_raw16(data + at + ICMP_CHECKSUM, 0)
        set_raw16(data + at + ICMP_CHECKSUM, <uint16_t>~fold(add_bytes(total, data + at, length - at)))


cdef uint8_t* put(Player player, uint32_t at, const uint8_t* data, uint32_t length, uint8_t hook,
                  uint8_t flags) noexcept nogil:
    """A copy of the packet into the batch; NULL without memory."""
    cdef packet_t* packet = &player.batch[at]
    packet.data = <uint8_t*>malloc(length)
    packet.captured = length
    packet.mark = 0
    packet.id = 0
    packet.hook = hook
    packet.flags = flags
    packet.outer_length = 0
    if packet.data != NULL:
        memcpy(packet.data, data, length)
        memcpy(player.originals[at], data, length)
    return packet.data


cdef const char* run(Player player, worker_t* worker, uint32_t count) noexcept nogil:
    """The batch through the core; what became of it is audited."""
    cdef const char* wrong = NULL
    cdef uint32_t i
    run_batch(worker, player.batch, count, player.now, EXPIRE_BUDGET)
    player.packets += count
    for i in range(count):
        if wrong == NULL:
            wrong = audit_packet(&player.batch[i], player.originals[i])
    if wrong == NULL:
        send_frames(player.transmitter, player.batch, count)
    for i in range(count):
        free(player.batch[i].data)
    for i in range(worker.outbox.count):
        if wrong == NULL:
            wrong = audit_message(&worker.outbox.messages[i])
    return wrong
