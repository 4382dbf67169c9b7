"""Two peers of the fast engine that have to be compiled: the ceiling, and one packet at a time.

Strategy. `Loop` does all that an engine must do and nothing else: it waits, receives and answers as queue.pyx does,
with its batch and its buffers, and looks at no packet. It accepts a batch by one message, which is the least that any
engine can tell the kernel, or hands every packet back as it came, which is the least of one that rewrites. `PerPacket`
is a callback for netfilterqueue that takes each packet through nfqlb's own data path where it lies and answers at once:
it differs from the fast engine in nothing but how packets come and go.

bench/ is no part of what is installed; `setup.py build_ext --inplace` compiles this file (`make setup`).
"""
from libc.errno cimport EAGAIN, EINTR, ENOBUFS, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from posix.mman cimport MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, PROT_READ, PROT_WRITE, mmap, munmap
from posix.time cimport clock_gettime, timespec

import os

from netfilterqueue._impl cimport Packet, nfq_set_verdict

from nfqlb._core.datapath cimport Worker, run_batch
from nfqlb._core.packet cimport load
from nfqlb._core.queue cimport (
    CLOCK_BOOTTIME,
    HEADER,
    IDLE_POLL,
    MSG_DONTWAIT,
    NF_ACCEPT,
    NF_DROP,
    NFNETLINK_V0,
    NFNL_SUBSYS_QUEUE,
    NFQA_PAYLOAD,
    NFQA_VERDICT_HDR,
    NFQNL_MSG_VERDICT,
    NFQNL_MSG_VERDICT_BATCH,
    NLA_TYPE_MASK,
    NLM_F_REQUEST,
    POLLIN,
    STRIDE,
    TURN,
    iovec,
    mmsghdr,
    msghdr,
    nlattr,
    nlmsghdr,
    poll,
    pollfd,
    recvmmsg,
    sendmsg,
)
from nfqlb._core.types cimport ACCEPT, BATCH, REWRITE, packet_t
from nfqlb._core.wire cimport htonl, htons


cdef enum:
    QUEUES = 2
    EXPIRE_BUDGET = 8                    # timer steps a packet: the fast engine's 512 a batch of 64
    FIRST_ATTRIBUTE = 20                 # bytes in front of it; the kernel puts the packet's number there
    PACKET_NUMBER = 24


cdef struct batch_t:
    int fd
    uint16_t number                      # network order
    uint8_t* memory
    mmsghdr messages[BATCH]
    iovec into[BATCH]
    uint8_t headers[BATCH][HEADER + 4]
    iovec out[2 * BATCH]


