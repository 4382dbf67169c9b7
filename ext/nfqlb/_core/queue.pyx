"""The fast engine: batches out of NFQUEUE, through the data path, and their verdicts back.

Strategy. The queues are opened and bound elsewhere (netfilterqueue); this file drives their sockets, for that package
receives and answers one packet per system call and copies 4,016 bytes at most. `recvmmsg` brings up to BATCH packets
into buffers that are never copied; the data path rewrites them in place; all verdicts of the batch go back in one
`sendmsg`, each payload gathered from the buffer it came in. A run of equal verdicts without payload is one batch
verdict. What goes to a real server as a frame is dropped here and sent from the same buffer (transmit.pyx). The thread
blocks in poll when there is nothing, and an eventfd ends that.

Formats: include/uapi/linux/netfilter/nfnetlink_queue.h and linux/netlink.h. Message numbers are big endian, netlink's
own header is in host order.
"""
from libc.errno cimport EAGAIN, EINTR, ENOBUFS, errno
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from posix.mman cimport MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, PROT_READ, PROT_WRITE, mmap, munmap
from posix.time cimport clock_gettime, timespec
from posix.unistd cimport close, write

import os
import socket

from nfqlb._core.atomic cimport RELAXED, load32, store32
from nfqlb._core.datapath cimport Worker, run_batch, settle
from nfqlb._core.transmit cimport Transmitter, post, send_frames
from nfqlb._core.types cimport ACCEPT, BATCH, DROP, HEAD, MARK, REWRITE, TRANSMIT, packet_t
from nfqlb._core.wire cimport htonl, htons, ntohl


cdef extern from "<sys/eventfd.h>" nogil:
    int eventfd(unsigned int, int)
    enum:
        EFD_CLOEXEC
        EFD_NONBLOCK

cdef enum:
    QUEUES = 4                           # of one engine
    FLUSH = 1 << 20                      # bytes of verdicts in one sendmsg, at most about
    LOOK = 8                             # full batches in a row, after which the socket's buffer is looked at
    EXPIRE_BUDGET = 512                  # timer steps for each batch
    EXPIRE_IDLE = 16384                  # and when there is nothing else to do
    NFQUEUES_FLAGS = 7
    MARKED_HEADER = HEADER + 4           # bytes of a verdict with a mark


cdef struct queue_t:
    int fd
    uint16_t number                      # network order
    bint fresh                           # no packet seen yet
    uint8_t flags                        # of all its packets: HEAD or none
    int turn                             # full batches before the next queue is served
    uint32_t full                        # batches in a row that were full
    bint behind                          # half of the socket's buffer waits, or did and a quarter does still
    uint8_t* memory
    packet_t packets[BATCH]
    mmsghdr messages[BATCH]
    iovec into[BATCH]
    uint8_t headers[BATCH][MARKED_HEADER]
    iovec out[2 * BATCH]
    uint32_t flush                       # bytes that the send buffer can take at once
    uint64_t taken                       # packets
    uint64_t overruns                    # ENOBUFS: the socket's buffer was full
    uint64_t refused                     # verdicts that the kernel did not take
    uint64_t ignored                     # messages that made no sense


