"""Compiled configuration: what `publish` puts before the workers, by one pointer.

Strategy: services are compiled one by one and shared between snapshots while they do not change; a snapshot is only
an index over them, two arrays by slot and the timeouts. Nothing in it is written after it was built, so a worker needs
no lock, and what a worker may still read is kept alive until its batch is over (Datapath.publish).

A packet belongs to the service of its mark, else to that of its very port, else to the range that its port lies in,
else, where it may be FTP data, to the persistent service on port 21, else to that with every port
(net/netfilter/ipvs/ip_vs_ctl.c, ip_vs_service_find, which knows no ranges).
"""
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy

import os

from nfqlb._core.advisor cimport Advisor
from nfqlb._core.atomic cimport lock, unlock
from nfqlb._core.hash cimport hash_endpoint
from nfqlb._core.load cimport is_overloaded
from nfqlb._core.locality cimport clear, collect
from nfqlb._core.memory cimport cache_lines
from nfqlb._core.ranking cimport free_ranking, is_told, new_ranking, position, seat
from nfqlb._core.schedulers cimport prepare, succeed
from nfqlb._core.shadow cimport free_shadow, new_shadow, remember
from nfqlb._core.tracking cimport default_timeouts, set_timeouts
from nfqlb._core.types cimport (
    AVAILABLE,
    DIFFERENCES,
    FTP,
    FTP_DATA,
    KEEPS,
    KINDS,
    LEADS,
    LEARNS,
    MAY_OFFLOAD,
    MOVES,
    NAT,
    QUIESCED,
    RESETS,
    REUSE,
    REUSE_FIN_WAIT,
    TCP,
    TICK,
    UNPRIVILEGED,
    address_t,
    difference_t,
    locality_t,
    packet_t,
    scheduler_state_t,
    server_t,
    service_t,
    shadow_t,
    snapshot_t,
    span_t,
    tally_t,
)
from nfqlb._core.wire cimport address_from, same
from nfqlb._core.schedulers import FLAGS, SCHEDULERS


ANSWERS: tuple[str, ...] = ("pass", "drop", "icmp", "reset")
METHODS: tuple[str, ...] = ("nat", "dr", "tun")      # by method_t
FATES: dict[str, int] = {"remove": 0, "keep": KEEPS, "reset": RESETS, "move": MOVES}

cdef bytes MAPPED = bytes(10) + b"\xff\xff"          # in front of an IPv4 address (RFC 4291, 2.5.5.2)
cdef enum:
    LAST_PORT = 65535


cdef class Hop:
    """Where frames for a real server leave: interface index, MTU of the route, the next hop's link-layer address and
    our own (6 bytes each, or none where the interface has no such header), our IP address there (16 bytes). `local`:
    the real server is this machine. With `mask` nothing is sent from here: these bits of a packet's mark become `mark`,
    and the kernel routes it by that (direct routing only).
    """

    def __cinit__(self, uint32_t interface, uint32_t mtu, destination: bytes = b"", source: bytes = b"",
                  address: bytes = bytes(16), bint local = False, uint32_t mark = 0, uint32_t mask = 0):
        if len(destination) not in (0, 6) or len(source) != len(destination):
            raise ValueError("a link-layer address is 6 bytes")
        if mark & ~mask:
            raise ValueError("a mark is inside its mask")
        self.hop.interface = interface
        self.hop.mtu = mtu
        self.hop.ethernet = len(destination) == 6
        self.hop.local = local
        self.hop.mark = mark
        self.hop.mask = mask
        self.hop.own = address_from(address)
        memcpy(self.hop.destination, <const char*>destination, len(destination))
        memcpy(self.hop.source, <const char*>source, len(source))