cdef class Loop:
    """Accepts all packets of up to two bound queues, (socket, number); `returning` hands each back as it came."""

    cdef batch_t batches[QUEUES]
    cdef int count
    cdef bint returning

    def __cinit__(self, queues: list[tuple[int, int]], *, bint returning):
        cdef batch_t* batch
        self.returning = returning
        for fd, number in queues[:QUEUES]:
            batch = &self.batches[self.count]
            batch.fd = fd
            batch.number = htons(number)
            batch.memory = <uint8_t*>mmap(
                NULL, BATCH * STRIDE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
            if batch.memory == MAP_FAILED:
                batch.memory = NULL
                raise MemoryError
            self.count += 1

    def __dealloc__(self):
        cdef int i
        for i in range(self.count):
            munmap(self.batches[i].memory, BATCH * STRIDE)

    def run(self) -> None:
        """Go on for ever, or raise OSError when a socket fails."""
        cdef int error
        with nogil:
            error = loop(self)
        raise OSError(error, os.strerror(error))


cdef int loop(Loop self) noexcept nogil:
    cdef pollfd waiting[QUEUES]
    cdef int i, got, ready
    for i in range(self.count):
        waiting[i].fd = self.batches[i].fd
        waiting[i].events = POLLIN
    while True:
        ready = poll(waiting, self.count, IDLE_POLL)
        if ready < 0 and errno != EINTR:
            return errno
        for i in range(self.count):
            if ready <= 0 or waiting[i].revents == 0:
                continue
            for _ in range(TURN):
                got = serve(self, &self.batches[i])
                if got < 0:
                    return -got
                if got < BATCH:
                    break


cdef int serve(Loop self, batch_t* batch) noexcept nogil:
    """One batch: how many messages it had, or minus an error number."""
    cdef int got, i
    for i in range(BATCH):
        batch.into[i].iov_base = batch.memory + i * STRIDE
        batch.into[i].iov_len = STRIDE
        batch.messages[i].msg_hdr.msg_iov = &batch.into[i]
        batch.messages[i].msg_hdr.msg_iovlen = 1
    got = recvmmsg(batch.fd, batch.messages, BATCH, MSG_DONTWAIT, NULL)
    if got < 0:
        if errno == EAGAIN or errno == EINTR:
            return 0
        return 1 if errno == ENOBUFS else -errno
    if self.returning:
        for i in range(got):
            hand_back(batch, i)
        send(batch, 2 * got)
    else:
        batch.out[0].iov_base = put_verdict(batch, got - 1, NFQNL_MSG_VERDICT_BATCH, HEADER - 4)
        batch.out[0].iov_len = HEADER - 4
        send(batch, 1)
    return got


cdef void hand_back(batch_t* batch, int at) noexcept nogil:
    """The verdict for a packet, and the packet."""
    cdef uint8_t* message = batch.memory + at * STRIDE
    cdef uint8_t* header
    cdef nlattr attribute
    cdef uint32_t offset = FIRST_ATTRIBUTE
    cdef uint32_t size
    memcpy(&attribute, message + offset, sizeof(nlattr))
    while attribute.nla_type & NLA_TYPE_MASK != NFQA_PAYLOAD:
        offset += (attribute.nla_len + 3) & ~<uint32_t>3
        memcpy(&attribute, message + offset, sizeof(nlattr))
    size = (attribute.nla_len - 4 + 3) & ~<uint32_t>3
    header = put_verdict(batch, at, NFQNL_MSG_VERDICT, HEADER + size)
    memcpy(header + HEADER - 4, &attribute, sizeof(nlattr))
    batch.out[2 * at].iov_base = header
    batch.out[2 * at].iov_len = HEADER
    batch.out[2 * at + 1].iov_base = message + offset + 4
    batch.out[2 * at + 1].iov_len = size


cdef uint8_t* put_verdict(batch_t* batch, int at, int kind, uint32_t length) noexcept nogil:
    """Write the verdict message for packet `at` up to where a payload would begin."""
    cdef uint8_t* to = batch.headers[at]
    cdef nlmsghdr header
    cdef nlattr attribute
    cdef uint32_t verdict = htonl(NF_ACCEPT)
    memset(to, 0, HEADER)
    header.nlmsg_len = length
    header.nlmsg_type = NFNL_SUBSYS_QUEUE << 8 | kind
    header.nlmsg_flags = NLM_F_REQUEST
    header.nlmsg_seq = 0
    header.nlmsg_pid = 0
    attribute.nla_len = 12
    attribute.nla_type = NFQA_VERDICT_HDR
    memcpy(to, &header, 16)
    to[17] = NFNETLINK_V0
    memcpy(to + 18, &batch.number, 2)
    memcpy(to + 20, &attribute, 4)
    memcpy(to + 24, &verdict, 4)
    memcpy(to + 28, batch.memory + at * STRIDE + PACKET_NUMBER, 4)
    return to


cdef void send(batch_t* batch, int pieces) noexcept nogil:
    cdef msghdr message
    memset(&message, 0, sizeof(msghdr))
    message.msg_iov = batch.out
    message.msg_iovlen = pieces
    while sendmsg(batch.fd, &message, 0) < 0 and errno == EINTR:
        pass


cdef class PerPacket:
    """nfqlb's data path for netfilterqueue: `handle` is the callback."""

    cdef Worker worker

    def __cinit__(self, Worker worker not None):
        self.worker = worker

    def handle(self, Packet packet not None) -> None:
        """Rewrite the packet in libnetfilter_queue's buffer and answer it: no bytes object, one system call."""
        cdef packet_t one
        cdef timespec now
        clock_gettime(CLOCK_BOOTTIME, &now)
        load(&one, packet.payload, packet.payload_len, packet.hook, 0, packet.mark)
        run_batch(&self.worker.worker, &one, 1, <uint64_t>now.tv_sec * 1_000_000_000 + now.tv_nsec, EXPIRE_BUDGET)
        nfq_set_verdict(packet._queue.qh, packet.id, NF_ACCEPT if one.verdict in (ACCEPT, REWRITE) else NF_DROP,
                        one.captured if one.verdict == REWRITE else 0, one.data)
        packet._verdict_is_set = True
