"""The connection table.

Strategy. Entries are fixed places in a shared file and carry the whole truth about a connection; the index (buckets),
the timer wheel, the free list and the counts per server are private memory, rebuilt from the entries by one scan, so
that no crash can leave them wrong. One entry serves both directions: its key is the client's end, which every packet
of the flow carries, as source or as destination (net/netfilter/ipvs/ip_vs_conn.c does the same).

Reading takes no lock. A bucket is one cache line of eight tagged indices with an overflow chain; a spin lock in it is
held only to insert and to remove. An entry becomes visible by the release store of its state word, written last, and
ceases to be by setting that word to FREE first. A removed entry waits at the end of a queue and is taken again only
when every worker has begun a new batch since, so nobody ever holds a place that became another connection.

Timers are lazy: a packet only writes the new expiry into the entry; the wheel looks when the old one is due and moves
on what is still alive. Only when a state shortens the timeout is the place in the wheel changed. `expire` does a
bounded amount of work, so that no batch waits for a mass of endings. Lock order: bucket, then any one of wheel, free
list.
"""
from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from posix.fcntl cimport posix_fallocate
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap
from posix.unistd cimport ftruncate

import os
from pathlib import Path

from nfqlb._core.atomic cimport (
    ACQUIRE,
    RELAXED,
    RELEASE,
    SEQUENTIAL,
    add32,
    add64,
    load32,
    load64,
    lock,
    prefetch,
    replace32,
    store32,
    store64,
    subtract32,
    unlock,
)
from nfqlb._core.hash cimport hash_endpoint
from nfqlb._core.memory cimport allow_huge, anonymous, cache_lines, give_back
from nfqlb._core.offload cimport is_busy, offload_t, take_out
from nfqlb._core.ranking cimport note_load
from nfqlb._core.states cimport exists, is_active
from nfqlb._core.types cimport (
    ANSWERED,
    ASSURED,
    CALL,
    DIRECT,
    FREE,
    FTP,
    FTP_DATA,
    INACTIVE,
    LATE_REPLY,
    LEFT,
    LIFE,
    LINGER,
    LIVE,
    LONGEST,
    NAT,
    NO_OUTPUT,
    READERS,
    REARM,
    REQUEST,
    STATE_MASK,
    STATE_SHIFT,
    TCP,
    TEMPLATE,
    TICK,
    TUNNEL,
    UNPRIVILEGED,
    WHEEL,
    address_t,
    bucket_t,
    connection_t,
    header_t,
    leaf_t,
    load_t,
    look_t,
    packet_t,
    service_t,
    slot_t,
    table_t,
    told_t,
)
from nfqlb._core.wire cimport address_from, same

cdef uint64_t MAGIC = 0x31747362_6c71666eULL          # "nfqlbst1" as it lies in memory
cdef uint64_t IDLE = 0xffffffff_ffffffffULL
cdef uint64_t VERSION = 2                            # of the file; with it, the sizes of all that lies in it
cdef uint64_t LAYOUT = VERSION << 48 | <uint64_t>sizeof(slot_t) << 32 | sizeof(connection_t) << 16 | sizeof(header_t)
cdef enum:
    PAGE = 4096
    POPPED = 32                                      # entries taken out of the wheel at a time
    GROUP = 64                                       # entries adopted at a time
    SOON = 20                                        # ticks, longer than the follower's round
    LAST_PORT = 0xffff

assert sizeof(connection_t) == 128 and sizeof(bucket_t) == 64 and sizeof(table_t) == (6 + READERS) * 64


# --- packets ---------------------------------------------------------------------------------------------------------

cdef uint64_t flow_hash(const table_t* table, const packet_t* packet, bint reply) noexcept nogil:
    """Hash of the client's end: the source of a request, the destination of a reply."""
    if reply:
        return hash_endpoint(table.key, &packet.destination, packet.dport, packet.protocol)
    return hash_endpoint(table.key, &packet.source, packet.sport, packet.protocol)


cdef inline bucket_t* bucket_of(const table_t* table, uint64_t hash) noexcept nogil:
    return &table.buckets[hash & table.bucket_mask]


cdef void warm_bucket(const table_t* table, uint64_t hash) noexcept nogil:
    """Have the bucket under way to the cache."""
    prefetch(bucket_of(table, hash))


