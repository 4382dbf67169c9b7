"""What leaves this machine other than by a verdict: frames to real servers, and packets of our own.

Strategy. A packet for a real server goes out on a packet socket as it lies in the queue's buffer, its link-layer header
gathered in front of it; one `sendmmsg` takes a batch. In front of that stands a virtio header (packet(7),
PACKET_VNET_HDR), as a virtual machine's card has it: it tells the kernel or the card to finish a checksum, and to cut a
TCP super-packet into segments that fit. What is too long for the next link and may be cut leaves in fragments, made
here, since no other part of the kernel sees the packet.

Packets of our own are routed by the kernel like any packet that a program sends (raw(7): an IPPROTO_RAW socket takes
whole IPv4 headers, and IPv6 headers likewise). They are rare and limited (icmp.pyx), so one system call each will do.
"""
from libc.errno cimport EINTR, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

import os
import socket
from contextlib import suppress

from nfqlb._core.checksum cimport add_address, add_bytes, fold
from nfqlb._core.datapath cimport Worker
from nfqlb._core.forward cimport is_bulk, measure_outer
from nfqlb._core.types cimport (
    BATCH,
    CHECKSUM_NOT_READY,
    OUTER,
    SUPER_PACKET,
    SCTP,
    TCP,
    TRANSMIT,
    UDP,
    message_t,
    outbox_t,
    packet_t,
)
from nfqlb._core.wire cimport (
    END_OF_OPTIONS,
    FIN,
    IP4_CHECKSUM,
    IP4_DESTINATION,
    IP4_FRAGMENT,
    IP4_HEADER,
    IP4_IDENTIFICATION,
    IP4_TOTAL_LENGTH,
    IP6_DESTINATION,
    IP6_HEADER,
    IP6_NEXT_HEADER,
    IP6_PAYLOAD_LENGTH,
    MORE_FRAGMENTS,
    NO_OPERATION,
    PSH,
    TCP_CHECKSUM,
    TCP_FLAGS,
    TCP_OFFSET,
    TCP_SEQUENCE,
    UDP_CHECKSUM,
    complete,
    get16,
    get32,
    htonl,
    htons,
    set16,
    set32,
    set_raw16,
)


cdef extern from "<sys/socket.h>" nogil:
    enum:
        AF_INET
        AF_INET6
        AF_PACKET
        MSG_DONTWAIT
        SOL_PACKET
        SO_SNDBUFFORCE
    ctypedef unsigned int socklen_t
    struct sockaddr:
        pass
    struct iovec:
        void* iov_base
        size_t iov_len
    struct msghdr:
        void* msg_name
        socklen_t msg_namelen
        iovec* msg_iov
        size_t msg_iovlen
    struct mmsghdr:
        msghdr msg_hdr
    ssize_t sendto(int, const void*, size_t, int, const sockaddr*, socklen_t)
    int sendmmsg(int, mmsghdr*, unsigned int, int)

cdef extern from "<netinet/in.h>" nogil:
    struct in_addr:
        uint32_t s_addr
    struct sockaddr_in:
        uint16_t sin_family
        in_addr sin_addr
    struct in6_addr:
        uint8_t s6_addr[16]
    struct sockaddr_in6:
        uint16_t sin6_family
        in6_addr sin6_addr

cdef extern from "<linux/if_packet.h>" nogil:
    struct sockaddr_ll:
        uint16_t sll_family
        uint16_t sll_protocol
        int sll_ifindex
        uint8_t sll_halen
        uint8_t sll_addr[8]
    enum:
        PACKET_VNET_HDR

cdef extern from "<linux/if_ether.h>" nogil:
    enum:
        ETH_P_IP
        ETH_P_IPV6

