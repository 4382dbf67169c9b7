"""Counters: each worker counts for itself, `drain` adds up."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from nfqlb._core.types cimport REASONS, connection_t, counter_t, packet_t


cdef uint8_t[REASONS] VERDICTS                       # what becomes of a packet, by reason


cdef struct telemetry_t:
    uint64_t reasons[REASONS]
    uint64_t batches
    uint64_t packets
    counter_t* slots                                 # slot_count of them, zeroed


cdef inline void count_in(telemetry_t* telemetry, connection_t* connection, packet_t* packet) noexcept nogil:
    """A packet from the client to a real server."""
    cdef counter_t* counter = &telemetry.slots[connection.slot]
    connection.inpackets += 1
    counter.inpackets += 1
    counter.inbytes += packet.length


cdef inline void count_out(telemetry_t* telemetry, connection_t* connection, packet_t* packet) noexcept nogil:
    """A packet from a real server back to its client."""
    cdef counter_t* counter = &telemetry.slots[connection.slot]
    connection.outpackets += 1
    counter.outpackets += 1
    counter.outbytes += packet.length


cdef telemetry_t* telemetry_new(uint32_t slot_count) except NULL
cdef void telemetry_free(telemetry_t* telemetry) noexcept
