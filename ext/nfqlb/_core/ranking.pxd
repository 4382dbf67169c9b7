"""The real servers of a service in the order in which its scheduler likes them: the first is known at once."""
from libc.stdint cimport int32_t, uint32_t, uint64_t

from nfqlb._core.atomic cimport RELEASE, SEQUENTIAL, add32, load_pointer, store64
from nfqlb._core.types cimport leaf_t, load_t, service_t, table_t


cdef int seat(service_t* service) except -1
cdef int32_t position(const service_t* service, uint32_t slot) noexcept nogil
cdef int new_ranking(service_t* service) except -1
cdef void free_ranking(service_t* service) noexcept
cdef bint is_told(const service_t* service) noexcept nogil
cdef void attach(table_t* table, service_t* service) noexcept
cdef void detach(table_t* table, service_t* service) noexcept
cdef bint ranked(service_t* service, const load_t* loads) noexcept nogil
cdef bint has_little(service_t* service, const load_t* loads) noexcept nogil
cdef int32_t leader(service_t* service, const load_t* loads) noexcept nogil
cdef int32_t drawn(const service_t* service, uint32_t chance) noexcept nogil


cdef inline void note_load(table_t* table, uint32_t slot) noexcept nogil:
    """A slot has less ActiveConn or InActConn than before, set sequentially consistent, or reached its threshold: its
    service looks when it next chooses. Either we see a service that was attached meanwhile, or that one sees the load.
    """
    cdef leaf_t* leaf = <leaf_t*>load_pointer(<void**>&table.watch[slot], SEQUENTIAL)
    cdef uint64_t number
    if leaf != NULL:
        number = add32(&leaf.ranking.told, 1, SEQUENTIAL)
        store64(&leaf.ranking.news[number & leaf.ranking.news_mask],
                number << 32 | <uint64_t>(leaf - leaf.ranking.leaves), RELEASE)
