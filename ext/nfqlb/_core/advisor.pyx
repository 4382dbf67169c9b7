"""Schedulers in Python: `pick(flow, servers)` says who gets a connection, or None where the built-in one shall say it.

Strategy: only the first packet of a connection comes here, before any lock is taken, since whoever waits for the
interpreter must not be waited for. The built-in scheduler of the service stands behind: it chooses when the function
raises, answers what it may not, takes longer than its budget, or has failed so often in a row that it is left alone for
a second. Each of these is counted. A function that does not come back is ended from outside (`interrupt`), as far as
Python can: an exception is raised in its thread, at its next instruction.

A flow and a server are views: they cost what is read of them.
"""
from cpython.ref cimport PyObject
from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.string cimport memcpy
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

import ipaddress
import threading
from typing import NamedTuple

from nfqlb._core.atomic cimport RELAXED, add64, load32, store32
from nfqlb._core.connection cimport Table
from nfqlb._core.load cimport takes
from nfqlb._core.ranking cimport position
from nfqlb._core.types cimport SCTP, TCP, address_t, load_t, packet_t, service_t


cdef extern from "Python.h":
    int PyThreadState_SetAsyncExc(unsigned long thread, PyObject* exception)


cdef enum:
    PATIENCE = 8                 # failures in a row
    REST = 10                    # ticks that it is left alone after these
    GRACE = 10                   # budgets after which it is ended from outside
    LEAST_GRACE = 20_000_000     # nanoseconds that it has at least


class Overrun(BaseException):
    """Raised in a function that does not come back."""


def interrupt(thread: int) -> None:
    """Raise Overrun in the Python thread of this identifier, at its next instruction; nothing where it has ended."""
    PyThreadState_SetAsyncExc(thread, <PyObject*>Overrun)


def named(error: BaseException) -> str:
    """What was raised and its text, which is the user's code, too: without one where that raises. Raises Overrun."""
    try:
        return f"{type(error).__name__}: {error}"
    except Overrun:
        raise
    except BaseException:
        return type(error).__name__


cdef class Server:
    """A real server: `address`, `port` (0: that of the packet), `weight`, and its `active` and `inactive` connections
    now. Equal to itself after a change of the configuration, too.
    """

    @property
    def address(self) -> str:
        return text_of(&self.end)

    @property
    def active(self) -> int:
        return load32(<unsigned int*>&self.table.table.loads[self.slot].active, RELAXED)

    @property
    def inactive(self) -> int:
        return load32(<unsigned int*>&self.table.table.loads[self.slot].inactive, RELAXED)

    @property
    def latency(self) -> float:
        """Seconds that its replies took (latency.pyx), 0 where nothing is known: where the fallback is not ewma."""
        return load32(<unsigned int*>&self.table.table.loads[self.slot].latency, RELAXED) / 1e6

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Server) and self.slot == (<Server>other).slot

    def __hash__(self) -> int:
        return self.slot

    def __repr__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


cdef class Flow:
    """A connection that begins: `client`, `client_port`, `virtual`, `virtual_port`, `protocol` ("tcp", "udp"
    or "sctp"), and the `mark` of its first packet. Addresses are text in canonical form.
    """

    @property
    def client(self) -> str:
        return text_of(&self.source)

    @property
    def virtual(self) -> str:
        return text_of(&self.destination)

    def __repr__(self) -> str:
        return f"{self.protocol} {self.client} {self.client_port} -> {self.virtual} {self.virtual_port}"


class Advice(NamedTuple):
    """How often a function has `chosen`, `declined` (None), `failed` (raised), was `wrong` (no server of these, or one
    that takes nothing) or `late`, and was left alone (`rested`); nanoseconds that it `spent` in all, and the `longest`
    of these times; the last `error`.
    """

    name: str
    chosen: int
    declined: int
    failed: int
    wrong: int
    late: int
    rested: int
    spent: int
    longest: int
    error: str


cdef str text_of(const address_t* address):
    cdef unsigned char octets[16]
    memcpy(octets, address, 16)
    if address.high == 0 and octets[8] == 0 and octets[9] == 0 and octets[10] == 0xff and octets[11] == 0xff:
        return f"{octets[12]}.{octets[13]}.{octets[14]}.{octets[15]}"
    return str(ipaddress.IPv6Address((<char*>octets)[:16]))


