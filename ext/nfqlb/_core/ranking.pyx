"""Rankings: lc, wlc, lblc, lblcr, sed, nq, fo, ovf and twos choose among thousands of real servers in O(log n).

Strategy: a tournament over the servers. Every scheduler that looks at loads likes the server with the least cost /
weight, of equals the newest, once its cost is put right (`value`); so one tree serves all, and gives what the walk over
all servers in load.pxd gives, which few servers still have, as it costs less there. For twos the tree has sums of
weights.

Connections begin, change and end in all workers, and none of them waits for a tree. Who gets one more to do can only
fall behind: that is seen when it wins, and is weighed again then. Who gets less to do is written into a ring, the news
(ranking.pxd, note_load), which the next choice reads, under the service's lock; where the ring was too short, all of
the tree is made anew. Each costs a climb up to where the winner stays.

A table knows by slot whose leaf it is: that of the service which was published last. Publishing detaches services that
go and attaches those that come; a new one reads all loads at its first choice, and one that is detached walks while a
batch still uses it.
"""
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from nfqlb._core.atomic cimport ACQUIRE, SEQUENTIAL, load32, load64, lock, store_pointer, unlock
from nfqlb._core.load cimport active_of, overhead, takes
from nfqlb._core.memory cimport cache_lines
from nfqlb._core.types cimport (
    FO,
    LBLC,
    LBLCR,
    LC,
    NQ,
    OVF,
    SED,
    TWOS,
    WLC,
    leaf_t,
    load_t,
    node_t,
    ranking_t,
    server_t,
    service_t,
    table_t,
)


cdef enum:
    FEW = 16                     # servers up to which a walk is as fast
    NEWS = 8                     # the ring has room for one of so many servers

cdef enum:                       # of a ranking
    DETACHED = 0                 # loads change without a word
    COLD = 1                     # the tree is not made
    WARM = 2


# --- places of slots --------------------------------------------------------------------------------------------------

cdef int seat(service_t* service) except -1:
    """Note where the server of each slot stands: open addressing. Of equal slots the first counts."""
    cdef uint32_t size = 2 * FEW
    cdef uint32_t at, index
    if service.count <= <uint32_t>FEW:
        return 0
    while size < 2 * service.count:
        size *= 2
    service.seats = <uint32_t*>calloc(size, sizeof(uint32_t))
    if service.seats == NULL:
        raise MemoryError
    service.seat_mask = size - 1
    for index in range(service.count):
        at = service.servers[index].slot & service.seat_mask
        while service.seats[at] and service.servers[service.seats[at] - 1].slot != service.servers[index].slot:
            at = (at + 1) & service.seat_mask
        service.seats[at] = service.seats[at] or index + 1
    return 0


cdef int32_t position(const service_t* service, uint32_t slot) noexcept nogil:
    """The index of a real server, -1 for one that has left the service."""
    cdef int32_t index
    cdef uint32_t at
    if service.seats == NULL:
        for index in range(<int32_t>service.count):
            if service.servers[index].slot == slot:
                return index
        return -1
    at = slot & service.seat_mask
    while service.seats[at]:
        if service.servers[service.seats[at] - 1].slot == slot:
            return <int32_t>service.seats[at] - 1
        at = (at + 1) & service.seat_mask
    return -1


# --- life -------------------------------------------------------------------------------------------------------------

cdef int new_ranking(service_t* service) except -1:
    """For a service with many servers whose scheduler looks at loads; detached."""
    cdef ranking_t* ranking
    cdef uint32_t at
    if service.count <= <uint32_t>FEW or service.scheduler not in (LC, WLC, LBLC, LBLCR, SED, NQ, FO, OVF, TWOS):
        return 0
    ranking = service.ranking = <ranking_t*>cache_lines(sizeof(ranking_t))
    if ranking == NULL:
        raise MemoryError
    ranking.width = 2 * FEW
    while ranking.width < service.count:
        ranking.width *= 2
    ranking.leaves = <leaf_t*>cache_lines(service.count * sizeof(leaf_t))
    ranking.nodes = <node_t*>cache_lines(2 * ranking.width * sizeof(node_t))
    ranking.news_mask = ranking.width // NEWS - 1
    ranking.news = <uint64_t*>cache_lines((ranking.news_mask + 1) * sizeof(uint64_t))
    ranking.told = ranking.heard = 1             # 0 is what an empty place says
    if ranking.leaves == NULL or ranking.nodes == NULL or ranking.news == NULL:
        raise MemoryError
    for at in range(service.count):
        ranking.leaves[at].ranking = ranking
    for at in range(2 * ranking.width):
        nobody(service, &ranking.nodes[at])
    return 0