cdef extern from "<linux/virtio_net.h>" nogil:
    struct virtio_net_hdr:                               # a packet socket takes it in the machine's byte order
        uint8_t flags
        uint8_t gso_type
        uint16_t hdr_len
        uint16_t gso_size
        uint16_t csum_start
        uint16_t csum_offset
    enum:
        VIRTIO_NET_HDR_F_NEEDS_CSUM
        VIRTIO_NET_HDR_GSO_TCPV4
        VIRTIO_NET_HDR_GSO_TCPV6
        VIRTIO_NET_HDR_GSO_ECN


cdef enum:
    ETHERNET = 14                        # bytes of an Ethernet header
    LONGEST_HEADER = 256                 # bytes of an IP header with all that stands in every fragment
    FRAGMENT_HEADER = 8                  # bytes of an IPv6 fragment header (RFC 8200, 4.5)
    FRAGMENT = 44                        # its number
    CWR = 0x80                           # TCP flag (RFC 3168)
    SEND_BUFFER = 8 << 20                # bytes of frames that may wait for the card


cdef struct frame_t:
    virtio_net_hdr offload
    uint8_t front[ETHERNET + OUTER]      # link-layer header and a tunnel's; follows the virtio header without a gap
    uint8_t header[LONGEST_HEADER]       # of a packet that is a part of another one
    sockaddr_ll to
    iovec parts[3]


cdef struct shipment_t:                  # frames that go out with one system call
    int count
    frame_t frames[BATCH]
    mmsghdr messages[BATCH]


cdef class Transmitter:
    """Sends for one worker. Without CAP_NET_RAW, or for a family that the machine lacks, it counts what is `lost`; a
    `mute` one does so with everything.
    """

    def __cinit__(self, bint mute = False):
        self.sockets = []
        self.raw4 = self.raw6 = self.link = -1
        self.identification = <uint32_t>int.from_bytes(os.urandom(4), "big")
        if mute:
            return
        self.raw4 = self._open(socket.AF_INET, socket.IPPROTO_RAW)
        self.raw6 = self._open(socket.AF_INET6, socket.IPPROTO_RAW)
        self.link = self._open(socket.AF_PACKET, 0)          # protocol 0: it receives nothing

    def _open(self, family, protocol) -> int:
        with suppress(OSError):
            opened = socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
            self.sockets.append(opened)
            if family == socket.AF_PACKET:
                opened.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
                opened.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, SEND_BUFFER)
            return opened.fileno()
        return -1

    def send(self, Worker worker not None) -> None:
        """Send what the last packet of Worker.process left to be sent."""
        if worker.packet.verdict == TRANSMIT:
            send_frames(self, &worker.packet, 1)
        post(self, worker.worker.outbox)


# -- frames to real servers -------------------------------------------------------------------------------------------

cdef void send_frames(Transmitter transmitter, packet_t* packets, int count) noexcept nogil:
    """Send the packets of a batch whose verdict is TRANSMIT, in order."""
    cdef shipment_t shipment
    cdef packet_t* packet
    cdef frame_t* frame
    cdef int i
    shipment.count = 0
    for i in range(count):
        packet = &packets[i]
        if packet.verdict != TRANSMIT:
            continue
        if is_bulk(packet) and packet.outer_length:
            send_segments(transmitter, &shipment, packet)
        elif packet.length > packet.hop.mtu and not is_bulk(packet):
            send_fragments(transmitter, &shipment, packet)
        else:
            frame = next_frame(transmitter, &shipment, packet, packet.length, 2)
            offload(&frame.offload, packet)
            frame.parts[1].iov_base = packet.data
            frame.parts[1].iov_len = packet.length
    ship(transmitter, &shipment)


cdef void ship(Transmitter transmitter, shipment_t* shipment) noexcept nogil:
    """Send what there is; a frame that the kernel refuses is lost, the next is tried."""
    cdef int done = 0
    cdef int sent
    while done < shipment.count:
        sent = sendmmsg(transmitter.link, shipment.messages + done, shipment.count - done, MSG_DONTWAIT)
        if sent > 0:
            done += sent
        elif errno != EINTR:
            transmitter.lost += 1
            done += 1
    shipment.count = 0


