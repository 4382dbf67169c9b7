"""Everything that the devices of a machine let in and out, with the kernel's word on each packet's checksum.

Strategy: a packet socket is opened inside the namespace and read from outside, after the fact. Until then the packets
lie in its buffer: nothing runs beside what is watched, and what was sent before `take` is there when it is called.
"""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

from netns.host import CommandError, Host

BUFFER = 1 << 30  # bytes, as the kernel counts them
LONGEST = 1 << 17
SO_RCVBUFFORCE = 33
ETH_P_ALL = 3
SOL_PACKET = 263
PACKET_STATISTICS, PACKET_AUXDATA = 6, 8  # include/uapi/linux/if_packet.h
PACKET_OTHERHOST, PACKET_OUTGOING = 3, 4
TP_STATUS_CSUMNOTREADY = 1 << 3
AUXDATA = struct.Struct("=IIIHHHH")


class Seen(NamedTuple):
    """A frame at a device; `unfinished` when the kernel leaves its checksum to that device."""

    device: str
    out: bool
    unfinished: bool
    frame: bytes


class Tap:
    """What passes the devices of a machine from now on, but for loopback and what is for others."""

    def __init__(self, host: Host) -> None:
        self.socket = host.inside(_open)

    def take(self) -> list[Seen]:
        """All since the last time, in order; that one was lost is an error."""
        seen = []
        while True:
            try:
                frame, told, _, (device, _, kind, *_) = self.socket.recvmsg(LONGEST, socket.CMSG_SPACE(AUXDATA.size))
            except BlockingIOError:
                break
            if device != "lo" and kind != PACKET_OTHERHOST:
                status = AUXDATA.unpack(told[0][2])[0]
                seen.append(Seen(device, kind == PACKET_OUTGOING, bool(status & TP_STATUS_CSUMNOTREADY), frame))
        _, lost = struct.unpack("=II", self.socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
        if lost:
            raise CommandError(f"the tap lost {lost} packets")
        return seen

    def close(self) -> None:
        self.socket.close()


def _open() -> socket.socket:
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    opened.setblocking(False)
    opened.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
    opened.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
    return opened