cdef class FastEngine:
    """Drives bound queues for one worker.

    `queues` are (socket, queue number), `heads` those numbers whose queues copy the headers alone, `firsts` those that
    bring first packets alone and give way to the others. Give them SO_RCVBUF and SO_SNDBUF first. `run` blocks without
    the GIL until `stop`; it raises OSError when a socket fails for good. Of a queue whose socket's buffer fills up,
    because more comes than is taken, nothing begins a connection. Packets that a predecessor on the same socket took
    and never answered are sent through the hook again.
    """

    cdef Worker worker
    cdef Transmitter transmitter
    cdef queue_t queues[QUEUES]
    cdef int count
    cdef int wake
    cdef uint32_t stopping

    def __cinit__(self, Worker worker not None, queues: Sequence[tuple[int, int]], heads: Collection[int] = (),
                  firsts: Collection[int] = ()):
        cdef queue_t* queue
        self.worker = worker
        self.transmitter = Transmitter()
        self.wake = -1
        if not 1 <= len(queues) <= QUEUES:
            raise ValueError(f"an engine drives 1 to {QUEUES} queues")
        for fd, number in queues:
            queue = &self.queues[self.count]
            memset(queue, 0, sizeof(queue_t))
            queue.memory = <uint8_t*>mmap(
                NULL, BATCH * STRIDE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
            if queue.memory == MAP_FAILED:
                queue.memory = NULL
                raise MemoryError
            self.count += 1
            queue.fd = fd
            queue.number = htons(number)
            queue.fresh = True
            queue.flags = HEAD if number in heads else 0
            queue.turn = 1 if number in firsts else TURN
            with socket.socket(fileno=os.dup(fd)) as s:
                queue.flush = min(FLUSH, s.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 2)
        self.wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if self.wake < 0:
            raise OSError(errno, os.strerror(errno))

    def __dealloc__(self):
        cdef int i
        for i in range(self.count):
            munmap(self.queues[i].memory, BATCH * STRIDE)
        if self.wake >= 0:
            close(self.wake)

    def run(self) -> None:
        """Take and answer packets until `stop` is called."""
        cdef int error
        with nogil:
            error = loop(self)
        if error:
            raise OSError(error, os.strerror(error))

    def stop(self) -> None:
        """End `run` after the batch at hand; from any thread or signal handler."""
        cdef uint64_t one = 1
        store32(&self.stopping, 1, RELAXED)
        write(self.wake, &one, 8)

    def statistics(self) -> list[dict[str, int]]:
        """For each queue: packets, overruns of the socket buffer, verdicts refused, messages ignored."""
        return [
            {
                "packets": self.queues[i].taken,
                "overruns": self.queues[i].overruns,
                "refused": self.queues[i].refused,
                "ignored": self.queues[i].ignored,
            }
            for i in range(self.count)
        ]


cdef int loop(FastEngine engine) noexcept nogil:
    """Until stopped: 0, or the error number that ended it."""
    cdef pollfd waiting[QUEUES + 1]
    cdef int i, got, ready
    for i in range(engine.count):
        waiting[i].fd = engine.queues[i].fd
        waiting[i].events = POLLIN
    waiting[engine.count].fd = engine.wake
    waiting[engine.count].events = POLLIN
    while not load32(&engine.stopping, RELAXED):
        ready = poll(waiting, engine.count + 1, IDLE_POLL)
        if ready < 0 and errno != EINTR:
            return errno
        if ready == 0:
            run_batch(&engine.worker.worker, NULL, 0, boottime(), EXPIRE_IDLE)
        for i in range(engine.count):
            if ready <= 0 or waiting[i].revents == 0:
                continue
            for _ in range(engine.queues[i].turn):
                got = serve(engine, &engine.queues[i])
                if got < 0:
                    return -got
                if got < BATCH:
                    break
    return 0


cdef inline uint64_t boottime() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_BOOTTIME, &now)
    return <uint64_t>now.tv_sec * 1_000_000_000 + now.tv_nsec


