"""The straight line that every packet goes, and the workers that go it."""
from libc.stdint cimport uint32_t, uint64_t

from nfqlb._core.announce cimport ring_t, rules_t
from nfqlb._core.connection cimport Table
from nfqlb._core.snapshot cimport Snapshot
from nfqlb._core.telemetry cimport telemetry_t
from nfqlb._core.types cimport connection_t, hop_t, nominees_t, outbox_t, packet_t, path_t, snapshot_t, table_t


cdef struct worker_t:
    table_t* table
    snapshot_t** published           # where publish() leaves the current configuration
    snapshot_t* snapshot             # the one of this batch
    telemetry_t* telemetry
    outbox_t* outbox                 # of the last batch
    hop_t** hops                     # by slot: the way to a real server, NULL when there is none
    path_t* paths                    # by slot: what is known of the tunnel to it; shared by all workers
    nominees_t* nominees             # of the last batch; NULL without an offload
    ring_t* ring                     # connections that peers are to hear of; NULL without sync
    uint32_t* turns                  # by slot: how often that was another one
    hop_t** nexts                    # by slot: the next hop for the offload, also where packets go by a mark
    uint32_t* standby                # not 0: requests are for the local stack
    bint behind                      # more comes than can be taken: nothing new is begun
    int reader
    uint32_t now                     # tick of this batch
    uint32_t micro                   # microseconds, wraps
    uint64_t random                  # state of a generator
    connection_t single              # of a datagram that is scheduled on its own


cdef class Worker


cdef class Datapath:
    cdef Table table
    cdef snapshot_t* published
    cdef Snapshot current            # that Snapshot behind `published`
    cdef hop_t** hops
    cdef hop_t** nexts
    cdef uint32_t* turns
    cdef uint32_t standby
    cdef path_t* paths
    cdef uint64_t* seen              # by slot: connections and packets that `moved` has told
    cdef dict ways                   # the Hop behind each of `hops`
    cdef dict beyond                 # and of `nexts`
    cdef readonly object offload     # the Offload, or None
    cdef object follower              # who counts what it does
    cdef Worker sweeper              # of `sweep`: it takes no packets
    cdef list retired                # (epoch, Snapshot or Hop) that a batch may still read
    cdef list workers
    cdef rules_t rules               # of sync
    cdef bint announces              # it is on


cdef class Worker:
    cdef Datapath datapath
    cdef worker_t worker
    cdef ring_t* own_ring            # there once sync was on
    cdef packet_t packet             # the last one of process(), in `buffer`
    cdef bytearray buffer

    cdef int speak(self) except -1


cdef void run_batch(worker_t* worker, packet_t* packets, int count, uint64_t now, int budget) noexcept nogil
cdef void settle(worker_t* worker, bint drained) noexcept nogil
cdef void come_up(worker_t* worker, connection_t* connection) noexcept nogil
cdef void catch_up(worker_t* worker, connection_t* connection) noexcept nogil