cdef frame_t* next_frame(Transmitter transmitter, shipment_t* shipment, const packet_t* packet, uint32_t length,
                         int parts) noexcept nogil:
    """A frame of so many parts, the first of which is there: where it goes, and what stands in front of an IP packet of
    that length, the whole of `packet` or a part.
    """
    cdef frame_t* frame
    cdef msghdr* message
    if shipment.count == BATCH:
        ship(transmitter, shipment)
    frame = &shipment.frames[shipment.count]
    message = &shipment.messages[shipment.count].msg_hdr
    shipment.count += 1
    memset(message, 0, sizeof(msghdr))
    message.msg_name = &frame.to
    message.msg_namelen = sizeof(sockaddr_ll)
    message.msg_iov = frame.parts
    message.msg_iovlen = parts
    wrap(transmitter, frame, packet, length)
    return frame


cdef void wrap(Transmitter transmitter, frame_t* frame, const packet_t* packet, uint32_t length) noexcept nogil:
    cdef uint8_t* front = frame.front
    cdef uint16_t kind = htons(ETH_P_IP if packet.version == 4 else ETH_P_IPV6)
    memset(&frame.offload, 0, sizeof(virtio_net_hdr))
    memset(&frame.to, 0, sizeof(sockaddr_ll))
    frame.to.sll_family = AF_PACKET
    frame.to.sll_protocol = kind
    frame.to.sll_ifindex = packet.hop.interface
    if packet.hop.ethernet:
        frame.to.sll_halen = 6
        memcpy(frame.to.sll_addr, packet.hop.destination, 6)
        memcpy(front, packet.hop.destination, 6)
        memcpy(front + 6, packet.hop.source, 6)
        memcpy(front + 12, &kind, 2)
        front += ETHERNET
    if packet.outer_length:
        memcpy(front, packet.outer, packet.outer_length)
        if packet.version == 4:                              # a router may cut it: no two are alike (RFC 6864, 4.2)
            transmitter.identification += 1
            set16(front + IP4_IDENTIFICATION, <uint16_t>transmitter.identification)
        measure_outer(packet, front, length)
        front += packet.outer_length
    frame.parts[0].iov_base = &frame.offload
    frame.parts[0].iov_len = sizeof(virtio_net_hdr) + (front - frame.front)


cdef void offload(virtio_net_hdr* header, packet_t* packet) noexcept nogil:
    """What the kernel has still to do: finish a checksum, cut a TCP super-packet.

    NFQUEUE does not tell the length of the segments that a super-packet stands for; new ones fill the next link. For a
    tunnel nothing is left to do.
    """
    cdef uint32_t front = ETHERNET if packet.hop.ethernet else 0
    cdef uint8_t* at = packet.data + packet.transport
    cdef uint32_t headers
    cdef uint64_t pseudo
    if packet.outer_length:
        return
    if packet.protocol == SCTP and packet.flags & CHECKSUM_NOT_READY:
        complete(packet)                                     # no card is told of a CRC this way
    if packet.protocol != TCP and packet.protocol != UDP:
        return
    if packet.flags & (CHECKSUM_NOT_READY | SUPER_PACKET):
        header.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM
        header.csum_start = front + packet.transport
        header.csum_offset = TCP_CHECKSUM if packet.protocol == TCP else UDP_CHECKSUM
    headers = packet.transport + (at[TCP_OFFSET] >> 4) * 4 if packet.protocol == TCP else 0
    if is_bulk(packet) and headers < packet.hop.mtu:
        header.gso_type = VIRTIO_NET_HDR_GSO_TCPV4 if packet.version == 4 else VIRTIO_NET_HDR_GSO_TCPV6
        if at[TCP_FLAGS] & CWR:
            header.gso_type |= VIRTIO_NET_HDR_GSO_ECN
        header.hdr_len = front + headers
        header.gso_size = packet.hop.mtu - headers
        pseudo = add_address(add_address(htonl(packet.length - packet.transport), &packet.source), &packet.destination)
        set_raw16(at + TCP_CHECKSUM, fold(pseudo + htons(TCP)))