cdef class Service:
    """A virtual service. `servers` are (slot, 16-byte address, port, weight, one of METHODS), newest first; protocol 6,
    17 or 132. A server's port 0 stands for that of the packet. Two numbers may follow: how many connections, active or
    not, stop new ones, and below how many these go on (0: three quarters of the other).

    `flags` are some of the scheduler's (schedulers.FLAGS). With `persistence`, a client stays with its real server for
    so many seconds after its last connection began; `mask` (16 bytes) makes all of a network one client; with
    `moves_quiesced` a server of weight 0 loses its clients; with `by_call` each of a client's SIP calls is on its own.
    `one_packet`: each datagram is scheduled on its own. `mss`: bytes that a SYN may announce at most, 0 for any.
    `offload`: the kernel may forward what is established by itself. `timeouts`: seconds in the order of
    tracking.TIMEOUT_KINDS, 0 where it is what all services have. `connections_max`: connections that it may have, 0 for
    any number. `maglev_size`: places of mh's table, a prime. `hash_key`: 16 bytes, with which dh, sh, mh and hrw hash
    addresses, or none.

    `last` makes it a service of the ports from `port` on; port 0 is every port. With `mark` it takes the packets that
    bear this netfilter mark, whatever their protocol, address and port: protocol 0, and only the family of `address`
    counts.

    `advisor` is asked before the scheduler, which chooses where it says nothing. `shadow`, a service of the same
    servers, is asked beside both, and compared with them.

    `previous` is the compiled form that this one replaces: its scheduler goes on where it was.
    """

    def __cinit__(self, int protocol, address: bytes, int port, scheduler: str,
                  servers: Sequence[tuple], Service previous = None, *, int last = 0, uint32_t mark = 0,
                  flags: Sequence[str] = (), uint32_t persistence = 0, mask: bytes = b"\xff" * 16,
                  bint moves_quiesced = False, bint by_call = False, bint one_packet = False, uint16_t mss = 0,
                  bint offload = True, Advisor advisor = None, Service shadow = None,
                  timeouts: Sequence[int] = (), uint32_t connections_max = 0, uint32_t maglev_size = 4093,
                  hash_key: bytes = b""):
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
        self.service.last = max(port, last) if port else LAST_PORT
        self.service.mark = mark
        self.service.version = 4 if address.startswith(MAPPED) else 6
        self.service.protocol = protocol
        self.service.scheduler = SCHEDULERS.index(scheduler)
        self.service.persistence = persistence * 10
        self.service.moves_quiesced = moves_quiesced
        self.service.by_call = by_call
        self.service.one_packet = one_packet
        self.service.mask = address_from(mask)
        self.service.template_protocol = protocol
        self.service.template_port = 0 if port == FTP else port
        self.service.template_address = self.service.address
        if mark:                                             # as the kernel has it: the mark is the address
            self.service.template_address = address_from(address[:12] + mark.to_bytes(4, "big"))
        self.service.mss = mss
        self.service.offload = offload
        set_timeouts(self.service.timeouts, timeouts)
        self.service.has_timeouts = any(timeouts)
        self.service.limit = connections_max
        self.service.maglev_size = maglev_size
        if hash_key:
            self.service.keyed = True
            self.service.hash_key[0] = int.from_bytes(hash_key[:8], "little")
            self.service.hash_key[1] = int.from_bytes(hash_key[8:16], "little")
        for flag in flags:
            self.service.flags |= FLAGS[scheduler][flag]
        for slot, packed, server_port, weight, method, *thresholds in servers:
            server = &self.service.servers[self.service.count]
            server.address = address_from(packed)
            server.slot = slot
            server.port = server_port
            server.weight = weight
            server.method = METHODS.index(method)
            server.last_weight = weight
            server.counts_total = "count-total" in flags
            server.is_new = True
            server.upper, server.lower = thresholds or (0, 0)
            server.lower = server.lower or server.upper - server.upper // 4
            self.service.count += 1
        seat(self.service)
        if previous is not None:
            inherit(self.service, previous.service)
        prepare(self.service)
        new_ranking(self.service)
        if scheduler in ("lblc", "lblcr"):
            self.locality = None if previous is None else previous.locality
            if self.locality is None:
                self.locality = new_locality()
            self.service.locality = self.locality.locality
        if previous is not None:
            succeed(self.service, previous.service)
        self.advisor = advisor
        if advisor is not None:
            self.service.advisor = &advisor.advisor
        self.shadow = shadow
        if shadow is not None:
            self.service.shadow = new_shadow(self.service, shadow.service)
            if previous is not None and previous.shadow is not None \
                    and are_alike(self, previous) and are_alike(shadow, previous.shadow):
                remember(self.service, previous.service)

    def compared(self) -> tuple[int, int, dict[int, tuple[int, int]], list[tuple[bytes, int, int, int]]]:
        """What the shadow made of the connections so far: how many were compared, and how many of these it had given to
        another server; by slot, how many the server got and how many it would have got; the last that differed, newest
        first: the client's address and port, the slot that it got and that it would have got, 0 for none.
        """
        cdef shadow_t* shadow = self.service.shadow
        cdef shadow_t copy
        cdef difference_t* last
        cdef uint32_t at
        cdef uint64_t number
        cdef tally_t* tallies = <tally_t*>calloc(max(<uint32_t>1, self.service.count), sizeof(tally_t))
        if tallies == NULL:
            raise MemoryError
        lock(&shadow.lock)
        copy = shadow[0]
        memcpy(tallies, shadow.tallies, self.service.count * sizeof(tally_t))
        unlock(&shadow.lock)
        got = {}
        for at in range(self.service.count):
            got[self.service.servers[at].slot] = tallies[at].live, tallies[at].candidate
        free(tallies)
        latest = []
        for number in range(copy.differed, max(copy.differed, <uint64_t>DIFFERENCES) - DIFFERENCES, -1):
            last = &copy.last[(number - 1) % DIFFERENCES]
            latest.append(((<char*>&last.client)[:16], last.port, last.live, last.candidate))
        return copy.compared, copy.differed, got, latest

    def collect(self, now: int, bint all_unused) -> int:
        """For lblc and lblcr, once a minute: forget destinations that are not used any more at `now` (CLOCK_BOOTTIME,
        nanoseconds). With `all_unused`, every thirtieth time, those of a day; else only where there are very many.
        Returns how many went.
        """
        cdef uint32_t tick = now // TICK
        gone = 0 if self.shadow is None else self.shadow.collect(now, all_unused)
        return gone if self.locality is None else gone + collect(self.locality.locality, tick, all_unused)

    @property
    def waited(self) -> int:
        """How often a worker found the scheduler busy with another's connection, modulo 2**32."""
        return self.service.state.lock.waited

    @property
    def ranked(self) -> bool:
        """Whether its servers are kept in the order in which the scheduler likes them: there are many, it looks at
        loads, and it is published.
        """
        return is_told(self.service)

    def __dealloc__(self):
        if self.service != NULL:
            free_ranking(self.service)
            free_shadow(self.service.shadow)
            free(self.service.servers)
            free(self.service.places)
            free(self.service.sums)
            free(self.service.guide)
            free(self.service.names)
            free(self.service.state)
            free(self.service)


