"""The thread that follows what the kernel does with flows that it forwards by itself.

Strategy. It is a worker without a queue. The ring wakes it for FIN and RST, which it has tracked as if they had come
up; some milliseconds lie between two looks, so that a mass of endings wakes it seldom. Once a round, all places are
gone through: what was counted there is added to the counters, a connection whose count moved gets its timer set anew,
one whose real server, hop or service does not fit any more comes up again, and so does one that has ended and is quiet.
The timers of connections are therefore right within a round, without a clock in the kernel's path.
"""
from libc.errno cimport EINTR, errno
from libc.stdint cimport int32_t, uint32_t, uint64_t
from posix.time cimport CLOCK_BOOTTIME, clock_gettime, timespec
from posix.unistd cimport close, read, write

import os

from nfqlb._core.atomic cimport ACQUIRE, RELAXED, SEQUENTIAL, load32, load64, load_pointer, lock, store32, unlock
from nfqlb._core.connection cimport enter, hasten, leave
from nfqlb._core.datapath cimport Datapath, Worker, catch_up, come_up, worker_t
from nfqlb._core.offload cimport (
    OFFLOAD_ENDS,
    Offload,
    ends_of,
    first_released,
    next_event,
    offload_t,
    owner_t,
    packets_of,
    passed_t,
    reap,
)
from nfqlb._core.telemetry cimport telemetry_t
from nfqlb._core.tracking cimport patience
from nfqlb._core.types cimport (
    DIRECT,
    FORWARDED,
    LEARNS,
    LEFT,
    LIFE,
    LIVE,
    MARKED,
    MAY_OFFLOAD,
    NAT,
    RETURNED,
    ROUTED,
    TICK,
    TUNNELLED,
    connection_t,
    counter_t,
    reason_t,
    snapshot_t,
)


cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    enum:
        POLLIN
    int poll(pollfd*, unsigned long, int)

cdef extern from "<sys/eventfd.h>" nogil:
    int eventfd(unsigned int, int)
    enum:
        EFD_CLOEXEC
        EFD_NONBLOCK

cdef extern from "<unistd.h>" nogil:
    int usleep(unsigned int)

cdef enum:
    ROUND = 1000                         # milliseconds between two looks at all places
    BREATH = 5000                        # microseconds between two looks at the ring
    SIGHTS = 4                           # of a client, in the time after which it is forgotten
    GROUP = 256                          # places in one batch: others' entries are used again in between


cdef class Follower:
    """Follows the offload of a datapath. `run` blocks without the GIL until `stop`."""

    cdef Worker worker
    cdef Offload offload
    cdef int wake
    cdef uint32_t stopping

    def __cinit__(self, Datapath datapath not None):
        if datapath.offload is None:
            raise ValueError("there is no offload to follow")
        self.wake = -1
        self.worker = datapath.worker()
        self.offload = datapath.offload
        datapath.follower = self
        self.wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if self.wake < 0:
            raise OSError(errno, os.strerror(errno))

    def __dealloc__(self):
        if self.wake >= 0:
            close(self.wake)

    def run(self) -> None:
        """Follow until `stop` is called."""
        with nogil:
            loop(self)

    def look(self) -> None:
        """Have it go through all places now: services, real servers or hops have changed."""
        cdef uint64_t one = 1
        write(self.wake, &one, 8)

    def go_through(self, now: int) -> None:
        """One look at all places at `now` (CLOCK_BOOTTIME, nanoseconds), as `run` has it once a second."""
        cdef uint64_t when = now
        with nogil:
            go_through(self, when)

    def stop(self) -> None:
        store32(&self.stopping, 1, RELAXED)
        self.look()

    def count(self) -> None:
        """Bring the counters up to what the kernel has forwarded until now."""
        with nogil:
            count_all(self)


cdef void loop(Follower follower) noexcept nogil:
    cdef pollfd waiting[2]
    cdef uint64_t last = boottime()
    cdef uint64_t now
    cdef uint64_t told
    cdef int left
    waiting[0].fd = follower.offload.ring
    waiting[1].fd = follower.wake
    waiting[0].events = waiting[1].events = POLLIN
    while not load32(&follower.stopping, RELAXED):
        now = boottime()
        left = ROUND - <int>((now - last) // 1_000_000)
        waiting[0].revents = waiting[1].revents = 0
        if left > 0 and poll(waiting, 2, left) < 0 and errno != EINTR:
            usleep(BREATH)
        now = boottime()
        follow_ring(follower, now)
        if waiting[1].revents:
            read(follower.wake, &told, 8)
        if waiting[1].revents or now - last >= <uint64_t>ROUND * 1_000_000:
            go_through(follower, now)
            last = now
        usleep(BREATH)


cdef inline uint64_t boottime() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_BOOTTIME, &now)
    return <uint64_t>now.tv_sec * 1_000_000_000 + now.tv_nsec


cdef void begin(worker_t* worker, uint64_t now) noexcept nogil:
    enter(worker.table, worker.reader)
    worker.now = now // TICK
    worker.snapshot = <snapshot_t*>load_pointer(<void**>worker.published, SEQUENTIAL)


cdef connection_t* tenant(worker_t* worker, offload_t* offload, uint32_t place) noexcept nogil:
    """The connection that has a place, or NULL; the caller is in a batch."""
    cdef uint32_t index = load32(&offload.owners[place].connection, ACQUIRE)
    cdef connection_t* connection = &worker.table.entries[index]
    if index == 0 or load32(&connection.word, ACQUIRE) & LIFE != LIVE or load32(&connection.place, ACQUIRE) != place:
        return NULL
    return connection


