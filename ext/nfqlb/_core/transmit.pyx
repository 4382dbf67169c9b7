"""What leaves this machine other than by a verdict: packets of our own, through raw sockets.

Strategy: the kernel routes them like any packet that a program sends (raw(7): an IPPROTO_RAW socket takes whole IPv4
headers, and IPv6 headers likewise). They are rare and limited (icmp.pyx), so one system call each will do.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset

import socket
from contextlib import suppress

from nfqlb._core.datapath cimport Worker
from nfqlb._core.types cimport message_t, outbox_t
from nfqlb._core.wire cimport IP4_DESTINATION, IP6_DESTINATION


cdef extern from "<sys/socket.h>" nogil:
    enum:
        AF_INET
        AF_INET6
        MSG_DONTWAIT
    ctypedef unsigned int socklen_t
    struct sockaddr:
        pass
    ssize_t sendto(int, const void*, size_t, int, const sockaddr*, socklen_t)

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


cdef class Transmitter:
    """Sends for one worker. Without CAP_NET_RAW, or for a family that the machine lacks, it counts what is `lost`."""

    def __cinit__(self):
        self.sockets = []
        self.raw4 = self._open(socket.AF_INET)
        self.raw6 = self._open(socket.AF_INET6)

    def _open(self, family) -> int:
        with suppress(OSError):
            opened = socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW)
            self.sockets.append(opened)
            return opened.fileno()
        return -1

    def send(self, Worker worker not None) -> None:
        """Send what the worker's last batch left to be sent."""
        post(self, worker.worker.outbox)


cdef void post(Transmitter transmitter, outbox_t* outbox) noexcept nogil:
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
