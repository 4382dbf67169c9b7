"""Memory that the kernel may back with huge pages: a look-up in a large table is then one miss, not two.

Where transparent huge pages are off (/sys/kernel/mm/transparent_hugepage) all works as well, only slower. A file in
/dev/shm gets them when that is mounted with huge=advise or shmem_enabled is force.
"""
from posix.mman cimport MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, PROT_READ, PROT_WRITE, madvise, mmap, munmap


cdef extern from "<sys/mman.h>" nogil:
    int MADV_HUGEPAGE


cdef enum:
    HUGE_PAGE = 1 << 21


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