cdef int serve(FastEngine engine, queue_t* queue) noexcept nogil:
    """One batch: how many messages it had, or minus an error number."""
    cdef int got, i, count
    for i in range(BATCH):
        queue.into[i].iov_base = queue.memory + i * STRIDE
        queue.into[i].iov_len = STRIDE
        queue.messages[i].msg_hdr.msg_iov = &queue.into[i]
        queue.messages[i].msg_hdr.msg_iovlen = 1
    got = recvmmsg(queue.fd, queue.messages, BATCH, MSG_DONTWAIT, NULL)
    if got < 0:
        if errno == EAGAIN or errno == EINTR:
            return 0
        if errno == ENOBUFS:
            queue.overruns += 1
            return 1
        return -errno
    heed(queue, got)
    engine.worker.worker.behind = queue.behind
    count = 0
    for i in range(got):
        if decode(queue, queue.memory + i * STRIDE, queue.messages[i].msg_len, &queue.packets[count]):
            count += 1
    queue.taken += count
    if count:
        if queue.fresh:
            repeat_unanswered(queue)
        run_batch(&engine.worker.worker, queue.packets, count, boottime(), EXPIRE_BUDGET)
        send_frames(engine.transmitter, queue.packets, count)
        answer(queue, count)
        if engine.worker.worker.outbox.count:
            post(engine.transmitter, engine.worker.worker.outbox)
        if engine.worker.worker.nominees != NULL and engine.worker.worker.nominees.count:
            settle(&engine.worker.worker, is_empty(queue))
    return got


cdef void heed(queue_t* queue, int got) noexcept nogil:
    """See whether packets come faster than they are taken: then those that are established go before new ones."""
    cdef uint32_t memory[SK_MEMINFO_VARS]
    cdef unsigned int size = sizeof(memory)
    if got < BATCH:
        queue.full = 0
        queue.behind = False
        return
    queue.full += 1
    if queue.full % LOOK == 0 and getsockopt(queue.fd, SOL_SOCKET, SO_MEMINFO, memory, &size) == 0:
        queue.behind = memory[SK_MEMINFO_RMEM_ALLOC] > memory[SK_MEMINFO_RCVBUF] // (4 if queue.behind else 2)


cdef bint is_empty(queue_t* queue) noexcept nogil:
    """Whether no packet waits."""
    return recv(queue.fd, NULL, 0, MSG_PEEK | MSG_DONTWAIT) < 0 and errno == EAGAIN


cdef bint decode(queue_t* queue, uint8_t* message, uint32_t length, packet_t* packet) noexcept nogil:
    """Find the packet in a message of the kernel's; False when there is none."""
    cdef nlmsghdr header
    cdef nlattr attribute
    cdef nfqnl_msg_packet_hdr about
    cdef uint32_t value
    cdef uint32_t at = sizeof(nlmsghdr) + sizeof(nfgenmsg)
    memcpy(&header, message, sizeof(nlmsghdr))
    if header.nlmsg_type == NLMSG_ERROR:
        queue.refused += 1
        return False
    if header.nlmsg_type != (NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_PACKET) or header.nlmsg_len > length:
        queue.ignored += 1
        return False
    packet.data = NULL
    packet.captured = 0
    packet.mark = 0
    packet.flags = queue.flags
    packet.id = 0
    while at + sizeof(nlattr) <= header.nlmsg_len:
        memcpy(&attribute, message + at, sizeof(nlattr))
        if attribute.nla_len < sizeof(nlattr) or at + attribute.nla_len > header.nlmsg_len:
            break
        if attribute.nla_type & NLA_TYPE_MASK == NFQA_PACKET_HDR:
            memcpy(&about, message + at + 4, 7)
            packet.id = about.packet_id
            packet.hook = about.hook
        elif attribute.nla_type & NLA_TYPE_MASK == NFQA_PAYLOAD:
            packet.data = message + at + 4
            packet.captured = attribute.nla_len - 4
        elif attribute.nla_type & NLA_TYPE_MASK == NFQA_SKB_INFO:
            memcpy(&value, message + at + 4, 4)
            packet.flags = queue.flags | ntohl(value) & NFQUEUES_FLAGS
        elif attribute.nla_type & NLA_TYPE_MASK == NFQA_MARK:
            memcpy(&value, message + at + 4, 4)
            packet.mark = ntohl(value)
        at += (attribute.nla_len + 3) & ~<uint32_t>3
    if packet.id == 0:
        queue.ignored += 1
        return False
    if packet.data == NULL:                                  # an empty packet parses as malformed
        packet.data = message
    return True


