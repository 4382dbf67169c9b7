"""dh, sh, mh and hrw: the client, or the destination, decides by a hash.

Strategy: dh, sh and mh have tables of places that the hash points into, made anew whenever the servers change. A table
is a function of the servers in their order and of their weights, so nothing is carried over. The hash functions and
their keys are the kernel's: one client gets the same server from every director, and from IPVS
(net/netfilter/ipvs/ip_vs_dh.c, ip_vs_sh.c, ip_vs_mh.c; include/linux/hash.h, lib/siphash.c). So anybody can work out
which address gets which server, unless the service has a key: then a keyed hash of the address goes where the address
would.

hrw (rendezvous hashing, Thaler and Ravishankar, IEEE/ACM ToN 6(1), 1998) has no table: each server draws a number for
the client, and the best one wins; who leaves moves its own clients only. By weight w, the greatest log(draw) / w wins
(Schindelhauer and Schomaker, SPAA 2005); a logarithm is taken where weights differ only.
"""
from libc.math cimport log
from libc.stdint cimport int32_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from nfqlb._core.hash cimport hash_endpoint, hash_word
from nfqlb._core.load cimport takes
from nfqlb._core.types cimport FALLBACK, HASH_PORT, address_t, load_t, packet_t, server_t, service_t
from nfqlb._core.wire cimport ntohl


cdef enum:
    HASH_BITS = 8
    HASH_PLACES = 1 << HASH_BITS
    GOLDEN_RATIO = 0x61C88647            # include/linux/hash.h

cdef uint64_t FIRST_KEY = 2654435761ULL  # each word of the two keys of mh
cdef uint64_t SECOND_KEY = 2654446892ULL


cdef inline uint32_t folded(const address_t* address) noexcept nogil:
    """An IPv4 address as a number; of an IPv6 address the exclusive or of its four words."""
    cdef uint32_t words[4]
    memcpy(words, address, 16)
    if address.high == 0 and words[2] == ntohl(0xffff):
        return ntohl(words[3])
    return ntohl(words[0] ^ words[1] ^ words[2] ^ words[3])


cdef inline uint32_t seen(const service_t* service, const address_t* address, uint16_t port) noexcept nogil:
    """An address, and a port or 0, as the hash functions take them."""
    if service.keyed:
        return <uint32_t>hash_endpoint(service.hash_key, address, port, 0)
    return folded(address) + port


cdef inline uint16_t port_of(const service_t* service, const packet_t* packet) noexcept nogil:
    return packet.sport if service.flags & HASH_PORT else 0


cdef inline uint32_t place_of(uint32_t value) noexcept nogil:
    """hash_32() with 8 bits."""
    return (value * <uint32_t>GOLDEN_RATIO) >> (32 - HASH_BITS)


cdef int allocate(service_t* service, uint32_t count) except -1:
    service.places = <uint32_t*>calloc(count, sizeof(uint32_t))
    if service.places == NULL:
        raise MemoryError
    service.place_count = count
    return 0


# --- dh ---------------------------------------------------------------------------------------------------------------

cdef int fill_destination_hash(service_t* service) except -1:
    """Each server in turn, whatever its weight."""
    cdef uint32_t at
    allocate(service, HASH_PLACES)
    for at in range(<uint32_t>HASH_PLACES if service.count else 0):
        service.places[at] = 1 + at % service.count
    return 0


cdef int32_t destination_hash(service_t* service, const packet_t* packet, const load_t* loads) noexcept nogil:
    cdef int32_t at = <int32_t>service.places[place_of(seen(service, &packet.destination, 0))] - 1
    return at if at >= 0 and takes(&service.servers[at], loads) else -1


# --- sh ---------------------------------------------------------------------------------------------------------------

cdef int fill_source_hash(service_t* service) except -1:
    """Each server in turn as often as its weight says, one of weight 0 once: its clients get nobody."""
    cdef uint32_t server = 0
    cdef int32_t times = 0
    cdef uint32_t at
    allocate(service, HASH_PLACES)
    for at in range(<uint32_t>HASH_PLACES if service.count else 0):
        service.places[at] = 1 + server
        times += 1
        if times >= service.servers[server].weight:
            times = 0
            server = (server + 1) % service.count
    return 0


cdef int32_t source_hash(service_t* service, const packet_t* packet, const load_t* loads) noexcept nogil:
    cdef uint32_t client = seen(service, &packet.source, port_of(service, packet))
    cdef uint32_t first = place_of(client)
    cdef int32_t at = <int32_t>service.places[first] - 1
    cdef uint32_t more
    if at < 0 or takes(&service.servers[at], loads):
        return at
    if not service.flags & FALLBACK:
        return -1
    for more in range(<uint32_t>HASH_PLACES):
        at = <int32_t>service.places[((more + first) % HASH_PLACES + first) % HASH_PLACES] - 1
        if at < 0 or takes(&service.servers[at], loads):
            return at
    return -1


# --- mh ---------------------------------------------------------------------------------------------------------------

cdef struct turn_t:                      # how a server walks over the table
    uint32_t at
    uint32_t skip
    uint32_t turns                       # places that it takes in a row