# -- packets in parts -------------------------------------------------------------------------------------------------

cdef void send_fragments(Transmitter transmitter, shipment_t* shipment, packet_t* packet) noexcept nogil:
    """Cut a packet that is longer than the next MTU (RFC 791, 3.2; RFC 8200, 4.5)."""
    cdef frame_t* frame
    cdef uint32_t front = header_length(packet)
    cdef uint32_t whole = packet.length - front
    cdef uint32_t extra = 0 if packet.version == 4 else FRAGMENT_HEADER
    cdef uint32_t at = 0
    cdef uint32_t size, piece
    if front + extra > LONGEST_HEADER or packet.hop.mtu < front + extra + 8:
        transmitter.lost += 1
        return
    if packet.flags & CHECKSUM_NOT_READY:
        complete(packet)
    size = (packet.hop.mtu - front - extra) & ~<uint32_t>7
    transmitter.identification += 1
    while at < whole:
        piece = min(size, whole - at)
        frame = next_part(transmitter, shipment, packet, front, extra, at, piece)
        if packet.version == 4:
            put_offset4(frame.header, front, at, piece, at + piece < whole)
        else:
            put_offset6(
                frame.header, front, at, piece, at + piece < whole, packet.protocol, transmitter.identification)
        at += piece


cdef frame_t* next_part(Transmitter transmitter, shipment_t* shipment, const packet_t* packet, uint32_t front,
                        uint32_t extra, uint32_t at, uint32_t length) noexcept nogil:
    """A frame with a copy of the packet's first `front` bytes, room for `extra`, and its payload from `at` on."""
    cdef frame_t* frame = next_frame(transmitter, shipment, packet, front + extra + length, 3)
    memcpy(frame.header, packet.data, front)
    frame.parts[1].iov_base = frame.header
    frame.parts[1].iov_len = front + extra
    frame.parts[2].iov_base = packet.data + front + at
    frame.parts[2].iov_len = length
    return frame


cdef void send_segments(Transmitter transmitter, shipment_t* shipment, const packet_t* packet) noexcept nogil:
    """Cut a TCP super-packet for a tunnel, which no card does (net/ipv4/tcp_offload.c, tcp_gso_segment)."""
    cdef uint8_t* tcp
    cdef uint32_t front = packet.transport + (packet.data[packet.transport + TCP_OFFSET] >> 4) * 4
    cdef uint32_t whole = packet.length - front
    cdef uint32_t size = packet.hop.mtu - front
    cdef uint32_t at = 0
    cdef uint32_t piece
    cdef uint16_t number = 0
    cdef uint64_t total
    if front > LONGEST_HEADER or packet.hop.mtu < front + 8:
        transmitter.lost += 1
        return
    while at < whole or at == 0:
        piece = min(size, whole - at)
        tcp = next_part(transmitter, shipment, packet, front, 0, at, piece).header + packet.transport
        measure(tcp - packet.transport, packet, front + piece, number)
        set32(tcp + TCP_SEQUENCE, get32(tcp + TCP_SEQUENCE) + at)
        if at:
            tcp[TCP_FLAGS] &= ~<uint8_t>CWR
        if at + piece < whole:
            tcp[TCP_FLAGS] &= ~<uint8_t>(FIN | PSH)
        set_raw16(tcp + TCP_CHECKSUM, 0)
        total = add_address(add_address(htonl(front - packet.transport + piece), &packet.source), &packet.destination)
        total = add_bytes(total + htons(TCP), tcp, front - packet.transport)
        set_raw16(tcp + TCP_CHECKSUM, <uint16_t>~fold(add_bytes(total, packet.data + front + at, piece)))
        at += max(piece, <uint32_t>1)
        number += 1