cdef bint are_alike(Service one, Service other) noexcept:
    """Whether both choose by the same scheduler."""
    return one.service.scheduler == other.service.scheduler and one.advisor is other.advisor


cdef void inherit(service_t* service, const service_t* previous) noexcept:
    """What servers that stay remember of themselves: their last weight, and that they have too many connections, by the
    lower threshold that was. One that is raised or gone counts as not reached (__ip_vs_update_dest).
    """
    cdef server_t* server
    cdef server_t* before
    cdef uint32_t at
    cdef int32_t other
    service.loads = previous.loads
    for at in range(service.count):
        server = &service.servers[at]
        other = position(previous, server.slot)
        if other >= 0:
            before = &previous.servers[other]
            server.last_weight = server.weight or before.last_weight
            server.is_new = before.is_new
            server.overloaded = is_overloaded(before, service.loads) and 0 < server.upper <= before.upper


cdef class Locality:
    """What lblc and lblcr remember of a service's destinations; goes from one compiled form to the next."""

    def __dealloc__(self):
        free(self.locality)


cdef Locality new_locality():
    cdef Locality new = Locality.__new__(Locality)
    new.locality = <locality_t*>cache_lines(sizeof(locality_t))
    if new.locality == NULL:
        raise MemoryError
    clear(new.locality)
    return new