cdef int fill_maglev(service_t* service) except -1:
    """Maglev's table (Eisenbud et al., NSDI 2016, section 3.4) as a kernel with one of that size fills it, by the last
    weights that were not 0: a server that is drained leaves the places of all others as they are. Large ones take
    a while, in which other threads have the GIL.
    """
    cdef turn_t* walks
    cdef uint32_t at
    cdef uint32_t size = service.maglev_size
    cdef int32_t shift
    cdef int32_t gcd = 0
    cdef int32_t greatest = 0
    cdef server_t* server
    allocate(service, size)
    for at in range(service.count):
        server = &service.servers[at]
        if server.last_weight > 0:
            gcd = divisor(server.last_weight, gcd)
            greatest = max(greatest, server.last_weight)
    if gcd == 0:
        return 0
    shift = max(0, bits(greatest // gcd) - bits(size) // 2)        # IP_VS_MH_TAB_BITS
    walks = <turn_t*>calloc(service.count, sizeof(turn_t))
    if walks == NULL:
        raise MemoryError
    for at in range(service.count):
        server = &service.servers[at]
        walks[at].at = hash_word(FIRST_KEY, folded(&server.address) + server.port) % size
        walks[at].skip = hash_word(SECOND_KEY, folded(&server.address) + server.port) % (size - 1) + 1
        walks[at].turns = (server.last_weight // gcd) >> shift or (server.last_weight != 0)
    with nogil:
        take_turns(service, walks)
    free(walks)
    return 0


cdef void take_turns(service_t* service, turn_t* walks) noexcept nogil:
    """Each server in turn takes the next free places on its walk, until none is left."""
    cdef uint32_t size = service.place_count
    cdef uint32_t free_places = size
    cdef uint32_t server = 0
    cdef uint32_t at, turns
    while free_places:
        at = walks[server].at
        turns = min(walks[server].turns, free_places)
        free_places -= turns
        while turns:
            while service.places[at]:
                at += walks[server].skip
                at -= size if at >= size else 0
            service.places[at] = 1 + server
            turns -= 1
        walks[server].at = at
        server = server + 1 if server + 1 < service.count else 0


cdef int32_t maglev(service_t* service, const packet_t* packet, const load_t* loads) noexcept nogil:
    cdef uint32_t client = seen(service, &packet.source, port_of(service, packet))
    cdef uint32_t size = service.place_count
    cdef uint32_t first = hash_word(FIRST_KEY, client) % size
    cdef int32_t at = <int32_t>service.places[first] - 1
    cdef uint32_t more
    if at < 0 or takes(&service.servers[at], loads):
        return at
    if not (service.flags & FALLBACK and anybody_takes(service, loads)):
        return -1
    for more in range(size):
        at = <int32_t>service.places[hash_word(FIRST_KEY, client + (more + first) % size) % size] - 1
        if at < 0 or takes(&service.servers[at], loads):
            return at
    return -1


cdef inline bint anybody_takes(service_t* service, const load_t* loads) noexcept nogil:
    cdef uint32_t at
    for at in range(service.count):
        if takes(&service.servers[at], loads):
            return True
    return False


# --- hrw --------------------------------------------------------------------------------------------------------------

cdef int fill_names(service_t* service) except -1:
    """What each server is known by: a hash of its address and port, the same for every director."""
    cdef uint64_t key[2]
    cdef uint32_t at
    key[0] = FIRST_KEY
    key[1] = SECOND_KEY
    service.names = <uint64_t*>calloc(max(<uint32_t>1, service.count), sizeof(uint64_t))
    if service.names == NULL:
        raise MemoryError
    for at in range(service.count):
        service.names[at] = hash_endpoint(key, &service.servers[at].address, service.servers[at].port, 0)
    return 0


cdef int32_t rendezvous(service_t* service, const packet_t* packet, const load_t* loads) noexcept nogil:
    """A server that takes no connections draws no number: its clients go to the next best, and come back."""
    cdef uint64_t key[2]
    cdef uint64_t client, draw
    cdef uint64_t highest = 0
    cdef int32_t weight
    cdef int32_t best = -1
    cdef int32_t at
    key[0] = service.hash_key[0] if service.keyed else FIRST_KEY
    key[1] = service.hash_key[1] if service.keyed else FIRST_KEY
    client = hash_endpoint(key, &packet.source, port_of(service, packet), 0)
    for at in range(<int32_t>service.count):
        if not takes(&service.servers[at], loads):
            continue
        draw = stir(client ^ service.names[at])
        weight = service.servers[at].weight
        if best < 0 or is_greater(draw, weight, highest, service.servers[best].weight):
            best = at
            highest = draw
    return best


cdef inline uint64_t stir(uint64_t value) noexcept nogil:
    """The finalizer of MurmurHash3: every bit of the result depends on every bit of the value."""
    value = (value ^ value >> 33) * 0xff51afd7ed558ccdULL
    value = (value ^ value >> 33) * 0xc4ceb9fe1a85ec53ULL
    return value ^ value >> 33


cdef inline bint is_greater(uint64_t draw, int32_t weight, uint64_t other, int32_t other_weight) noexcept nogil:
    """log(draw) / weight > log(other) / other_weight, of draws in (0, 1)."""
    if weight <= other_weight and draw <= other:
        return False
    if weight >= other_weight and draw > other:
        return True
    return log_of(draw) * other_weight > log_of(other) * weight


cdef inline double log_of(uint64_t draw) noexcept nogil:
    return log((<double>(draw >> 11) + 0.5) / 9007199254740992.0)          # 2**53


cdef int32_t divisor(int32_t a, int32_t b) noexcept:
    """The greatest common one; that of a and 0 is a."""
    while b:
        a, b = b, a % b
    return a


cdef int32_t bits(uint32_t value) noexcept:
    """The number of the highest bit that is set, from 1 on (fls())."""
    cdef int32_t found = 0
    while value:
        value >>= 1
        found += 1
    return found
