"""The connection table: look-up, insertion, timers. Shared by all workers of a director."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from nfqlb._core.types cimport address_t, connection_t, look_t, packet_t, service_t, table_t


cdef class Table:
    cdef table_t* table
    cdef void* memory
    cdef size_t size
    cdef int fd
    cdef readonly int capacity
    cdef readonly int adopted
    cdef readonly int torn               # entries of the file that made no sense
    cdef readonly str lost
    cdef dict numbers                    # (protocol, vip, vport, address, port, last, mark) -> slot
    cdef dict groups                     # (protocol, vip, vport, last, mark) -> [place in the totals, how many slots]
    cdef list spare_groups               # places that nobody has any more
    cdef uint32_t next_slot

    cdef bint free_slot(self, uint32_t number)


# packets
cdef uint64_t flow_hash(const table_t* table, const packet_t* packet, bint reply) noexcept nogil
cdef void warm_bucket(const table_t* table, uint64_t hash) noexcept nogil
cdef void warm_entry(const table_t* table, uint64_t hash) noexcept nogil
cdef connection_t* find(table_t* table, const packet_t* packet, uint64_t hash, look_t look) noexcept nogil

# first packets: hold, find again, take, fill in, show, let_go
cdef void hold(table_t* table, uint64_t hash, uint64_t other) noexcept nogil
cdef void let_go(table_t* table, uint64_t hash, uint64_t other) noexcept nogil
cdef connection_t* find_template(table_t* table, const service_t* service, const address_t* client,
                                 uint64_t hash) noexcept nogil
cdef connection_t* take(table_t* table) noexcept nogil
cdef void show(table_t* table, connection_t* connection, uint32_t word) noexcept nogil

# endings
cdef bint remove(table_t* table, connection_t* connection) noexcept nogil
cdef void hasten(table_t* table, connection_t* connection) noexcept nogil
cdef void bring_up(table_t* table, connection_t* connection) noexcept nogil
cdef void abandon(table_t* table, connection_t* connection, uint32_t now) noexcept nogil
cdef int expire(table_t* table, uint32_t now, int budget) noexcept nogil

# batches
cdef int new_reader(table_t* table) except -1
cdef void enter(table_t* table, int reader) noexcept nogil
cdef void leave(table_t* table, int reader) noexcept nogil
cdef bint passed(table_t* table, uint64_t epoch) noexcept nogil