cdef void answer(queue_t* queue, int count) noexcept nogil:
    """Send the verdicts of a batch, in its order."""
    cdef packet_t* packet
    cdef int pieces = 0
    cdef uint32_t size = 0
    cdef int i
    for i in range(count):
        packet = &queue.packets[i]
        if packet.verdict == REWRITE:
            queue.out[pieces].iov_base = put_verdict(queue, i, NFQNL_MSG_VERDICT, NF_ACCEPT, packet)
            queue.out[pieces].iov_len = HEADER
            queue.out[pieces + 1].iov_base = packet.data
            queue.out[pieces + 1].iov_len = (packet.captured + 3) & ~<uint32_t>3
            size += HEADER + queue.out[pieces + 1].iov_len
            pieces += 2
        elif i + 1 < count and is_answered_alike(packet, &queue.packets[i + 1]):
            continue                                         # in the middle of a run: the last of it speaks for all
        else:
            queue.out[pieces].iov_base = put_verdict(queue, i, NFQNL_MSG_VERDICT_BATCH, kernels(packet), packet)
            queue.out[pieces].iov_len = MARKED_HEADER if packet.verdict == MARK else HEADER - 4
            size += queue.out[pieces].iov_len
            pieces += 1
        if size >= queue.flush:
            send(queue, pieces)
            pieces = 0
            size = 0
    if pieces:
        send(queue, pieces)


cdef inline uint32_t kernels(const packet_t* packet) noexcept nogil:
    """What the kernel is to do with its own copy of the packet."""
    return NF_DROP if packet.verdict == DROP or packet.verdict == TRANSMIT else NF_ACCEPT


cdef inline bint is_answered_alike(const packet_t* packet, const packet_t* other) noexcept nogil:
    """Whether one batch verdict is good for both."""
    if packet.verdict == MARK or other.verdict == MARK:
        return packet.verdict == other.verdict and packet.mark == other.mark
    return other.verdict != REWRITE and kernels(packet) == kernels(other)


cdef void* put_verdict(queue_t* queue, int at, int kind, uint32_t verdict, const packet_t* packet) noexcept nogil:
    """Write the verdict message for packet `at` up to where a payload would begin."""
    cdef uint8_t* to = queue.headers[at]
    cdef nlmsghdr header
    cdef nfgenmsg general
    cdef nlattr attribute
    cdef uint32_t mark
    cdef bint payload = packet.verdict == REWRITE and kind == NFQNL_MSG_VERDICT
    header.nlmsg_len = HEADER - 4
    if payload:
        header.nlmsg_len = HEADER + ((packet.captured + 3) & ~<uint32_t>3)
    elif packet.verdict == MARK:
        header.nlmsg_len = MARKED_HEADER
    header.nlmsg_type = NFNL_SUBSYS_QUEUE << 8 | kind
    header.nlmsg_flags = NLM_F_REQUEST
    header.nlmsg_seq = 0
    header.nlmsg_pid = 0
    general.nfgen_family = 0
    general.version = NFNETLINK_V0
    general.res_id = queue.number
    attribute.nla_len = 12
    attribute.nla_type = NFQA_VERDICT_HDR
    verdict = htonl(verdict)
    memcpy(to, &header, 16)
    memcpy(to + 16, &general, 4)
    memcpy(to + 20, &attribute, 4)
    memcpy(to + 24, &verdict, 4)
    memcpy(to + 28, &packet.id, 4)
    if payload:
        attribute.nla_len = 4 + packet.captured
        attribute.nla_type = NFQA_PAYLOAD
        memcpy(to + 32, &attribute, 4)
    elif packet.verdict == MARK:
        mark = htonl(packet.mark)
        attribute.nla_len = 8
        attribute.nla_type = NFQA_MARK
        memcpy(to + 32, &attribute, 4)
        memcpy(to + 36, &mark, 4)
    return to


