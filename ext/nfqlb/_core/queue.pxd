"""What it takes to speak NFQUEUE: the C declarations, and the sizes of a batch; bench/ holds its peers to the same."""
from libc.stdint cimport uint16_t, uint32_t, uint8_t
from posix.time cimport timespec


cdef extern from "<netinet/in.h>" nogil:     # in front of the kernel's headers, which then leave its names alone
    pass

cdef extern from "<linux/netlink.h>" nogil:
    struct nlmsghdr:
        uint32_t nlmsg_len
        uint16_t nlmsg_type
        uint16_t nlmsg_flags
        uint32_t nlmsg_seq
        uint32_t nlmsg_pid
    struct nlattr:
        uint16_t nla_len
        uint16_t nla_type
    enum:
        NLMSG_ERROR
        NLM_F_REQUEST
        NLM_F_ACK
        NLA_TYPE_MASK

cdef extern from "<linux/netfilter/nfnetlink.h>" nogil:
    struct nfgenmsg:
        uint8_t nfgen_family
        uint8_t version
        uint16_t res_id
    enum:
        NFNL_SUBSYS_QUEUE
        NFNETLINK_V0

cdef extern from "<linux/netfilter/nfnetlink_queue.h>" nogil:
    struct nfqnl_msg_packet_hdr:
        uint32_t packet_id
        uint16_t hw_protocol
        uint8_t hook
    enum:
        NFQNL_MSG_PACKET
        NFQNL_MSG_VERDICT
        NFQNL_MSG_CONFIG
        NFQNL_MSG_VERDICT_BATCH
        NFQA_PACKET_HDR
        NFQA_VERDICT_HDR
        NFQA_MARK
        NFQA_PAYLOAD
        NFQA_SKB_INFO
        NFQA_CFG_PARAMS
        NFQA_CFG_QUEUE_MAXLEN
        NFQA_CFG_MASK
        NFQA_CFG_FLAGS
        NFQA_CFG_F_FAIL_OPEN
        NFQA_CFG_F_GSO
        NFQNL_COPY_PACKET

cdef extern from "<linux/netfilter.h>" nogil:
    enum:
        NF_DROP
        NF_ACCEPT
        NF_REPEAT

cdef extern from "<sys/socket.h>" nogil:
    struct iovec:
        void* iov_base
        size_t iov_len
    struct msghdr:
        void* msg_name
        unsigned int msg_namelen
        iovec* msg_iov
        size_t msg_iovlen
        void* msg_control
        size_t msg_controllen
        int msg_flags
    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    enum:
        SOL_SOCKET
        SO_MEMINFO
        MSG_DONTWAIT
        MSG_PEEK
    int getsockopt(int, int, int, void*, unsigned int*)
    int recvmmsg(int, mmsghdr*, unsigned int, int, timespec*)
    ssize_t recv(int, void*, size_t, int)
    ssize_t sendmsg(int, const msghdr*, int)

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    enum:
        POLLIN
    int poll(pollfd*, unsigned long, int)

cdef extern from "<linux/sock_diag.h>" nogil:
    enum:
        SK_MEMINFO_RMEM_ALLOC
        SK_MEMINFO_RCVBUF
        SK_MEMINFO_VARS

cdef extern from "<time.h>" nogil:
    enum:
        CLOCK_BOOTTIME


cdef enum:
    STRIDE = 65536 + 4096 + 192          # room for a packet and its attributes; not a power of two: caches alias
    HEADER = 36                          # bytes of a verdict in front of its payload
    TURN = 8                             # full batches from one queue before the next has its turn
    IDLE_POLL = 100                      # milliseconds between looks at the timers while nothing arrives