cdef void warm_entry(const table_t* table, uint64_t hash) noexcept nogil:
    """Have the entry that the bucket's tag points to under way to the cache."""
    cdef bucket_t* bucket = bucket_of(table, hash)
    cdef uint16_t tag = hash >> 48
    cdef int i
    for i in range(8):
        if bucket.tag[i] == tag and bucket.index[i] != 0:
            prefetch(&table.entries[bucket.index[i]])
            prefetch(<uint8_t*>&table.entries[bucket.index[i]] + 64)
            return


cdef inline bint matches(connection_t* entry, const packet_t* packet, look_t look) noexcept nogil:
    if load32(&entry.word, ACQUIRE) & LIFE != LIVE or entry.protocol != packet.protocol:
        return False
    if look != REQUEST:
        return entry.cport == packet.dport and entry.sport == packet.sport \
            and entry.flags & (NO_OUTPUT | LEFT | TEMPLATE) == (LEFT if look == LATE_REPLY else 0) \
            and same(&entry.client, &packet.destination) and same(&entry.server, &packet.source)
    return entry.cport == packet.sport and entry.vport == packet.dport and not entry.flags & (LEFT | TEMPLATE) \
        and same(&entry.client, &packet.source) and same(&entry.virtual, &packet.destination)


cdef connection_t* find(table_t* table, const packet_t* packet, uint64_t hash, look_t look) noexcept nogil:
    """The connection that the packet belongs to when it is taken as `look`, or NULL."""
    cdef bucket_t* bucket = bucket_of(table, hash)
    cdef uint16_t tag = hash >> 48
    cdef uint32_t index
    cdef int i
    for i in range(8):
        if bucket.tag[i] == tag:
            index = load32(&bucket.index[i], ACQUIRE)
            if index != 0 and matches(&table.entries[index], packet, look):
                return &table.entries[index]
    index = load32(&bucket.chain, ACQUIRE)
    while index != 0:
        if matches(&table.entries[index], packet, look):
            return &table.entries[index]
        index = load32(&table.entries[index].chain, ACQUIRE)
    return NULL


# --- first packets ---------------------------------------------------------------------------------------------------

cdef void hold(table_t* table, uint64_t hash, uint64_t other) noexcept nogil:
    """Keep others from inserting into or removing from the bucket of either hash; the lower one first, always."""
    cdef bucket_t* first = bucket_of(table, hash)
    cdef bucket_t* second = bucket_of(table, other)
    if first > second:
        first, second = second, first
    lock(&first.lock)
    if first != second:
        lock(&second.lock)


cdef void let_go(table_t* table, uint64_t hash, uint64_t other) noexcept nogil:
    cdef bucket_t* first = bucket_of(table, hash)
    cdef bucket_t* second = bucket_of(table, other)
    unlock(&first.lock)
    if first != second:
        unlock(&second.lock)


cdef connection_t* find_template(table_t* table, const service_t* service, const address_t* client,
                                 uint64_t hash) noexcept nogil:
    """Where connections of a client's network to a service go, or NULL. The caller holds the bucket."""
    cdef bucket_t* bucket = bucket_of(table, hash)
    cdef uint32_t index
    cdef int i
    for i in range(8):
        index = bucket.index[i]
        if index != 0 and bucket.tag[i] == <uint16_t>(hash >> 48) \
                and leads(table, &table.entries[index], service, client, hash):
            return &table.entries[index]
    index = bucket.chain
    while index != 0:
        if leads(table, &table.entries[index], service, client, hash):
            return &table.entries[index]
        index = table.entries[index].chain
    return NULL


cdef inline bint leads(const table_t* table, connection_t* entry, const service_t* service, const address_t* client,
                       uint64_t hash) noexcept nogil:
    """Of two services with one key, FTP and every port of a VIP, each has its own: its slots say whose a template is.
    In the kernel they share one, whichever service's server it names (ip_vs_sched_persist).
    """
    return load32(&entry.word, ACQUIRE) & LIFE == LIVE \
        and entry.flags & (TEMPLATE | LEFT | CALL) == (TEMPLATE | CALL if service.by_call else TEMPLATE) \
        and (not service.by_call or entry.hash == hash) \
        and entry.protocol == service.template_protocol and entry.vport == service.template_port \
        and table.slots[entry.slot].vport == service.port \
        and same(&entry.client, client) and same(&entry.virtual, &service.template_address)