cdef class Snapshot:
    """All services, timeouts in seconds (as in tracking.TIMEOUT_KINDS), and what becomes of packets that no
    real server gets: `no_server` "drop", "icmp" or "reset", `no_connection` (mid-stream TCP and SCTP) "pass",
    "drop" or "reset"; with `sloppy` mid-stream TCP begins a connection, with `sloppy_sctp` SCTP. Real servers of the
    slots that are `gone` are treated as if they were no part of their services any
    more. The others are the fields of nfqlb.model.Options.

    Raises ValueError when two services have one key.
    """

    def __cinit__(self, services: Sequence[Service], uint32_t tcp = 900, uint32_t tcp_fin = 120, uint32_t udp = 300,
                  *timeouts: int, no_server: str = "icmp", no_connection: str = "pass", bint sloppy = False,
                  bint sloppy_sctp = False, gone: Mapping[int, str] | None = None,
                  uint8_t conn_reuse_mode = REUSE | REUSE_FIN_WAIT,
                  bint expire_nodest_conn = False, bint expire_quiescent_template = False,
                  bint expire_quiescent_udp = False, uint8_t drop_entry = 0, uint8_t drop_packet = 0,
                  uint8_t secure_tcp = 0, uint32_t am_droprate = 10, uint32_t amemthresh = 0,
                  uint32_t connections_max = 0):
        cdef Service service
        cdef uint32_t i
        self.services = tuple(services)
        self.ranked = frozenset([service for service in self.services if is_ranked(service)])
        self.advised = frozenset([service for service in self.services if is_advised(service)])
        self.snapshot = <snapshot_t*>calloc(1, sizeof(snapshot_t))
        if self.snapshot == NULL:
            raise MemoryError
        key = os.urandom(16)
        memcpy(self.snapshot.key, <const char*>key, 16)
        default_timeouts(self.snapshot.timeouts)
        set_timeouts(self.snapshot.timeouts, (tcp, tcp_fin, udp, *timeouts))
        self.snapshot.no_server = ANSWERS.index(no_server)
        self.snapshot.no_connection = ANSWERS.index(no_connection)
        self.snapshot.sloppy = sloppy
        self.snapshot.sloppy_sctp = sloppy_sctp
        self.snapshot.reuse = conn_reuse_mode
        self.snapshot.expires_orphans = expire_nodest_conn
        self.snapshot.moves_quiesced = expire_quiescent_template
        self.snapshot.moves_datagrams = expire_quiescent_udp
        self.snapshot.drop_entry = drop_entry
        self.snapshot.drop_packet = drop_packet
        self.snapshot.secure_tcp = secure_tcp
        self.snapshot.drop_rate = am_droprate
        self.snapshot.least = amemthresh
        self.snapshot.limit = connections_max
        for service in self.services:
            for i in range(service.service.count):
                self.snapshot.slot_count = max(self.snapshot.slot_count, service.service.servers[i].slot + 1)
        gone = gone or {}
        self.snapshot.slot_count = max([self.snapshot.slot_count] + [slot + 1 for slot in gone])
        self.snapshot.available = <uint8_t*>calloc(max(1, self.snapshot.slot_count), 1)
        self.snapshot.mss = <uint16_t*>calloc(max(1, self.snapshot.slot_count), sizeof(uint16_t))
        if self.snapshot.available == NULL or self.snapshot.mss == NULL:
            raise MemoryError
        for service in self.services:
            for i in range(service.service.count):
                self.snapshot.available[service.service.servers[i].slot] = \
                    AVAILABLE | (MAY_OFFLOAD if service.service.offload else 0) \
                    | (quiescence(self.snapshot, service.service) if service.service.servers[i].weight == 0 else 0) \
                    | (LEARNS if is_learnt(service.service, &service.service.servers[i]) else 0)
                self.snapshot.mss[service.service.servers[i].slot] = service.service.mss
            if service.service.port == FTP and service.service.persistence:
                self.snapshot.ftp = True
        own_timeouts(self.snapshot, [service for service in self.services if has_timeouts(service)])
        for slot, fate in gone.items():
            self.snapshot.available[<uint32_t>slot] = FATES[fate]
        index_ports(self.snapshot, [one for one in self.services if kind_of(one) == PORT])
        index_spans(self.snapshot, [one for one in self.services if kind_of(one) == SPAN])
        index_marks(self.snapshot, [one for one in self.services if kind_of(one) == MARK])

    def __dealloc__(self):
        cdef uint64_t at
        if self.snapshot != NULL:
            if self.snapshot.spans != NULL:
                for at in range(self.snapshot.span_mask + 1):
                    free(self.snapshot.spans[at].parts)
            free(self.snapshot.spans)
            free(self.snapshot.marked)
            free(self.snapshot.index)
            free(self.snapshot.available)
            free(self.snapshot.own_timeouts)
            free(self.snapshot.own)
            free(self.snapshot.mss)
            free(self.snapshot)


