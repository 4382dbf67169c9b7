"""What a table does when it runs out of places."""
from libc.stdint cimport uint32_t, uint64_t

from nfqlb._core.types cimport defence_t, snapshot_t, table_t


cdef void weigh(table_t* table, const snapshot_t* snapshot) noexcept nogil
cdef bint drops_packet(defence_t* defence) noexcept nogil
cdef int evict(table_t* table, const snapshot_t* snapshot, uint32_t first, uint32_t last, uint32_t now) noexcept nogil
