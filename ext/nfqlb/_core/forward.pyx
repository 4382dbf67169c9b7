"""Forwarding by hand, for tests and tools: the same setters that the data path inlines."""
from libc.string cimport memcpy

from nfqlb._core.packet cimport load, parse
from nfqlb._core.types cimport PARSED, address_t, packet_t
from nfqlb._core.wire cimport set_destination, set_source


def translate(packet: bytes, end: str, address: bytes, int port, int flags = 0) -> bytes:
    """The packet with its "source" or "destination" replaced and its checksums brought along.

    `address` is 16 bytes, `flags` are those of NFQA_SKB_INFO. Raises ValueError for a packet that has no ports.
    """
    cdef bytearray buffer = bytearray(packet)
    cdef packet_t p
    cdef address_t new
    load(&p, buffer, len(buffer), 0, flags, 0)
    if parse(&p) != PARSED or len(address) != 16 or end not in ("source", "destination"):
        raise ValueError("not a whole TCP, UDP or SCTP packet, an address of 16 bytes, and an end")
    memcpy(&new, <const char*>address, 16)
    if end == "source":
        set_source(&p, &new, port)
    else:
        set_destination(&p, &new, port)
    return bytes(buffer)