cdef uint8_t quiescence(const snapshot_t* snapshot, const service_t* service) noexcept:
    """What `available` says of a real server of weight 0."""
    if service.persistence == 0 or service.moves_quiesced or snapshot.moves_quiesced:
        return QUIESCED
    return QUIESCED | LEADS


cdef bint is_learnt(const service_t* service, const server_t* server) noexcept:
    """Whether the kernel's rules know packets of its connections by the clients that they saw: of a service by mark
    errors to its VIPs, and replies where no port tells them from the real server's own business.
    """
    return service.mark != 0 or (server.method == NAT and (
        (server.port == 0 and service.port == 0) or (service.port == FTP and service.persistence != 0)))


cdef bint has_timeouts(Service service) noexcept:
    return service.service.has_timeouts


cdef int own_timeouts(snapshot_t* snapshot, list services) except -1:
    """Put what services say of timeouts in the place of what is said for all."""
    cdef Service one
    cdef uint32_t* timeouts
    cdef uint32_t i
    if not services:
        return 0
    snapshot.own_timeouts = <uint32_t**>calloc(snapshot.slot_count + 1, sizeof(uint32_t*))
    snapshot.own = <uint32_t*>calloc(len(services) * KINDS, sizeof(uint32_t))
    if snapshot.own_timeouts == NULL or snapshot.own == NULL:
        raise MemoryError
    timeouts = snapshot.own
    for one in services:
        for i in range(<uint32_t>KINDS):
            timeouts[i] = one.service.timeouts[i] or snapshot.timeouts[i]
        for i in range(one.service.count):
            snapshot.own_timeouts[one.service.servers[i].slot] = timeouts
        timeouts += KINDS
    return 0


cdef bint is_ranked(Service service) noexcept:
    return service.service.ranking != NULL


cdef bint is_advised(Service service) noexcept:
    return service.advisor is not None or (service.shadow is not None and service.shadow.advisor is not None)


cdef enum kind_t:
    PORT = 0
    SPAN
    MARK


cdef kind_t kind_of(Service service) noexcept:
    """Which of the three indices a service belongs to."""
    if service.service.mark:
        return MARK
    return PORT if service.service.port == service.service.last else SPAN


cdef uint64_t places_for(Py_ssize_t count) noexcept:
    """A power of two, more than twice the count: chains stay short."""
    cdef uint64_t places = 2
    while places <= 2 * <uint64_t>count:
        places *= 2
    return places


cdef int index_ports(snapshot_t* snapshot, list services) except -1:
    cdef Service one
    cdef service_t* service
    cdef service_t* other
    cdef uint64_t at
    snapshot.index_mask = places_for(len(services)) - 1
    snapshot.index = <service_t**>calloc(snapshot.index_mask + 1, sizeof(service_t*))
    if snapshot.index == NULL:
        raise MemoryError
    for one in services:
        service = one.service
        at = hash_endpoint(snapshot.key, &service.address, service.port, service.protocol) & snapshot.index_mask
        while snapshot.index[at] != NULL:
            other = snapshot.index[at]
            if other.port == service.port and other.protocol == service.protocol \
                    and same(&other.address, &service.address):
                raise ValueError("two services have the same protocol, address and port")
            at = (at + 1) & snapshot.index_mask
        snapshot.index[at] = service
    return 0


cdef int index_spans(snapshot_t* snapshot, list services) except -1:
    cdef Service one
    cdef service_t* service
    cdef span_t* span
    cdef service_t** larger
    if not services:
        return 0
    snapshot.span_mask = places_for(len(services)) - 1
    snapshot.spans = <span_t*>calloc(snapshot.span_mask + 1, sizeof(span_t))
    if snapshot.spans == NULL:
        raise MemoryError
    for one in sorted(services, key=_first_port):
        service = one.service
        span = span_of(snapshot, &service.address, service.protocol)
        span.address = service.address
        span.protocol = service.protocol
        if service.port == 0:
            if span.whole != NULL:
                raise ValueError("two services have every port of the same protocol and address")
            span.whole = service
            continue
        if span.count and service.port <= span.parts[span.count - 1].last:
            raise ValueError("the port ranges of two services with the same protocol and address overlap")
        larger = <service_t**>realloc(span.parts, (span.count + 1) * sizeof(service_t*))
        if larger == NULL:
            raise MemoryError
        span.parts = larger
        span.parts[span.count] = service
        span.count += 1
    return 0