cdef class Advisor:
    """A function that chooses for one service. Without one every choice counts as failed, for the reason that `error`
    gives.
    """

    def __cinit__(self, str name, function: object, uint64_t budget, str error = ""):
        self.advisor.object = <void*>self
        self.name = name
        self.function = function
        self.budget = budget
        self.servers = ()
        self.running = {}
        self.interrupted = set()
        self.error = error

    def use(self, function: object) -> None:
        """From now on that is asked; what was counted stays."""
        self.function = function
        self.error = ""
        self.row = 0
        store32(&self.advisor.rests, 0, RELAXED)

    def statistics(self) -> Advice:
        return Advice(self.name, self.chosen, self.declined, self.failed, self.wrong, self.late, self.advisor.rested,
                      self.spent, self.longest, self.error)

    def interrupt(self) -> int:
        """End calls that take far longer than their budget; returns how many. From any thread, again and again."""
        cdef uint64_t now = clock()
        cdef uint64_t limit = max(<uint64_t>LEAST_GRACE, GRACE * self.budget)
        late = [thread for thread, began in self.running.items() if now - began > limit]
        for thread in late:
            self.interrupted.add(thread)
            PyThreadState_SetAsyncExc(thread, <PyObject*>Overrun)
        return len(late)

    cdef void bind(self, Table table, const service_t* service):
        """From now on these are the servers."""
        cdef Server server
        cdef uint32_t at
        found = []
        self.limited = False
        for at in range(service.count, 0, -1):               # oldest first
            if service.servers[at - 1].weight == 0:
                continue
            server = Server.__new__(Server)
            server.table = table
            server.slot = service.servers[at - 1].slot
            server.end = service.servers[at - 1].address
            server.port = service.servers[at - 1].port
            server.weight = service.servers[at - 1].weight
            self.limited = self.limited or service.servers[at - 1].upper != 0
            found.append(server)
        self.servers = tuple(found)

    cdef int32_t ask(self, service_t* service, const packet_t* packet, const load_t* loads, uint32_t now):
        """The index of the server that it wants, or -1."""
        cdef Flow flow = Flow.__new__(Flow)
        cdef uint64_t start, taken
        cdef int32_t at
        flow.source, flow.destination = packet.source, packet.destination
        flow.client_port, flow.virtual_port, flow.mark = packet.sport, packet.dport, packet.mark
        flow.protocol = "tcp" if packet.protocol == TCP else "sctp" if packet.protocol == SCTP else "udp"
        servers = self.servers
        if self.limited:
            servers = tuple([one for one in servers if open_to(service, (<Server>one).slot, loads)])
        if not servers:
            return -1
        answer = error = None
        said = ""
        late = False
        thread = threading.get_ident()
        start = clock()
        self.running[thread] = start
        try:
            if self.function is None:
                raise RuntimeError(self.error)
            answer = self.function(flow, servers)
            if answer is not None and not isinstance(answer, Server):
                said = _short(answer)
        except Overrun:
            late = True
        except BaseException as raised:
            try:
                error = told(raised) if self.function is not None else self.error
            except Overrun:
                late = True
        self.running.pop(thread, None)
        if thread in self.interrupted:                       # also when it came too late to be raised
            self.interrupted.discard(thread)
            PyThreadState_SetAsyncExc(thread, NULL)
        taken = clock() - start
        self.spent += taken
        self.longest = max(self.longest, taken)
        if late or (error is None and taken > self.budget):
            self.late += 1
            return self.fail(f"took {taken // 1000} microseconds", now)
        if error is not None:
            self.failed += 1
            return self.fail(error, now)
        if answer is None:
            self.declined += 1
            self.row = 0
            return -1
        at = -1
        if isinstance(answer, Server):
            at = position(service, (<Server>answer).slot)
        if at < 0 or not takes(&service.servers[at], loads):
            self.wrong += 1
            return self.fail(f"answered {said or _short(answer)}, not one of the servers", now)
        self.chosen += 1
        self.row = 0
        return at

    cdef int32_t fail(self, str error, uint32_t now):
        self.error = error
        self.row += 1
        if self.row >= PATIENCE:
            self.row = 0
            store32(&self.advisor.rests, now + REST, RELAXED)
        return -1


cdef bint open_to(service_t* service, uint32_t slot, const load_t* loads) noexcept:
    cdef int32_t at = position(service, slot)
    return at >= 0 and takes(&service.servers[at], loads)


cdef str told(error: object):
    """What was raised, and the line."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = "" if trace is None else f", line {trace.tb_lineno}"
    return named(error) + where


def _short(value: object) -> str:
    try:
        text = repr(value)
    except Overrun:
        raise
    except BaseException:
        text = type(value).__name__
    return text if len(text) <= 60 else text[:57] + "..."


cdef int32_t advised(service_t* service, const packet_t* packet, const load_t* loads, uint32_t now) noexcept nogil:
    """What the service's advisor says; -1 where there is none, or it says nothing that counts. The caller holds no
    lock.
    """
    if service.advisor == NULL:
        return -1
    if now < load32(&service.advisor.rests, RELAXED):
        add64(&service.advisor.rested, 1, RELAXED)
        return -1
    with gil:
        return in_python(service, packet, loads, now)


cdef int32_t in_python(service_t* service, const packet_t* packet, const load_t* loads, uint32_t now) noexcept:
    try:
        return (<Advisor>service.advisor.object).ask(service, packet, loads, now)
    except BaseException:                                    # no error of Python's may choose a server
        return -1


cdef inline uint64_t clock() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <uint64_t>now.tv_sec * 1_000_000_000 + now.tv_nsec