cdef connection_t* take(table_t* table) noexcept nogil:
    """A place for a new connection, its word FREE; NULL when the table is full."""
    cdef connection_t* entry = NULL
    lock(&table.free_lock)
    if table.free_head != 0 and passed(table, table.entries[table.free_head].freed):
        entry = &table.entries[table.free_head]
        table.free_head = entry.timer_next
        if table.free_head == 0:
            table.free_tail = 0
    elif table.untouched <= table.capacity:
        entry = &table.entries[table.untouched]
        table.untouched += 1
    if entry != NULL:
        table.used += 1
    unlock(&table.free_lock)
    if entry != NULL:
        entry.place = entry.nominated = entry.outpackets = entry.began = 0
        if table.told != NULL:
            memset(&table.told[entry - table.entries], 0, sizeof(told_t))
    return entry


cdef void show(table_t* table, connection_t* entry, uint32_t word) noexcept nogil:
    """Make a filled-in entry a connection: visible to all, counted, timed. The caller holds its bucket."""
    cdef bucket_t* bucket = bucket_of(table, entry.hash)
    cdef uint32_t index = <uint32_t>(entry - table.entries)
    cdef int i
    entry.chain = 0
    entry.due = 0
    count(table, entry, word, 1)
    store32(&entry.word, word, RELEASE)
    for i in range(8):
        if bucket.index[i] == 0:
            bucket.tag[i] = entry.hash >> 48
            store32(&bucket.index[i], index, RELEASE)
            break
    else:
        entry.chain = bucket.chain
        store32(&bucket.chain, index, RELEASE)
    lock(&table.wheel_lock)
    link(table, entry)
    unlock(&table.wheel_lock)


cdef inline void count(table_t* table, connection_t* entry, uint32_t word, uint32_t by) noexcept nogil:
    """Add to the server's InActConn, ActiveConn or PersistConn; `by` may be -1."""
    cdef load_t* load = &table.loads[entry.slot]
    if entry.flags & TEMPLATE:
        add32(&load.persistent, by, RELAXED)
        return
    add32(&load.inactive if word & INACTIVE else &load.active, by, SEQUENTIAL)
    add32(&table.totals[load.group], by, RELAXED)


# --- endings ---------------------------------------------------------------------------------------------------------

cdef bint remove(table_t* table, connection_t* entry) noexcept nogil:
    """End a connection now. False when somebody else did at the same moment."""
    cdef uint32_t word = load32(&entry.word, ACQUIRE)
    cdef bucket_t* bucket = bucket_of(table, entry.hash)
    cdef uint32_t index = <uint32_t>(entry - table.entries)
    cdef uint32_t* at
    cdef int i
    while True:
        if word & LIFE != LIVE:
            return False
        if replace32(&entry.word, &word, FREE, False, RELEASE, ACQUIRE):
            break
    lock(&table.wheel_lock)
    if entry.due != 0:
        unlink(table, entry)
    unlock(&table.wheel_lock)
    lock(&bucket.lock)
    for i in range(8):
        if bucket.index[i] == index:
            store32(&bucket.index[i], 0, RELEASE)
            break
    else:
        at = &bucket.chain
        while at[0] != index:
            at = &table.entries[at[0]].chain
        store32(at, entry.chain, RELEASE)
    unlock(&bucket.lock)
    count(table, entry, word, <uint32_t>-1)
    note_load(table, entry.slot)
    if entry.control != 0:
        subtract32(&table.entries[entry.control].children, 1, RELEASE)
    bring_up(table, entry)
    lock(&table.free_lock)
    free_entry(table, entry, load64(&table.epoch, SEQUENTIAL))
    table.used -= 1
    unlock(&table.free_lock)
    return True


cdef void bring_up(table_t* table, connection_t* entry) noexcept nogil:
    """Have the kernel forward no more of a connection by itself."""
    if load32(&entry.place, SEQUENTIAL) != 0 and table.offload != NULL:
        take_out(<offload_t*>table.offload, entry)


cdef inline void free_entry(table_t* table, connection_t* entry, uint64_t epoch) noexcept nogil:
    """Queue a removed entry for later use; under the free lock."""
    cdef uint32_t index = <uint32_t>(entry - table.entries)
    entry.freed = epoch
    entry.timer_next = 0
    if table.free_tail == 0:
        table.free_head = index
    else:
        table.entries[table.free_tail].timer_next = index
    table.free_tail = index