cdef void free_ranking(service_t* service) noexcept:
    free(service.seats)
    if service.ranking != NULL:
        free(service.ranking.leaves)
        free(service.ranking.nodes)
        free(service.ranking.news)
        free(service.ranking)


cdef bint is_told(const service_t* service) noexcept nogil:
    return service.ranking != NULL and service.ranking.state != DETACHED


cdef void attach(table_t* table, service_t* service) noexcept:
    """Have the service told of its servers' loads, unless another one is told of one of them."""
    cdef ranking_t* ranking = service.ranking
    cdef uint32_t at
    for at in range(service.count):
        if table.watch[service.servers[at].slot] != NULL:
            detach(table, service)
            return
        store_pointer(<void**>&table.watch[service.servers[at].slot], &ranking.leaves[at], SEQUENTIAL)
    lock(&service.state.lock)
    ranking.state = COLD
    unlock(&service.state.lock)


cdef void detach(table_t* table, service_t* service) noexcept:
    """Tell it no more. What a batch still writes into its news does no harm."""
    cdef ranking_t* ranking = service.ranking
    cdef uint32_t at, slot
    lock(&service.state.lock)
    ranking.state = DETACHED
    unlock(&service.state.lock)
    for at in range(service.count):
        slot = service.servers[at].slot
        if table.watch[slot] == &ranking.leaves[at]:
            store_pointer(<void**>&table.watch[slot], NULL, SEQUENTIAL)


# --- the tree ---------------------------------------------------------------------------------------------------------

cdef inline void nobody(const service_t* service, node_t* node) noexcept nogil:
    """Loses against every server; of no weight for twos."""
    node.cost = <int64_t>1 << 62 if service.scheduler == LC else service.scheduler != TWOS
    node.weight = 0


cdef inline node_t value(service_t* service, uint32_t at, const load_t* loads) noexcept nogil:
    """What its scheduler likes a server for."""
    cdef server_t* server = &service.servers[at]
    cdef int64_t active = active_of(server, loads)
    cdef node_t node
    nobody(service, &node)
    node.index = at
    if not takes(server, loads):
        return node
    node.weight = server.weight
    if service.scheduler == TWOS:
        node.cost = server.weight
    elif service.scheduler == SED:
        node.cost = active + 1
    elif service.scheduler == NQ:
        node.cost = active + 1 if active else 0
    elif service.scheduler == FO or service.scheduler == OVF:        # 1 / weight: the greatest wins
        if service.scheduler == OVF and active > server.weight:
            node.weight = 0
    else:
        node.cost = overhead(server, loads)
        if service.scheduler == LC:
            node.weight = 1
    return node


cdef inline bint alike(const node_t* one, const node_t* other) noexcept nogil:
    return one.cost == other.cost and one.weight == other.weight and one.index == other.index


cdef inline node_t join(const service_t* service, const node_t* left, const node_t* right) noexcept nogil:
    cdef node_t sum
    if service.scheduler != TWOS:
        return right[0] if right.cost * left.weight < left.cost * right.weight else left[0]
    sum.cost = left.cost + right.cost
    sum.weight = sum.index = 0
    return sum


cdef inline void rise(node_t* nodes, uint32_t at, node_t winner, bint even) noexcept nogil:
    """`even`: all weigh the same, costs alone decide; that saves two multiplications a victory, each of which waits for
    the last.
    """
    cdef node_t* other
    cdef bint loses
    while not alike(&nodes[at], &winner):
        nodes[at] = winner
        if at == 1:
            return
        other = &nodes[at ^ 1]
        if even:
            loses = other.cost < winner.cost + (at & 1)                                 # the left one wins a tie
        else:
            loses = other.cost * winner.weight < winner.cost * other.weight + (at & 1)
        winner.cost = other.cost if loses else winner.cost
        winner.weight = other.weight if loses else winner.weight
        winner.index = other.index if loses else winner.index
        at >>= 1


