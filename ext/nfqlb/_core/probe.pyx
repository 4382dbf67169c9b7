"""What a packet costs in the core, and what the memory allows: clocks for bench/, no part of the data path.

Strategy: packets go through in batches as the fast engine brings them, with nothing of Python between two of them;
only the core's own share is timed, not the making of the packets. Beside it stands a walk through memory where each
read needs the one before: its time for an array of the same size is the limit of the machine at that moment, and a
ratio to it holds while the machine's speed changes.
"""
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from nfqlb._core.atomic cimport SEQUENTIAL, add32
from nfqlb._core.connection cimport connection_t, find, flow_hash, warm_bucket, warm_entry
from nfqlb._core.datapath cimport Worker, run_batch, worker_t
from nfqlb._core.forward cimport nat_request
from nfqlb._core.load cimport note_connection
from nfqlb._core.memory cimport anonymous, give_back
from nfqlb._core.packet cimport parse
from nfqlb._core.ranking cimport note_load
from nfqlb._core.schedulers cimport pick
from nfqlb._core.snapshot cimport Service, classify
from nfqlb._core.types cimport BATCH, PREROUTING, REQUEST, packet_t, service_t, table_t
from nfqlb._core.wire cimport IP4_DESTINATION, IP4_HEADER, IP4_SOURCE


cdef extern from "<mcheck.h>" nogil:
    void mtrace()
    void muntrace()


cdef enum:
    ROOM = 128                   # bytes for a packet
    LINE = 8                     # words of a cache line
    EXPIRE_BUDGET = 512          # as the fast engine has it


cdef enum step_t:
    WHOLE = 0
    PARSE
    LOOK_UP
    SCHEDULE
    NAT

STEPS: tuple[str, ...] = ("whole line", "parse", "look-up", "schedule", "nat")


cdef class Flows:
    """Packets of `count` flows to one service: copies of an IPv4 packet with ports, each flow with a source of its own.

    `slowest` is the longest batch of the last call, in nanoseconds, expiry included.
    """

    cdef Worker worker
    cdef uint8_t packet[ROOM]
    cdef uint8_t room[BATCH][ROOM]
    cdef packet_t batch[BATCH]
    cdef uint32_t length
    cdef uint32_t count
    cdef uint64_t random
    cdef readonly uint64_t slowest

    def __cinit__(self, Worker worker not None, bytes packet, uint32_t count):
        if not IP4_HEADER + 4 <= len(packet) <= ROOM or count == 0:
            raise ValueError(f"needs flows, and a packet of {IP4_HEADER + 4} to {ROOM} bytes")
        self.worker = worker
        self.length = <uint32_t>len(packet)
        memcpy(self.packet, <const uint8_t*>packet, self.length)
        self.count = count
        self.random = 88172645463325252

    def in_turn(self, uint64_t now) -> float:
        """One packet of every flow, in order, through the whole line at `now`; nanoseconds for each."""
        return pass_packets(self, self.count, now, WHOLE, False, BATCH) / self.count

    def at_random(self, uint32_t packets, uint64_t now, step: str = "whole line", bint traced = False,
                  uint32_t batch = BATCH) -> float:
        """So many packets of flows chosen at random through one of STEPS, `batch` (1 to 64) at a time; nanoseconds for
        each.

        `traced` has glibc write every allocation of the core to the file that MALLOC_TRACE names (mtrace(3)).
        """
        cdef double taken
        cdef step_t which = <step_t><int>STEPS.index(step)
        if traced:
            mtrace()
        taken = pass_packets(self, packets, now, which, True, max(<uint32_t>1, min(batch, <uint32_t>BATCH)))
        if traced:
            muntrace()
        return taken / packets

    def connections(self, uint32_t count, uint32_t lasting, bint to_many = False) -> tuple[float, list[int]]:
        """Have the first service choose a server for so many connections, of each flow in turn; each is active until
        `lasting` others have begun, none stays in the end. Returns nanoseconds for each from then on, of a choice, a
        beginning and an ending, and the index of the server that each got, -1 for none. The table knows nothing of
        them, but for the servers' loads. With `to_many` the flows differ in their destination, not in their source.
        """
        cdef double taken
        cdef int32_t* chosen = <int32_t*>calloc(max(1, count), sizeof(int32_t))
        if chosen == NULL:
            raise MemoryError
        try:
            taken = choose(self, count, lasting, to_many, chosen)
            return taken, [chosen[i] for i in range(count)]
        finally:
            free(chosen)


cdef double choose(Flows flows, uint32_t count, uint32_t lasting, bint to_many, int32_t* chosen) except -1:
    cdef table_t* table = flows.worker.worker.table
    cdef Service first = flows.worker.datapath.current.services[0]
    cdef service_t* service = first.service
    cdef uint64_t start
    cdef uint64_t taken = 0
    cdef uint32_t timed = 0
    cdef uint32_t size, i, at
    cdef uint32_t done = 0
    with nogil:
        while done < count:
            size = min(<uint32_t>BATCH, count - done)
            prepare(flows, done, size, False, to_many)
            run_parse(flows, size)
            start = clock()
            for i in range(size):
                at = done + i
                chosen[at] = pick(service, &flows.batch[i], table.loads, 0, &flows.worker.worker.random)
                if chosen[at] >= 0:
                    add32(&table.loads[service.servers[chosen[at]].slot].active, 1, SEQUENTIAL)
                    if note_connection(service, &service.servers[chosen[at]], table.loads):
                        note_load(table, service.servers[chosen[at]].slot)
                if at >= lasting and chosen[at - lasting] >= 0:
                    end(table, service, chosen[at - lasting])
            if done >= lasting:
                taken += clock() - start
                timed += size
            done += size
        for at in range(count - min(lasting, count), count):
            if chosen[at] >= 0:
                end(table, service, chosen[at])
    return <double>taken / max(1, timed)


