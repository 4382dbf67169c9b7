"""Memory that several workers use: whole cache lines, so that none waits for a line that another writes beside it.

Large pieces may be backed with huge pages: a look-up in a large table is then one miss, not two. Where
transparent huge pages are off (/sys/kernel/mm/transparent_hugepage) all works as well, only slower. A file in /dev/shm
gets them when that is mounted with huge=advise or shmem_enabled is force.
"""
from libc.string cimport memset
from posix.mman cimport MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, PROT_READ, PROT_WRITE, madvise, mmap, munmap


cdef extern from "<sys/mman.h>" nogil:
    int MADV_HUGEPAGE


cdef extern from "<stdlib.h>" nogil:
    void* aligned_alloc(size_t, size_t)


cdef enum:
    CACHE_LINE = 64
    HUGE_PAGE = 1 << 21


cdef inline void* cache_lines(size_t size) noexcept nogil:
    """Zeroed memory that shares no cache line with anything else, or NULL; for free()."""
    cdef void* memory
    size = (size + CACHE_LINE - 1) & ~<size_t>(CACHE_LINE - 1)
    memory = aligned_alloc(CACHE_LINE, size)
    if memory != NULL:
        memset(memory, 0, size)
    return memory


cdef inline void allow_huge(void* memory, size_t size) noexcept nogil:
    if size >= HUGE_PAGE:
        madvise(memory, size, MADV_HUGEPAGE)


cdef inline void* anonymous(size_t size) noexcept nogil:
    """Private zeroed memory, at the start of a page, or NULL."""
    cdef void* memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    if memory == MAP_FAILED:
        return NULL
    allow_huge(memory, size)
    return memory


cdef inline void give_back(void* memory, size_t size) noexcept nogil:
    if memory != NULL:
        munmap(memory, size)