cdef void link(table_t* table, connection_t* entry) noexcept nogil:
    """Put an entry into the wheel where it expires, or as far ahead as the wheel reaches; under the wheel lock."""
    cdef uint32_t due = load32(&entry.expires, RELAXED)
    cdef uint32_t index = <uint32_t>(entry - table.entries)
    cdef uint32_t* head
    if due < table.wheel_tick:
        due = table.wheel_tick
    if due - table.wheel_tick > WHEEL - 1:
        due = table.wheel_tick + WHEEL - 1
    head = &table.wheel[due & (WHEEL - 1)]
    entry.timer_next = head[0]
    entry.timer_previous = 0
    if head[0] != 0:
        table.entries[head[0]].timer_previous = index
    head[0] = index
    store32(&entry.due, due, RELAXED)


cdef void unlink(table_t* table, connection_t* entry) noexcept nogil:
    if entry.timer_previous != 0:
        table.entries[entry.timer_previous].timer_next = entry.timer_next
    else:
        table.wheel[entry.due & (WHEEL - 1)] = entry.timer_next
    if entry.timer_next != 0:
        table.entries[entry.timer_next].timer_previous = entry.timer_previous
    store32(&entry.due, 0, RELAXED)


cdef void hasten(table_t* table, connection_t* entry) noexcept nogil:
    """The entry now expires before the wheel would look: move it forward."""
    lock(&table.wheel_lock)
    if entry.due != 0 and entry.expires < entry.due:
        unlink(table, entry)
        link(table, entry)
    unlock(&table.wheel_lock)


cdef void abandon(table_t* table, connection_t* entry, uint32_t now) noexcept nogil:
    """No request finds the connection any more; replies that are under way do, for LINGER ticks."""
    entry.flags |= LEFT
    bring_up(table, entry)
    store32(&entry.expires, now + LINGER, RELAXED)
    if entry.expires < load32(&entry.due, RELAXED):
        hasten(table, entry)


cdef int expire(table_t* table, uint32_t now, int budget) noexcept nogil:
    """Remove connections whose time is over at tick `now`, doing at most about `budget` steps; returns how many went.

    The caller is inside a batch (`enter`): an entry that is out of the wheel while it is judged cannot be taken again.
    """
    cdef connection_t* popped[POPPED]
    cdef connection_t* entry
    cdef uint32_t index
    cdef int gone = 0
    cdef int n = 1
    cdef int i
    if load32(&table.wheel_tick, RELAXED) > now:             # some worker looked in this tick
        return 0
    while n != 0 and budget > 0:
        n = 0
        lock(&table.wheel_lock)
        if now > table.wheel_tick + WHEEL:
            table.wheel_tick = now - WHEEL                   # every place is due: one lap is enough
        while table.wheel_tick <= now and budget > 0 and n < POPPED:
            budget -= 1
            index = table.wheel[table.wheel_tick & (WHEEL - 1)]
            if index == 0:
                table.wheel_tick += 1
                continue
            entry = &table.entries[index]
            unlink(table, entry)
            if entry.timer_next != 0:
                prefetch(&table.entries[entry.timer_next].word)
            if load32(&entry.expires, RELAXED) > now:
                link(table, entry)
            else:
                prefetch(bucket_of(table, entry.hash))
                popped[n] = entry
                n += 1
        unlock(&table.wheel_lock)
        for i in range(n):
            entry = popped[i]
            if load32(&entry.expires, RELAXED) <= now and may_go(table, entry, now):
                gone += remove(table, entry)
                continue
            lock(&table.wheel_lock)                          # a packet came in between, or it has connections
            if load32(&entry.word, ACQUIRE) & LIFE == LIVE:
                link(table, entry)
            unlock(&table.wheel_lock)
    if gone:
        add32(&table.expired, gone, RELAXED)
    return gone


cdef bint may_go(table_t* table, connection_t* entry, uint32_t now) noexcept nogil:
    """False for a template that controls connections: it stays, and is looked at again. From a template that may go no
    new connection begins. False for a connection of which the kernel forwarded packets just now.
    """
    cdef bint idle
    cdef uint32_t place
    if not entry.flags & TEMPLATE:
        place = load32(&entry.place, ACQUIRE)
        if place == 0 or table.offload == NULL or not is_busy(<offload_t*>table.offload, place):
            return True
        store32(&entry.expires, now + SOON, RELAXED)         # the follower sets it right
        return False
    hold(table, entry.hash, entry.hash)
    idle = load32(&entry.children, ACQUIRE) == 0
    if idle:
        entry.flags |= LEFT
    else:
        store32(&entry.expires, now + REARM, RELAXED)
    let_go(table, entry.hash, entry.hash)
    return idle