cdef inline void end(table_t* table, const service_t* service, int32_t at) noexcept nogil:
    add32(&table.loads[service.servers[at].slot].active, <uint32_t>-1, SEQUENTIAL)
    note_load(table, service.servers[at].slot)


cdef double pass_packets(Flows flows, uint32_t packets, uint64_t now, step_t step, bint random,
                         uint32_t most) noexcept:
    """The nanoseconds that the core needed."""
    cdef uint64_t start, batch
    cdef uint64_t taken = 0
    cdef uint32_t size
    cdef uint32_t done = 0
    flows.slowest = 0
    with nogil:
        while done < packets:
            size = min(most, packets - done)
            prepare(flows, done, size, random, False)
            if step > PARSE:
                run_parse(flows, size)
            start = clock()
            if step == WHOLE:
                run_batch(&flows.worker.worker, flows.batch, size, now, EXPIRE_BUDGET)
            elif step == PARSE:
                run_parse(flows, size)
            elif step == LOOK_UP:
                run_look_up(flows, size)
            elif step == SCHEDULE:
                run_schedule(flows, size)
            else:
                run_nat(flows, size)
            batch = clock() - start
            taken += batch
            flows.slowest = max(flows.slowest, batch)
            done += size
    return <double>taken


cdef void run_parse(Flows flows, uint32_t size) noexcept nogil:
    cdef uint32_t i
    for i in range(size):
        flows.batch[i].reason = parse(&flows.batch[i])


cdef void run_look_up(Flows flows, uint32_t size) noexcept nogil:
    """Hash and find, in the passes of run_batch."""
    cdef table_t* table = flows.worker.worker.table
    cdef packet_t* packet
    cdef uint32_t i
    for i in range(size):
        packet = &flows.batch[i]
        packet.hash = flow_hash(table, packet, False)
        warm_bucket(table, packet.hash)
    for i in range(size):
        warm_entry(table, flows.batch[i].hash)
    for i in range(size):
        packet = &flows.batch[i]
        packet.verdict = find(table, packet, packet.hash, REQUEST) != NULL


cdef void run_schedule(Flows flows, uint32_t size) noexcept nogil:
    """Find the service and have it choose a real server."""
    cdef worker_t* worker = &flows.worker.worker
    cdef service_t* service
    cdef uint32_t i
    for i in range(size):
        service = classify(flows.worker.datapath.published, &flows.batch[i], True)
        flows.batch[i].id = pick(service, &flows.batch[i], worker.table.loads, 0, &worker.random)


cdef void run_nat(Flows flows, uint32_t size) noexcept nogil:
    """Rewrite towards the VIP itself: as much work as towards a server, and no look-up."""
    cdef connection_t connection
    cdef uint32_t i
    for i in range(size):
        connection.server = flows.batch[i].destination
        connection.sport = flows.batch[i].dport
        nat_request(&flows.batch[i], &connection)


cdef void prepare(Flows flows, uint32_t first, uint32_t size, bint random, bint to_many) noexcept nogil:
    """Fill the batch with packets of flows from `first` on, or of random ones."""
    cdef uint32_t end = IP4_DESTINATION if to_many else IP4_SOURCE
    cdef uint8_t* data
    cdef uint32_t i, flow
    for i in range(size):
        flow = first + i
        if random:
            flow = <uint32_t>((next_random(&flows.random) >> 32) * flows.count >> 32)
        data = flows.room[i]
        memcpy(data, flows.packet, flows.length)
        data[end + 1] = <uint8_t>(flow >> 20)
        data[end + 2] = <uint8_t>(flow >> 12)
        data[end + 3] = <uint8_t>(flow >> 4)
        data[IP4_HEADER + 1] = <uint8_t>(flow & 15)
        flows.batch[i].data = data
        flows.batch[i].captured = flows.length
        flows.batch[i].mark = 0
        flows.batch[i].id = 0
        flows.batch[i].hook = PREROUTING
        flows.batch[i].flags = 0


cdef class Walk:
    """An array of about `size` bytes whose cache lines name each other in one random circle."""

    cdef uint64_t* words
    cdef uint64_t lines
    cdef uint64_t at

    def __cinit__(self, uint64_t size):
        cdef uint64_t i, j
        cdef uint64_t random = 88172645463325252
        self.lines = max(<uint64_t>2, size // (LINE * 8))
        self.words = <uint64_t*>anonymous(self.lines * LINE * 8)
        if self.words == NULL:
            raise MemoryError
        with nogil:
            for i in range(self.lines):
                self.words[i * LINE] = i
            for i in range(self.lines - 1, 0, -1):         # Sattolo's shuffle: one circle through all
                j = next_random(&random) % i
                self.words[i * LINE], self.words[j * LINE] = self.words[j * LINE], self.words[i * LINE]

    def __dealloc__(self):
        give_back(self.words, self.lines * LINE * 8)

    def steps(self, uint32_t count) -> float:
        """So many reads, each from where the one before points; nanoseconds for each."""
        cdef uint64_t start
        cdef uint64_t at = self.at
        with nogil:
            start = clock()
            for _ in range(count):
                at = self.words[at * LINE]
            start = clock() - start
        self.at = at
        return <double>start / count


cdef inline uint64_t next_random(uint64_t* state) noexcept nogil:
    """Marsaglia's xorshift64."""
    state[0] ^= state[0] << 13
    state[0] ^= state[0] >> 7
    state[0] ^= state[0] << 17
    return state[0]


cdef inline uint64_t clock() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <uint64_t>now.tv_sec * 1_000_000_000 + now.tv_nsec