cdef void repeat_unanswered(queue_t* queue) noexcept nogil:
    """Packets in front of the first were handed to a predecessor that died: have the hook queue them again."""
    cdef packet_t before = queue.packets[0]
    queue.fresh = False
    before.id = htonl(ntohl(before.id) - 1)
    before.verdict = ACCEPT
    if before.id != 0:
        queue.out[0].iov_base = put_verdict(queue, 0, NFQNL_MSG_VERDICT_BATCH, NF_REPEAT, &before)
        queue.out[0].iov_len = HEADER - 4
        send(queue, 1)


cdef void send(queue_t* queue, int pieces) noexcept nogil:
    """Hand `pieces` of queue.out to the kernel; what it cannot take at once is tried message by message."""
    cdef msghdr message
    cdef int first = 0
    cdef int last
    memset(&message, 0, sizeof(msghdr))
    message.msg_iov = queue.out
    message.msg_iovlen = pieces
    if try_send(queue.fd, &message):
        return
    while first < pieces:
        last = first + 1
        if last < pieces and queue.out[first].iov_len == HEADER:
            last += 1
        message.msg_iov = &queue.out[first]
        message.msg_iovlen = last - first
        if not try_send(queue.fd, &message):
            queue.refused += 1
        first = last


cdef inline bint try_send(int fd, const msghdr* message) noexcept nogil:
    while sendmsg(fd, message, 0) < 0:
        if errno != EINTR:
            return False
    return True


def configure(int fd, int queue, *, bint gso, uint32_t copy_range = 65535, uint32_t maxlen = 16384,
              bint fail_open = False) -> None:
    """Set up a bound queue: bytes copied of each packet, packets that may wait, super-packets whole (`gso`), whether
    the kernel lets what finds no room pass (`fail_open`).

    Waits for the kernel's acknowledgement, so no rule may lead to the queue yet. Raises OSError with its error
    number.
    """
    flags = (NFQA_CFG_F_GSO if gso else 0) | (NFQA_CFG_F_FAIL_OPEN if fail_open else 0)
    body = (
        bytes([0, NFNETLINK_V0]) + queue.to_bytes(2, "big")
        + config_attribute(NFQA_CFG_PARAMS, copy_range.to_bytes(4, "big") + bytes([NFQNL_COPY_PACKET]))
        + config_attribute(NFQA_CFG_QUEUE_MAXLEN, maxlen.to_bytes(4, "big"))
        + config_attribute(NFQA_CFG_MASK, (NFQA_CFG_F_GSO | NFQA_CFG_F_FAIL_OPEN).to_bytes(4, "big"))
        + config_attribute(NFQA_CFG_FLAGS, flags.to_bytes(4, "big"))
    )
    cdef nlmsghdr header
    cdef int32_t error
    header.nlmsg_len = <uint32_t>(sizeof(nlmsghdr) + len(body))
    header.nlmsg_type = NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_CONFIG
    header.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK
    header.nlmsg_seq = 0
    header.nlmsg_pid = 0
    with socket.socket(fileno=os.dup(fd)) as s:
        s.settimeout(2)
        s.send((<char*>&header)[:sizeof(nlmsghdr)] + body)
        answer_: bytes = s.recv(65536)
        s.setblocking(True)
    memcpy(&header, <const char*>answer_, sizeof(nlmsghdr))
    memcpy(&error, <const char*>answer_ + sizeof(nlmsghdr), 4)
    if header.nlmsg_type != NLMSG_ERROR:
        raise OSError(71, "the queue is in use: a packet came instead of an acknowledgement")
    if error:
        raise OSError(-error, f"queue {queue}: {os.strerror(-error)}")


cdef bytes config_attribute(int kind, bytes value):
    cdef nlattr attribute
    attribute.nla_len = 4 + len(value)
    attribute.nla_type = kind
    return (<char*>&attribute)[:4] + value.ljust((len(value) + 3) & ~3, b"\0")