cdef void measure(uint8_t* header, const packet_t* packet, uint32_t length, uint16_t number) noexcept nogil:
    """Make an IP header that of the number-th packet of several, so long with its header."""
    if packet.version == 6:
        set16(header + IP6_PAYLOAD_LENGTH, length - IP6_HEADER)
        return
    set16(header + IP4_TOTAL_LENGTH, length)
    set16(header + IP4_IDENTIFICATION, get16(header + IP4_IDENTIFICATION) + number)
    set_raw16(header + IP4_CHECKSUM, 0)
    set_raw16(header + IP4_CHECKSUM, <uint16_t>~fold(add_bytes(0, header, packet.transport)))


cdef inline uint32_t header_length(const packet_t* packet) noexcept nogil:
    """Bytes that every fragment repeats: IPv4's header, or IPv6's with its extensions (none here is per fragment)."""
    return (packet.data[0] & 15) * 4 if packet.version == 4 else packet.transport


cdef void put_offset4(uint8_t* header, uint32_t front, uint32_t at, uint32_t piece, bint more) noexcept nogil:
    """Make an IPv4 header that of a fragment; options without the copy bit are for the first one only."""
    cdef uint32_t option = IP4_HEADER
    cdef uint32_t length
    while at and option < front and header[option] != END_OF_OPTIONS:
        length = header[option + 1] if header[option] != NO_OPERATION and option + 1 < front else 1
        length = max(<uint32_t>1, min(length, front - option))
        if not header[option] & 0x80:
            memset(header + option, NO_OPERATION, length)
        option += length
    set16(header + IP4_TOTAL_LENGTH, front + piece)
    set16(header + IP4_FRAGMENT, (at >> 3) | (MORE_FRAGMENTS if more else 0))
    set_raw16(header + IP4_CHECKSUM, 0)
    set_raw16(header + IP4_CHECKSUM, <uint16_t>~fold(add_bytes(0, header, front)))


cdef void put_offset6(uint8_t* header, uint32_t front, uint32_t at, uint32_t piece, bint more, uint8_t protocol,
                      uint32_t identification) noexcept nogil:
    """Make an IPv6 header that of a fragment, a fragment header behind it."""
    cdef uint8_t* fragment = header + front
    header[last_next_header(header, front)] = FRAGMENT
    set16(header + IP6_PAYLOAD_LENGTH, front - IP6_HEADER + FRAGMENT_HEADER + piece)
    fragment[0] = protocol
    fragment[1] = 0
    set16(fragment + 2, at | (1 if more else 0))
    set32(fragment + 4, identification)


cdef uint32_t last_next_header(const uint8_t* header, uint32_t front) noexcept nogil:
    """Where the number of the transport stands: in the IPv6 header, or in the last extension header."""
    cdef uint32_t field = IP6_NEXT_HEADER
    cdef uint32_t at = IP6_HEADER
    while at < front:
        field = at
        at += (header[at + 1] + 1) * 8
    return field


# -- packets of our own -----------------------------------------------------------------------------------------------

cdef void post(Transmitter transmitter, outbox_t* outbox) noexcept nogil:
    """Send the messages of the outbox, which is empty then."""
    cdef message_t* message
    cdef sockaddr_in to4
    cdef sockaddr_in6 to6
    cdef uint32_t i
    cdef ssize_t sent
    for i in range(outbox.count):
        message = &outbox.messages[i]
        if message.version == 4:
            memset(&to4, 0, sizeof(to4))
            to4.sin_family = AF_INET
            memcpy(&to4.sin_addr, message.data + IP4_DESTINATION, 4)
            sent = sendto(transmitter.raw4, message.data, message.length, MSG_DONTWAIT, <sockaddr*>&to4, sizeof(to4))
        else:
            memset(&to6, 0, sizeof(to6))
            to6.sin6_family = AF_INET6
            memcpy(&to6.sin6_addr, message.data + IP6_DESTINATION, 16)
            sent = sendto(transmitter.raw6, message.data, message.length, MSG_DONTWAIT, <sockaddr*>&to6, sizeof(to6))
        transmitter.lost += sent < 0
    outbox.count = 0