cdef void follow_ring(Follower follower, uint64_t now) noexcept nogil:
    """Track what the ring tells of."""
    cdef worker_t* worker = &follower.worker.worker
    cdef uint32_t place = next_event(follower.offload)
    cdef connection_t* connection
    if place == 0:
        return
    begin(worker, now)
    while place != 0:
        connection = tenant(worker, &follower.offload.offload, place)
        if connection != NULL:
            catch_up(worker, connection)
        place = next_event(follower.offload)
    leave(worker.table, worker.reader)


cdef void go_through(Follower follower, uint64_t now) noexcept nogil:
    """One round over all places."""
    cdef worker_t* worker = &follower.worker.worker
    cdef offload_t* offload = &follower.offload.offload
    cdef uint32_t last = load32(&offload.untouched, ACQUIRE)
    cdef uint32_t place = 1
    cdef uint32_t i
    cdef connection_t* connection
    count_all(follower)
    while place < last:
        begin(worker, now)
        for i in range(place, min(place + GROUP, last)):
            connection = tenant(worker, offload, i)
            if connection != NULL:
                look_after(worker, offload, i, connection)
        leave(worker.table, worker.reader)
        place += GROUP
    while True:
        place = first_released(offload, <uint32_t>(now // TICK))
        if place == 0:
            break
        lock(&offload.counting)
        count(worker.telemetry, offload, place)
        reap(offload, place)
        unlock(&offload.counting)


cdef void look_after(worker_t* worker, offload_t* offload, uint32_t place, connection_t* connection) noexcept nogil:
    """Set the timer of a connection that was used since the last round; bring up what is not to be forwarded so."""
    cdef owner_t* owner = &offload.owners[place]
    cdef uint64_t packets = packets_of(offload, place)
    cdef uint64_t requests = load64(&offload.places[place].direction[0].packets, RELAXED)
    cdef uint32_t expires
    catch_up(worker, connection)
    if not is_wanted(worker, owner, connection) or is_overdue(worker, owner, connection) \
            or (packets == owner.noticed and ends_of(offload, place) & OFFLOAD_ENDS):
        come_up(worker, connection)
    if packets == owner.noticed:
        return
    connection.inpackets += <uint32_t>(requests - owner.requests)
    connection.outpackets += <uint32_t>(packets - owner.noticed - (requests - owner.requests))
    owner.noticed = packets
    owner.requests = requests
    expires = worker.now + patience(worker.snapshot, connection)
    store32(&connection.expires, expires, RELAXED)
    if expires < load32(&connection.due, RELAXED):
        hasten(worker.table, connection)


cdef bint is_wanted(worker_t* worker, const owner_t* owner, const connection_t* connection) noexcept nogil:
    """Whether the kernel may go on with a connection, the way that it goes."""
    return connection.slot < worker.snapshot.slot_count \
        and worker.snapshot.available[connection.slot] & MAY_OFFLOAD != 0 \
        and not connection.flags & LEFT \
        and owner.turn == load32(&worker.turns[connection.slot], ACQUIRE)


cdef bint is_overdue(worker_t* worker, const owner_t* owner, const connection_t* connection) noexcept nogil:
    """Whether the kernel's rules have to see a packet of the client's again: they forget it after as long as the
    connection may be silent.
    """
    return worker.snapshot.available[connection.slot] & LEARNS != 0 \
        and <int32_t>(worker.now - owner.since) > <int32_t>(patience(worker.snapshot, connection) // SIGHTS)


# -- counters ---------------------------------------------------------------------------------------------------------

cdef void count_all(Follower follower) noexcept nogil:
    cdef offload_t* offload = &follower.offload.offload
    cdef uint32_t place
    lock(&offload.counting)
    for place in range(1, load32(&offload.untouched, ACQUIRE)):
        if offload.owners[place].slot != 0:
            count(follower.worker.worker.telemetry, offload, place)
    unlock(&offload.counting)


cdef void count(telemetry_t* telemetry, offload_t* offload, uint32_t place) noexcept nogil:
    """Add what a place counted since the last time to its real server's counters."""
    cdef owner_t* owner = &offload.owners[place]
    cdef counter_t* counter = &telemetry.slots[owner.slot]
    cdef passed_t now[2]
    cdef uint64_t requests, replies
    cdef uint64_t size = 0
    cdef int i
    for i in range(2):
        now[i].packets = load64(&offload.places[place].direction[i].packets, RELAXED)
        now[i].bytes = load64(&offload.places[place].direction[i].bytes, RELAXED)
    requests = now[0].packets - owner.counted[0].packets
    replies = now[1].packets - owner.counted[1].packets
    for i in range(2):
        size += now[i].bytes - owner.counted[i].bytes
    if requests == 0 and replies == 0 and size == 0:         # the program adds bytes after the packet
        return
    counter.inpackets += requests
    counter.outpackets += replies
    counter.inbytes += now[0].bytes - owner.counted[0].bytes
    counter.outbytes += now[1].bytes - owner.counted[1].bytes
    telemetry.reasons[<int>reason_of(owner)] += requests
    telemetry.reasons[<int>RETURNED] += replies
    offload.packets += requests + replies
    owner.counted[0] = now[0]
    owner.counted[1] = now[1]


cdef inline reason_t reason_of(const owner_t* owner) noexcept nogil:
    """The way out that the engine's own packets of such a flow have."""
    if owner.method == NAT:
        return FORWARDED
    if owner.method == DIRECT:
        return MARKED if owner.marked else ROUTED
    return TUNNELLED