# --- batches ---------------------------------------------------------------------------------------------------------

cdef int new_reader(table_t* table) except -1:
    """A number for a worker; it holds nothing until it enters."""
    if table.reader_count == READERS:
        raise ValueError(f"a table serves at most {READERS} workers")
    store64(&table.readers[table.reader_count].seen, IDLE, SEQUENTIAL)
    table.reader_count += 1
    return table.reader_count - 1


cdef void enter(table_t* table, int reader) noexcept nogil:
    """A worker begins a batch: what it finds from now on stays where it is until it leaves."""
    store64(&table.readers[reader].seen, add64(&table.epoch, 1, SEQUENTIAL) + 1, SEQUENTIAL)


cdef void leave(table_t* table, int reader) noexcept nogil:
    store64(&table.readers[reader].seen, IDLE, SEQUENTIAL)


cdef bint passed(table_t* table, uint64_t epoch) noexcept nogil:
    """Whether every worker has begun its batch after `epoch`, or is in none."""
    cdef uint32_t i
    for i in range(table.reader_count):
        if load64(&table.readers[i].seen, SEQUENTIAL) <= epoch:
            return False
    return True


# --- as Python sees it -----------------------------------------------------------------------------------------------

cdef uint32_t sound(const table_t* table, const connection_t* entry, uint32_t now) noexcept:
    """The state word of an entry of an unknown past, or 0 unless it is live, whole, timely, and of a known server."""
    cdef const slot_t* slot
    cdef uint32_t state = (entry.word & STATE_MASK) >> STATE_SHIFT
    if entry.word & LIFE != LIVE:
        return 0
    if entry.flags & TEMPLATE:
        return sound_template(table, entry, now, state)
    if not exists(entry.protocol, state) or not 0 < entry.slot < table.slot_count:
        return 0
    if entry.expires <= now or entry.expires - now > LONGEST:
        return 0
    if entry.flags & ~ANSWERED not in (NAT, DIRECT | NO_OUTPUT, TUNNEL | NO_OUTPUT):
        return 0
    slot = &table.slots[entry.slot]
    if not slot.used or not same(&slot.server, &entry.server):
        return 0
    if entry.sport != (slot.sport or entry.vport) and (slot.sport == 0 or entry.sport != entry.vport):
        return 0
    if not slot.vport <= entry.vport <= slot.last and not is_ftp_data(slot, entry):
        return 0
    if slot.mark:
        if slot.protocol or slot.vport or slot.last != LAST_PORT:
            return 0
    elif slot.protocol != entry.protocol or not same(&slot.virtual, &entry.virtual):
        return 0
    return LIVE | state << STATE_SHIFT | (0 if is_active(entry.protocol, state) else INACTIVE)


cdef inline bint is_ftp_data(const slot_t* slot, const connection_t* entry) noexcept:
    """Whether a connection may be one of data, which a persistent service of FTP has beside its own port."""
    return slot.vport == FTP and entry.protocol == TCP and (entry.vport == FTP_DATA or entry.vport >= UNPRIVILEGED)


cdef bint was_left(const table_t* table, const connection_t* entry, uint32_t now) noexcept:
    """Whether an entry that is not sound only waited for replies of a real server that its flow had left."""
    cdef connection_t whole = entry[0]
    whole.flags &= <uint8_t>~LEFT
    return entry.flags & LEFT and sound(table, &whole, now) != 0


cdef uint32_t sound_template(const table_t* table, const connection_t* entry, uint32_t now, uint32_t state) noexcept:
    """As `sound`, for a template."""
    cdef const slot_t* slot
    if entry.cport or state > ASSURED or not 0 < entry.slot < table.slot_count or entry.control:
        return 0
    if entry.expires <= now or entry.expires - now > LONGEST:
        return 0
    if entry.flags & ~(TEMPLATE | CALL) not in (NAT, DIRECT, TUNNEL):
        return 0
    slot = &table.slots[entry.slot]
    if not slot.used or not same(&slot.server, &entry.server) or slot.protocol != entry.protocol:
        return 0
    if entry.sport != slot.sport or (entry.vport and entry.vport != slot.vport):
        return 0
    if not slot.mark and not same(&slot.virtual, &entry.virtual):
        return 0
    return LIVE | state << STATE_SHIFT | INACTIVE


