"""Compiled configuration: what `publish` puts before the workers, by one pointer.

Strategy: services are compiled one by one and shared between snapshots while they do not change; a snapshot is only
an index over them, a byte per slot and the timeouts. Nothing in it is written after it was built, so a worker needs
no lock, and what a worker may still read is kept alive until its batch is over (Datapath.publish).
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

import os

from nfqlb._core.hash cimport hash_endpoint
from nfqlb._core.memory cimport cache_lines
from nfqlb._core.schedulers cimport prepare, succeed
from nfqlb._core.tracking cimport default_timeouts
from nfqlb._core.types cimport packet_t, scheduler_state_t, server_t, service_t, snapshot_t
from nfqlb._core.wire cimport address_from, same
from nfqlb._core.schedulers import SCHEDULERS


ANSWERS: tuple[str, ...] = ("pass", "drop", "icmp", "reset")
METHODS: tuple[str, ...] = ("nat", "dr", "tun")      # by method_t


cdef class Hop:
    """Where frames for a real server leave: interface index, MTU of the route, the next hop's link-layer address and
    our own (6 bytes each, or none where the interface has no such header), our IP address there (16 bytes). `local`:
    the real server is this machine.
    """

    def __cinit__(self, uint32_t interface, uint32_t mtu, destination: bytes = b"", source: bytes = b"",
                  address: bytes = bytes(16), bint local = False):
        if len(destination) not in (0, 6) or len(source) != len(destination):
            raise ValueError("a link-layer address is 6 bytes")
        self.hop.interface = interface
        self.hop.mtu = mtu
        self.hop.ethernet = len(destination) == 6
        self.hop.local = local
        self.hop.own = address_from(address)
        memcpy(self.hop.destination, <const char*>destination, len(destination))
        memcpy(self.hop.source, <const char*>source, len(source))


cdef class Service:
    """A virtual service. `servers` are (slot, 16-byte address, port, weight, one of METHODS), newest first; protocol 6
    or 17.

    `previous` is the compiled form that this one replaces: its scheduler goes on where it was.
    """

    def __cinit__(self, int protocol, address: bytes, int port, scheduler: str,
                  servers: Sequence[tuple[int, bytes, int, int, str]], Service previous = None):
        cdef server_t* server
        self.service = <service_t*>calloc(1, sizeof(service_t))
        if self.service == NULL:
            raise MemoryError
        self.service.servers = <server_t*>calloc(max(1, len(servers)), sizeof(server_t))
        self.service.state = <scheduler_state_t*>cache_lines(sizeof(scheduler_state_t))
        if self.service.servers == NULL or self.service.state == NULL:
            raise MemoryError
        self.service.address = address_from(address)
        self.service.port = port
        self.service.protocol = protocol
        self.service.scheduler = SCHEDULERS.index(scheduler)
        for slot, packed, server_port, weight, method in servers:
            server = &self.service.servers[self.service.count]
            server.address = address_from(packed)
            server.slot = slot
            server.port = server_port
            server.weight = weight
            server.method = METHODS.index(method)
            self.service.count += 1
        prepare(self.service)
        if previous is not None:
            succeed(self.service, previous.service)

    @property
    def waited(self) -> int:
        """How often a worker found the scheduler busy with another's connection, modulo 2**32."""
        return self.service.state.lock.waited

    def __dealloc__(self):
        if self.service != NULL:
            free(self.service.servers)
            free(self.service.state)
            free(self.service)


cdef class Snapshot:
    """All services, timeouts in seconds (established TCP, TCP after a FIN, UDP), and what becomes of packets that no
    real server gets: `no_server` "drop", "icmp" or "reset", `no_connection` (mid-stream TCP) "pass", "drop" or
    "reset"; with `sloppy`, mid-stream TCP begins a connection.

    Raises ValueError when two services have one key.
    """

    def __cinit__(self, services: Sequence[Service], uint32_t tcp = 900, uint32_t tcp_fin = 120, uint32_t udp = 300, *,
                  no_server: str = "icmp", no_connection: str = "pass", bint sloppy = False):
        cdef Service service
        cdef uint64_t places
        cdef uint32_t i
        self.services = tuple(services)
        self.snapshot = <snapshot_t*>calloc(1, sizeof(snapshot_t))
        if self.snapshot == NULL:
            raise MemoryError
        places = 1 << (2 * len(self.services) + 1).bit_length()
        self.snapshot.index_mask = places - 1
        self.snapshot.index = <service_t**>calloc(places, sizeof(service_t*))
        if self.snapshot.index == NULL:
            raise MemoryError
        key = os.urandom(16)
        memcpy(self.snapshot.key, <const char*>key, 16)
        default_timeouts(self.snapshot, tcp, tcp_fin, udp)
        self.snapshot.no_server = ANSWERS.index(no_server)
        self.snapshot.no_connection = ANSWERS.index(no_connection)
        self.snapshot.sloppy = sloppy
        for service in self.services:
            for i in range(service.service.count):
                self.snapshot.slot_count = max(self.snapshot.slot_count, service.service.servers[i].slot + 1)
        self.snapshot.available = <uint8_t*>calloc(max(1, self.snapshot.slot_count), 1)
        if self.snapshot.available == NULL:
            raise MemoryError
        for service in self.services:
            insert(self.snapshot, service.service)
            for i in range(service.service.count):
                self.snapshot.available[service.service.servers[i].slot] = 1

    def __dealloc__(self):
        if self.snapshot != NULL:
            free(self.snapshot.index)
            free(self.snapshot.available)
            free(self.snapshot)


cdef int insert(snapshot_t* snapshot, service_t* service) except -1:
    cdef uint64_t hash = hash_endpoint(snapshot.key, &service.address, service.port, service.protocol)
    cdef uint64_t at = hash & snapshot.index_mask
    cdef service_t* other
    while snapshot.index[at] != NULL:
        other = snapshot.index[at]
        if other.port == service.port and other.protocol == service.protocol and same(&other.address, &service.address):
            raise ValueError("two services have the same protocol, address and port")
        at = (at + 1) & snapshot.index_mask
    snapshot.index[at] = service
    return 0


cdef service_t* classify(const snapshot_t* snapshot, const packet_t* packet) noexcept nogil:
    """The virtual service that the packet is addressed to, or NULL."""
    cdef uint64_t hash = hash_endpoint(snapshot.key, &packet.destination, packet.dport, packet.protocol)
    cdef uint64_t at = hash & snapshot.index_mask
    cdef service_t* service = snapshot.index[at]
    while service != NULL:
        if service.port == packet.dport and service.protocol == packet.protocol \
                and same(&service.address, &packet.destination):
            return service
        at = (at + 1) & snapshot.index_mask
        service = snapshot.index[at]
    return NULL
