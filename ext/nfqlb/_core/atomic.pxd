"""The few atomic operations that the core needs, as the compiler's own builtins (GCC and Clang).

Order is spelled out in each name's comment; everything that is not here is an ordinary load or store.
"""
from libc.stdint cimport uint32_t, uint64_t


cdef extern from * nogil:
    int RELAXED "__ATOMIC_RELAXED"
    int ACQUIRE "__ATOMIC_ACQUIRE"
    int RELEASE "__ATOMIC_RELEASE"
    int SEQUENTIAL "__ATOMIC_SEQ_CST"

    uint32_t load32 "__atomic_load_n"(uint32_t*, int)
    void store32 "__atomic_store_n"(uint32_t*, uint32_t, int)
    uint32_t add32 "__atomic_fetch_add"(uint32_t*, uint32_t, int)
    uint32_t subtract32 "__atomic_fetch_sub"(uint32_t*, uint32_t, int)
    uint32_t swap32 "__atomic_exchange_n"(uint32_t*, uint32_t, int)
    bint replace32 "__atomic_compare_exchange_n"(uint32_t*, uint32_t* expected, uint32_t, bint weak, int, int)

    uint64_t load64 "__atomic_load_n"(uint64_t*, int)
    void store64 "__atomic_store_n"(uint64_t*, uint64_t, int)
    uint64_t add64 "__atomic_fetch_add"(uint64_t*, uint64_t, int)

    void* load_pointer "__atomic_load_n"(void**, int)
    void store_pointer "__atomic_store_n"(void**, void*, int)

    void prefetch "__builtin_prefetch"(const void*)
    bint unlikely "__builtin_expect"(bint, bint)


cdef extern from "<sched.h>" nogil:
    int sched_yield()


cdef struct lock_t:              # a spin lock; zeroed it is free
    uint32_t held
    uint32_t waited              # times that it was found held, wraps; written under the lock


cdef inline void wait_for(lock_t* one) noexcept nogil:
    cdef int spins = 0
    while True:
        while load32(&one.held, RELAXED) != 0:
            spins += 1
            if spins > 100:
                sched_yield()
                spins = 0
        if swap32(&one.held, 1, ACQUIRE) == 0:
            one.waited += 1
            return


cdef inline void lock(lock_t* one) noexcept nogil:
    """Held for a few dozen instructions only; who waits yields when the holder was preempted."""
    if unlikely(swap32(&one.held, 1, ACQUIRE) != 0, False):
        wait_for(one)


cdef inline void unlock(lock_t* one) noexcept nogil:
    store32(&one.held, 0, RELEASE)