cdef uint64_t slots_of(int capacity) noexcept:
    """How many real servers a table of that capacity knows."""
    return min(1 << 17, max(1024, capacity // 4))


cdef tuple number_key(const slot_t* slot):
    """A slot in Table.numbers."""
    return (
        slot.protocol, (<char*>&slot.virtual)[:16], slot.vport, (<char*>&slot.server)[:16], slot.sport,
        slot.last, slot.mark,
    )


cdef tuple group_key(const slot_t* slot):
    """Its service in Table.groups."""
    return slot.protocol, (<char*>&slot.virtual)[:16], slot.vport, slot.last, slot.mark


cdef bytes boot_id():
    return bytes.fromhex(Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", ""))


def unfit(int fd, int capacity) -> str:
    """Why a table of that capacity finds no connections in the file although something is there; else nothing."""
    cdef header_t header
    cdef bytes data = os.pread(fd, sizeof(header_t), 0) if fd >= 0 else b""
    if not data.strip(b"\0"):
        return ""
    memset(&header, 0, sizeof(header_t))
    memcpy(&header, <const char*>data, len(data))
    if header.magic != MAGIC:
        return "it is no table"
    if header.layout != LAYOUT:
        return f"its layout is {header.layout >> 48} ({header.layout:#x}), not {VERSION} ({LAYOUT:#x})"
    if header.capacity != <uint64_t>capacity or header.slots != slots_of(capacity):
        return (
            f"it has {header.capacity} places for connections and {header.slots} for real servers, "
            f"not {capacity} and {slots_of(capacity)}"
        )
    if (<char*>header.boot)[:16] != boot_id():
        return "it was made before the machine was started"
    return ""


cdef class Table:
    """All connections of one director.

    `fd` is a file of shared memory that this table owns alone, or -1 for private memory. A file that was written in
    this boot, with this layout and capacity, is adopted: its live connections and slots are found again. Any other
    content is cleared, and `lost` says why. Raises OSError where the memory cannot be had (the file is allocated whole,
    never sparse), ValueError for a capacity out of range. `now` is CLOCK_BOOTTIME in nanoseconds.
    """

    ENTRY = sizeof(connection_t)             # bytes of a connection

    def __cinit__(self, int fd, int capacity, now):
        cdef size_t slots_size
        cdef int error
        cdef bint fresh = True
        if not 64 <= capacity <= 1 << 26:
            raise ValueError(f"capacity {capacity}: use 64 to {1 << 26}")
        self.table = <table_t*>cache_lines(sizeof(table_t))
        if self.table == NULL:
            raise MemoryError
        self.capacity = capacity
        self.fd = fd
        self.numbers = {}
        self.groups = {}
        self.spare_groups = []
        self.next_slot = 1
        self.table.capacity = capacity
        self.table.slot_count = slots_of(capacity)
        self.lost = unfit(fd, capacity)
        slots_size = (self.table.slot_count * sizeof(slot_t) + PAGE - 1) // PAGE * PAGE
        self.size = PAGE + slots_size + (<size_t>capacity + 1) * sizeof(connection_t)
        if fd >= 0:
            fresh = os.fstat(fd).st_size != self.size
            if fresh and ftruncate(fd, 0) != 0:
                raise OSError(errno, os.strerror(errno))
            error = posix_fallocate(fd, 0, self.size)
            if error:
                raise OSError(error, f"{os.strerror(error)}: {self.size >> 20} MiB for {capacity} connections")
            self.memory = mmap(NULL, self.size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
            if self.memory == MAP_FAILED:
                self.memory = NULL
                raise OSError(errno, os.strerror(errno))
            allow_huge(self.memory, self.size)
        else:
            self.memory = anonymous(self.size)
            if self.memory == NULL:
                raise MemoryError
        self.table.header = <header_t*>self.memory
        self.table.slots = <slot_t*>(<uint8_t*>self.memory + PAGE)
        self.table.entries = <connection_t*>(<uint8_t*>self.memory + PAGE + slots_size)
        self.table.bucket_mask = (1 << max(4, (capacity // 4 - 1).bit_length())) - 1
        self.table.buckets = <bucket_t*>anonymous((self.table.bucket_mask + 1) * sizeof(bucket_t))
        self.table.wheel = <uint32_t*>calloc(WHEEL, sizeof(uint32_t))
        self.table.loads = <load_t*>calloc(self.table.slot_count, sizeof(load_t))
        self.table.watch = <leaf_t**>calloc(self.table.slot_count, sizeof(leaf_t*))
        self.table.totals = <uint32_t*>calloc(self.table.slot_count, sizeof(uint32_t))
        if self.table.buckets == NULL or self.table.wheel == NULL or self.table.loads == NULL \
                or self.table.watch == NULL or self.table.totals == NULL:
            raise MemoryError
        self.table.untouched = 1
        self.table.epoch = 1
        self.table.wheel_tick = now // TICK
        self._open(now // TICK, fresh)

    def _open(self, uint32_t now, bint fresh):
        """Take over what the file holds, or clear it; a `fresh` one is all zeros."""
        cdef header_t* header = self.table.header
        cdef bytes boot = boot_id()
        cdef bytes key = os.urandom(16)
        cdef bint found = not fresh and not self.lost and header.magic == MAGIC
        cdef bint keyed
        if not found and not fresh:
            memset(self.memory, 0, self.size)
        keyed = header.key[0] != 0 or header.key[1] != 0     # not in a file of before it was kept
        if not keyed:
            memcpy(header.key, <const char*>key, 16)
        memcpy(self.table.key, header.key, 16)
        if found:
            self._adopt(now, keyed)
        header.magic = MAGIC
        header.layout = LAYOUT
        header.capacity = self.table.capacity
        header.slots = self.table.slot_count
        header.generation += 1
        header.clean = 0
        memcpy(header.boot, <const char*>boot, 16)

    def _adopt(self, uint32_t now, bint keyed):
        """Rebuild index, timers, counts and free list from the entries; what makes no sense is freed. So are templates
        of calls that are not `keyed`: their hash alone says of which call each is, and it was made with another key.
        """
        cdef table_t* table = self.table
        cdef connection_t* entry
        cdef slot_t* slot
        cdef uint32_t words[GROUP]
        cdef uint32_t first, i
        for i in range(1, table.slot_count):
            slot = &table.slots[i]
            if slot.used:
                self.numbers[number_key(slot)] = i
                self._group(i)
        table.untouched = table.capacity + 1
        for first in range(1, table.capacity + 1, GROUP):
            for i in range(min(GROUP, table.capacity + 1 - first)):
                entry = &table.entries[first + i]
                words[i] = sound(table, entry, now) if keyed or not entry.flags & CALL else 0
                if words[i]:
                    if not entry.flags & CALL:
                        entry.hash = hash_endpoint(table.key, &entry.client, entry.cport, entry.protocol)
                    prefetch(bucket_of(table, entry.hash))
            for i in range(min(GROUP, table.capacity + 1 - first)):
                entry = &table.entries[first + i]
                if words[i]:
                    entry.place = entry.nominated = entry.began = 0
                    show(table, entry, words[i])
                    table.used += 1
                else:
                    self.torn += not (entry.word == FREE or entry.word & LIFE == LIVE and entry.expires <= now
                                      or was_left(table, entry, now))
                    entry.word = FREE
                    free_entry(table, entry, 0)
        self._count_children()
        self.adopted = table.used

    def _count_children(self):
        """A connection keeps the template that it names if there is one of the same server; counts start from 0."""
        cdef table_t* table = self.table
        cdef connection_t* entry
        cdef connection_t* template
        cdef uint32_t i
        for i in range(1, table.capacity + 1):
            table.entries[i].children = 0
        for i in range(1, table.capacity + 1):
            entry = &table.entries[i]
            if entry.word & LIFE != LIVE or entry.control == 0:
                continue
            template = &table.entries[entry.control] if entry.control <= table.capacity else NULL
            if template == NULL or template.word & LIFE != LIVE or not template.flags & TEMPLATE \
                    or template.slot != entry.slot:
                entry.control = 0
            else:
                template.children += 1

    def __dealloc__(self):
        if self.table != NULL:
            give_back(self.memory, self.size)
            give_back(self.table.buckets, (self.table.bucket_mask + 1) * sizeof(bucket_t))
            free(self.table.wheel)
            free(self.table.loads)
            free(self.table.watch)
            free(self.table.totals)
            give_back(self.table.told, (<size_t>self.capacity + 1) * sizeof(told_t))
            free(self.table)

    @property
    def used(self) -> int:
        """Connections now, those whose time is over but that were not yet looked at included."""
        return self.table.used

    @property
    def expired(self) -> int:
        """Connections that ended by their timer since the table was opened, modulo 2**32."""
        return self.table.expired

    @property
    def waited(self) -> dict[str, int]:
        """How often a worker found a lock held by another, by what the lock is of; goes through the whole index."""
        cdef uint64_t buckets = 0
        cdef uint64_t i
        for i in range(self.table.bucket_mask + 1):
            buckets += self.table.buckets[i].lock.waited
        return {"bucket": buckets, "free list": self.table.free_lock.waited, "wheel": self.table.wheel_lock.waited}

    @property
    def memory_used(self) -> int:
        """Bytes of the entries and of the index over them, all that grows with the capacity."""
        return (<size_t>self.capacity + 1) * sizeof(connection_t) + (self.table.bucket_mask + 1) * sizeof(bucket_t)

    def slot(self, int protocol, vip: bytes, int vport, address: bytes, int port, int last = 0,
             unsigned int mark = 0) -> int:
        """The stable number of a real server of a virtual service (as in snapshot.Service): found, or given now, until
        Datapath.release. Raises ValueError when all are given.
        """
        cdef slot_t* slot
        cdef uint32_t number = self.next_slot
        last = max(vport, last) if vport else LAST_PORT
        key = (protocol, vip, vport, address, port, last, mark)
        if key in self.numbers:
            return self.numbers[key]
        while number < self.table.slot_count and self.table.slots[number].used:
            number += 1
        if number == self.table.slot_count:
            raise ValueError(f"no room for more than {self.table.slot_count - 1} real servers: raise --connections")
        slot = &self.table.slots[number]
        slot.virtual = address_from(vip)
        slot.server = address_from(address)
        slot.vport = vport
        slot.last = last
        slot.mark = mark
        slot.sport = port
        slot.protocol = protocol
        slot.used = 1
        self.next_slot = number + 1
        self.numbers[key] = number
        self._group(number)
        self.table.loads[number].latency = 0                 # another server's
        return number

    cdef bint free_slot(self, uint32_t number):
        """Let go a slot that no snapshot names; False, and nothing is done, while an entry does."""
        cdef slot_t* slot = &self.table.slots[number]
        cdef load_t* load = &self.table.loads[number]
        if load.active or load.inactive or load.persistent:
            return False
        del self.numbers[number_key(slot)]
        group = self.groups[group_key(slot)]
        group[1] -= 1
        if group[1] == 0:
            self.spare_groups.append(self.groups.pop(group_key(slot))[0])
        slot.used = 0
        self.next_slot = min(self.next_slot, number)
        return True

    def _group(self, uint32_t number):
        """Have the connections of a slot counted for its service."""
        key = group_key(&self.table.slots[number])
        if key not in self.groups:
            self.groups[key] = [self.spare_groups.pop() if self.spare_groups else len(self.groups), 0]
        self.groups[key][1] += 1
        self.table.loads[number].group = self.groups[key][0]

    @property
    def known(self) -> list[int]:
        """All slots that were given and not released."""
        return list(self.numbers.values())

    def load(self, uint32_t slot) -> tuple[int, int]:
        """(ActiveConn, InActConn) of a slot."""
        if slot >= self.table.slot_count:
            raise IndexError(slot)
        return self.table.loads[slot].active, self.table.loads[slot].inactive

    def connections(self, now: int, int limit = 0) -> list[tuple]:
        """(protocol, client, cport, vip, vport, server, port, state, seconds left, template) of each connection,
        `limit` at most (0: all). A template says where a client goes next; state 1: a connection of it was answered.
        """
        cdef connection_t entry
        cdef uint32_t tick = now // TICK
        cdef uint32_t i
        found = []
        for i in range(1, self.table.untouched):
            if load32(&self.table.entries[i].word, ACQUIRE) & LIFE != LIVE:
                continue
            memcpy(&entry, &self.table.entries[i], sizeof(connection_t))
            if entry.expires <= tick or load32(&self.table.entries[i].word, ACQUIRE) & LIFE != LIVE:
                continue
            found.append((
                entry.protocol, (<char*>&entry.client)[:16], entry.cport, (<char*>&entry.virtual)[:16], entry.vport,
                (<char*>&entry.server)[:16], entry.sport, (entry.word & STATE_MASK) >> STATE_SHIFT,
                (entry.expires - tick + 9) // 10, entry.flags & TEMPLATE != 0,
            ))
            if len(found) == limit:
                break
        return found

    def close(self, bint clean) -> None:
        """Say in the file that this end was meant (`clean`) or that the connections are for a successor."""
        self.table.header.clean = clean