cdef void climb(service_t* service, node_t winner) noexcept nogil:
    """Put a server into its leaf and its victories above; by far most of the work, so nothing is read twice."""
    cdef node_t* nodes = service.ranking.nodes
    cdef uint32_t at = service.ranking.width + winner.index
    if service.scheduler == LC:
        rise(nodes, at, winner, True)
    elif service.scheduler != TWOS:
        rise(nodes, at, winner, False)
    elif nodes[at].cost != winner.cost:
        nodes[at].cost = winner.cost
        while at > 1:
            at >>= 1
            nodes[at].cost = nodes[2 * at].cost + nodes[2 * at + 1].cost


cdef inline void hear(service_t* service, uint32_t at, const load_t* loads) noexcept nogil:
    climb(service, value(service, at, loads))
    note_little(service, at, loads)


cdef void build(service_t* service, const load_t* loads) noexcept nogil:
    cdef node_t* nodes = service.ranking.nodes
    cdef uint32_t at
    for at in range(service.count):
        nodes[service.ranking.width + at] = value(service, at, loads)
        note_little(service, at, loads)
    for at in range(service.ranking.width - 1, 0, -1):
        nodes[at] = join(service, &nodes[2 * at], &nodes[2 * at + 1])


cdef bint ranked(service_t* service, const load_t* loads) noexcept nogil:
    """Hear the news. False where there is no tree, or it is told nothing. The caller holds the service's lock."""
    cdef ranking_t* ranking = service.ranking
    cdef uint32_t told
    cdef uint64_t news
    if not is_told(service):
        return False
    told = load32(&ranking.told, ACQUIRE)
    if ranking.state == COLD or told - ranking.heard > ranking.news_mask + 1:
        ranking.heard = told
        ranking.state = WARM
        build(service, loads)
    while ranking.heard != told:
        news = load64(&ranking.news[ranking.heard & ranking.news_mask], ACQUIRE)
        if news >> 32 != ranking.heard:
            break                                # it is about to be written
        ranking.heard += 1
        hear(service, <uint32_t>news, loads)
    return True


cdef int32_t leader(service_t* service, const load_t* loads) noexcept nogil:
    """The server that the scheduler likes best, -1 where none takes connections. After `ranked`."""
    cdef node_t* root = &service.ranking.nodes[1]
    cdef node_t now
    while root.weight:
        now = value(service, root.index, loads)
        if alike(root, &now):
            return <int32_t>root.index
        climb(service, now)
    return -1


cdef inline bint is_little(const service_t* service, uint32_t at, const load_t* loads) noexcept nogil:
    return 2 * active_of(&service.servers[at], loads) < service.servers[at].weight


cdef inline void note_little(service_t* service, uint32_t at, const load_t* loads) noexcept nogil:
    cdef leaf_t* leaf = &service.ranking.leaves[at]
    if (service.scheduler == LBLC or service.scheduler == LBLCR) and not leaf.little and is_little(service, at, loads):
        leaf.little = True
        leaf.next = service.ranking.little
        service.ranking.little = at + 1


cdef bint has_little(service_t* service, const load_t* loads) noexcept nogil:
    """For lblc and lblcr: whether a server has less active connections than half its weight. After `ranked`."""
    cdef ranking_t* ranking = service.ranking
    while ranking.little and not is_little(service, ranking.little - 1, loads):
        ranking.leaves[ranking.little - 1].little = False
        ranking.little = ranking.leaves[ranking.little - 1].next
    return ranking.little != 0


cdef int32_t drawn(const service_t* service, uint32_t chance) noexcept nogil:
    """For twos: a server by weight, of those that take connections; -1 where none does. `chance` is 32 random bits.
    After `ranked`.
    """
    cdef const ranking_t* ranking = service.ranking
    cdef int64_t sum = ranking.nodes[1].cost
    cdef int64_t left = max(<int64_t>(<uint64_t>chance * <uint64_t>(sum + 1) >> 32), <int64_t>1)
    cdef uint32_t node = 1
    if sum == 0:
        return -1
    while node < ranking.width:
        node *= 2
        if ranking.nodes[node].cost < left:
            left -= ranking.nodes[node].cost
            node += 1
    return <int32_t>(node - ranking.width)