def _first_port(Service service):
    return service.service.port


cdef span_t* span_of(const snapshot_t* snapshot, const address_t* address, uint8_t protocol) noexcept nogil:
    """The place of an address and protocol among the spans; a free one where it has none."""
    cdef uint64_t at = hash_endpoint(snapshot.key, address, 0, protocol) & snapshot.span_mask
    cdef span_t* span = &snapshot.spans[at]
    while span.protocol and (span.protocol != protocol or not same(&span.address, address)):
        at = (at + 1) & snapshot.span_mask
        span = &snapshot.spans[at]
    return span


cdef int index_marks(snapshot_t* snapshot, list services) except -1:
    cdef Service one
    if not services:
        return 0
    snapshot.marked = <service_t**>calloc(len(services), sizeof(service_t*))
    if snapshot.marked == NULL:
        raise MemoryError
    for one in sorted(services, key=_version_and_mark):
        if snapshot.marks and order(snapshot.marked[snapshot.marks - 1]) == order(one.service):
            raise ValueError("two services of one family have the same mark")
        snapshot.marked[snapshot.marks] = one.service
        snapshot.marks += 1
    return 0


def _version_and_mark(Service service):
    return order(service.service)


cdef inline uint64_t order(const service_t* service) noexcept nogil:
    return <uint64_t>service.version << 32 | service.mark


cdef service_t* by_mark(const snapshot_t* snapshot, uint64_t wanted) noexcept nogil:
    cdef uint32_t low = 0
    cdef uint32_t high = snapshot.marks
    cdef uint32_t middle
    while low < high:
        middle = (low + high) // 2
        if order(snapshot.marked[middle]) < wanted:
            low = middle + 1
        else:
            high = middle
    if low < snapshot.marks and order(snapshot.marked[low]) == wanted:
        return snapshot.marked[low]
    return NULL


cdef service_t* by_range(const span_t* span, uint16_t port) noexcept nogil:
    cdef uint32_t low = 0
    cdef uint32_t high = span.count
    cdef uint32_t middle
    while low < high:                                        # the first that ends at the port or behind it
        middle = (low + high) // 2
        if span.parts[middle].last < port:
            low = middle + 1
        else:
            high = middle
    if low < span.count and span.parts[low].port <= port:
        return span.parts[low]
    return NULL


cdef service_t* classify(const snapshot_t* snapshot, const packet_t* packet, bint marked) noexcept nogil:
    """The virtual service that the packet is addressed to, or NULL; its mark counts if it is `marked`."""
    cdef service_t* service = NULL
    cdef const span_t* span = NULL
    if marked and snapshot.marks and packet.mark:
        service = by_mark(snapshot, <uint64_t>packet.version << 32 | packet.mark)
    if service == NULL:
        service = by_port(snapshot, packet, packet.dport)
    if service == NULL and snapshot.spans != NULL:
        span = span_of(snapshot, &packet.destination, packet.protocol)
        service = by_range(span, packet.dport)
    if service == NULL and snapshot.ftp and packet.protocol == TCP \
            and (packet.dport == FTP_DATA or packet.dport >= UNPRIVILEGED):
        service = by_port(snapshot, packet, FTP)             # a data connection goes where its control connection went
        if service != NULL and not service.persistence:
            service = NULL
    if service == NULL and span != NULL:
        service = span.whole
    return service


cdef inline service_t* by_port(const snapshot_t* snapshot, const packet_t* packet, uint16_t port) noexcept nogil:
    cdef uint64_t hash = hash_endpoint(snapshot.key, &packet.destination, port, packet.protocol)
    cdef uint64_t at = hash & snapshot.index_mask
    cdef service_t* service = snapshot.index[at]
    while service != NULL:
        if service.port == port and service.protocol == packet.protocol \
                and same(&service.address, &packet.destination):
            return service
        at = (at + 1) & snapshot.index_mask
        service = snapshot.index[at]
    return NULL
