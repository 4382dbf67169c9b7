"""Connection sync: the threads that tell peers of connections, and enter what they tell.

Strategy. The core knows what is to be told (announce.pyx) and what to make of what comes (mirror.pyx); here are the
sockets. Datagrams go to a multicast group, as the kernel's, or to each of a list of peers. One thread sends and
receives; every PAUSE it has what was announced written, and a part of the table walked through. Each second a greeting
says how many messages this run has sent, and the sum of their CRCs, so that who hears it knows when what came is not
what was sent: lost, changed, or twice; a kernel drops it, for its length is wrong (ip_vs_process_message). Who joins,
and who does not have what was sent, has a peer send its whole table over TCP: what is known here from packets of our
own stays, all else is brought up to it. A second thread answers such requests, a third makes them. A lock says whose
turn with the mirror it is.

Where it cannot begin (no such interface, the port is another's) it says so and tries again; until then the director
is not ready to take over.

With a key, everything is sealed and what is not is dropped: peers that are kernels are then left out.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import msgspec

from nfqlb._core.mirror import Mirror
from nfqlb.errors import ConfigError
from nfqlb.ha import require_device, resync
from nfqlb.ha.seal import OVERHEAD, ReplayError, Seal, read_key
from nfqlb.kernel import netlink
from nfqlb.model import Sync

PAUSE = 0.02  # seconds between two looks (ip_vs_sync.c: HZ / 50)
GREETING_SECONDS = 1.0
SILENCE = 5.0  # seconds without a greeting after which a peer is away
ALONE = 3.0  # seconds after the start in which a peer may greet
AGAIN = 5.0  # seconds between two whole tables of one peer
OPEN_SECONDS = 0.5  # between two tries to begin
WALK_SECONDS = 1.0  # for the whole table, but no more places at a time than
WALK_PLACES = 40000
BURST = 256  # datagrams that are received before something is sent
BUFFER = 8 << 20
PEERS_MAX = 64
MARK = b"\xffN\xff\xff"  # of a greeting
SUM = 1 << 32
IP_UDP = {4: 28, 6: 48}  # bytes of headers
MTU = 1500
LEAST = 400  # bytes of a message
IP_MULTICAST_ALL, IP_MTU_DISCOVER, IP_PMTUDISC_DONT = 49, 10, 0

log = logging.getLogger("nfqlb")


class Greeting(msgspec.Struct, frozen=True):
    """`run` is one start of a director's sync; `messages` were sent in it before this greeting, and `sum` is that of
    their CRCs, modulo SUM.
    """

    run: str
    messages: int
    sum: int
    lag: float
    whole: bool


@dataclass
class Peer:
    """A director whose greetings come here."""

    address: str
    run: str = ""
    seen: float = 0.0
    messages: int = 0  # of its run that came, and the sum of their CRCs; at the first greeting, what it had sent
    sum: int = 0
    doubted: bool = False  # at its last greeting that was not what it had sent
    received: int = 0
    lost: int = 0  # or changed on the way
    lag: float = 0.0
    whole: bool = False
    asked: float = -AGAIN
    wanted: bool = False  # its table


class Syncing:
    """Sync as `settings` say, from `start` until `stop`. `clock` is CLOCK_BOOTTIME in ns; peers that are named are
    spoken to from the address `own`.
    """

    def __init__(self, mirror: Mirror, capacity: int, settings: Sync, clock: Callable[[], int], own: str = "") -> None:
        self._mirror, self._settings, self._clock = mirror, settings, clock
        self._run_id, self._key = os.urandom(8), b""
        self._seal: Seal | None = None
        self._own = own
        self._places = min(WALK_PLACES, int(capacity * PAUSE / WALK_SECONDS) + 1)
        self._lock, self._stop, self._rebind = threading.Lock(), threading.Event(), False
        self._peers: dict[str, Peer] = {}
        self._asked = threading.Event()
        self._began = time.monotonic()
        self._messages = self._received = self._foreign = self._refused = self._failed = self._tables = 0
        self._replayed = self._sum = 0
        self._lag = 0.0
        self._state, self._failure = "shut", ""
        self._peer_names = {str(ip_address(peer)) for peer in settings.peers}
        group = ip_address(settings.peers[0] if settings.peers else settings.group)
        self._family = socket.AF_INET if group.version == 4 else socket.AF_INET6
        self._out: socket.socket | None = None
        self._in: socket.socket | None = None
        self._listener: socket.socket | None = None
        self.room = self._room()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin, now or as soon as it is possible."""
        if self._opens():
            self._run(self._datagrams, self._answers, self._asks)
        else:
            log.error("%s; it is tried again, and this director is not ready to take over until then", self._failure)
            self._run(self._retry)

    def stop(self) -> None:
        self._stop.set()
        self._asked.set()
        for thread in self._threads:
            thread.join(5)
        self._close()

    def look(self) -> None:
        """The configuration changed: what had no real server may have one now."""
        self._rebind = True

    @property
    def obstacle(self) -> str:
        """Why it could not begin yet, or ended."""
        return self._failure if self._state in ("shut", "failed") else ""

    @property
    def ready(self) -> bool:
        """Whether it knows all connections that its peers know: one gave its whole table, or none is there."""
        return self._state in ("whole", "alone")

    def status(self) -> dict[str, object]:
        """For `nfqlb sync status` and metrics."""
        now, settings = time.monotonic(), self._settings
        return {
            "role": settings.role,
            "state": self._state,
            "ready": self.ready,
            "interface": settings.interface,
            "group": "" if settings.peers else settings.group,
            "port": settings.port,
            "ttl": settings.ttl,
            "id": settings.id,
            "version": settings.version,
            "maxlen": self.room,
            "sealed": bool(settings.key_file),
            "lag": round(self._lag, 3),
            "messages_sent": self._messages,
            "messages_received": self._received,
            "messages_failed": self._failed,
            "messages_foreign": self._foreign,
            "messages_unsealed": self._refused,
            "messages_replayed": self._replayed,
            "tables": self._tables,
            "failure": self._failure,
            "records": self._mirror.statistics,
            "peers": [
                {
                    "address": peer.address,
                    "away": now - peer.seen > SILENCE,
                    "received": peer.received,
                    "lost": peer.lost,
                    "lag": peer.lag,
                    "whole": peer.whole,
                }
                for peer in list(self._peers.values())
            ],
        }

    # --- sockets ------------------------------------------------------------------------------------------------------

    def _run(self, *works: Callable[[], None]) -> None:
        found = [threading.Thread(target=self._guard, args=(work,), name="sync", daemon=True) for work in works]
        self._threads += found
        for thread in found:
            thread.start()

    def _retry(self) -> None:
        while not self._stop.wait(OPEN_SECONDS):
            if self._opens():
                log.info("sync begins")
                self._run(self._answers, self._asks)
                self._datagrams()
                return

    def _opens(self) -> bool:
        """Whether the sockets could be opened."""
        try:
            self._open()
        except (OSError, ConfigError) as error:
            self._close()
            over = f" over {self._settings.interface}" if self._settings.interface else ""
            why = error.strerror or error if isinstance(error, OSError) else error
            self._failure = f"no sync{over} at port {self._settings.port}: {why}"
            return False
        self._began, self._failure, self.room = time.monotonic(), "", self._room()
        self._state = "whole" if self._settings.role == "master" else "waiting"
        return True

    def _open(self) -> None:
        settings = self._settings
        if settings.key_file:
            self._key = read_key(settings.key_file)
            self._seal = Seal(self._key, self._run_id)
        index = socket.if_nametoindex(settings.interface) if settings.interface else 0
        self._out = out = socket.socket(self._family, socket.SOCK_DGRAM)
        self._in = into = socket.socket(self._family, socket.SOCK_DGRAM)
        into.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        netlink.widen(into, socket.SO_RCVBUF, BUFFER)
        everywhere = "0.0.0.0" if self._family == socket.AF_INET else "::"
        if settings.interface:
            for one in (out, into):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, settings.interface.encode() + b"\0")
        if settings.peers:
            self._to = [(peer, settings.port) for peer in settings.peers]
            into.bind((self._own or everywhere, settings.port))
            out.bind((self._own or everywhere, 0))
        else:
            self._to = [(settings.group, settings.port)]
            self._join(out, into, index)
        if self._family == socket.AF_INET:
            out.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT)
        into.setblocking(False)
        out.setblocking(False)
        listener = self._listener = socket.socket(self._family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if settings.interface:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, settings.interface.encode() + b"\0")
        listener.bind((self._own or everywhere, settings.port))
        listener.listen(8)
        listener.settimeout(0.2)

    def _join(self, out: socket.socket, into: socket.socket, index: int) -> None:
        settings, packed = self._settings, ip_address(self._settings.group).packed
        into.bind((settings.group, settings.port))
        if self._family == socket.AF_INET:
            at = struct.pack("@4s4si", packed, bytes(4), index)
            out.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, struct.pack("@4s4si", bytes(4), bytes(4), index))
            out.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, settings.ttl)
            out.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 0)
            into.setsockopt(socket.IPPROTO_IP, IP_MULTICAST_ALL, 0)
            into.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, at)
            return
        out.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        out.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, settings.ttl)
        out.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
        into.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, packed + struct.pack("@I", index))

    def _close(self) -> None:
        for one in (self._out, self._in, self._listener):
            if one is not None:
                one.close()
        self._out = self._in = self._listener = None

    def _room(self) -> int:
        """Bytes of a message that fit a packet."""
        mtu = MTU
        with contextlib.suppress(OSError, ValueError):
            mtu = int(Path(f"/sys/class/net/{self._settings.interface}/mtu").read_text())
        most = mtu - IP_UDP[4 if self._family == socket.AF_INET else 6]
        room = min(self._settings.maxlen or min(most, MTU - 28), 65507)
        return max(LEAST, room - (OVERHEAD if self._seal else 0))

    # --- datagrams ----------------------------------------------------------------------------------------------------

    def _guard(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:
            if not self._stop.is_set():
                log.exception("sync ends")
                self._stop.set()  # peers hear no greeting any more, and wait for no table
                self._asked.set()
                self._state, self._failure = "failed", "an error in nfqlb, which the log has"

    def _datagrams(self) -> None:
        speaks, hears = self._settings.role != "backup", self._settings.role != "master"
        assert self._in
        poll = select.poll()  # select() takes no descriptor beyond 1023
        poll.register(self._in, select.POLLIN)
        last = greeted = time.monotonic()
        while not self._stop.is_set():
            if poll.poll(PAUSE * 1000):
                for _ in range(BURST):
                    try:
                        data, sender = self._in.recvfrom(65535)
                    except BlockingIOError:
                        break
                    except OSError as error:
                        self._fail(error)
                        break
                    self._hear(data, sender[0], enters=hears)
            now = time.monotonic()
            if self._rebind:
                self._rebind = False
                with self._lock:
                    self._mirror.bind(self._clock())
            if speaks and now - last >= PAUSE:
                self._lag = max(now - last, self._lag * 0.98)
                last = now
                for message in self._write():
                    self._send(message)
            if now - greeted >= GREETING_SECONDS:
                greeted = now
                self._greet()
                self._judge(now)

    def _write(self) -> list[bytes]:
        settings, now = self._settings, self._clock()
        with self._lock:
            found = self._mirror.collect(now, settings.version, settings.id, self.room)
            found += self._mirror.walk(now, settings.version, settings.id, self.room, self._places)
        self._messages += len(found)
        self._sum = (self._sum + sum(map(zlib.crc32, found))) % SUM
        return found

    def _greet(self) -> None:
        one = Greeting(self._run_id.hex(), self._messages, self._sum, round(self._lag, 3), self.ready)
        self._send(MARK + msgspec.json.encode(one))

    def _send(self, message: bytes) -> None:
        assert self._out
        data = self._seal.seal(message, time.time_ns()) if self._seal else message
        for to in self._to:
            try:
                self._out.sendto(data, to)
            except OSError as error:
                self._fail(error)

    def _fail(self, error: OSError) -> None:
        self._failed += 1
        reason = error.strerror or str(error)
        if reason != self._failure:
            self._failure = reason
            log.warning("sync: %s", reason)

    def _hear(self, data: bytes, sender: str, *, enters: bool) -> None:
        """One datagram; what makes no sense is counted, and dropped."""
        if self._peer_names and sender not in self._peer_names:
            self._foreign += 1
            return
        if self._seal:
            try:
                _, data = self._seal.open(data, time.time_ns())
            except ReplayError:
                self._replayed += 1
                return
            except ValueError as error:
                self._refused += 1
                if self._refused == 1:
                    log.warning("sync: a message of %s is refused: %s", sender, error)
                return
        if data.startswith(MARK):
            self._greeted(data[len(MARK) :], sender)
            return
        self._received += 1
        if peer := self._peers.get(sender):
            peer.received += 1
            peer.messages, peer.sum = peer.messages + 1, (peer.sum + zlib.crc32(data)) % SUM
        if not enters:
            return
        with self._lock, contextlib.suppress(ValueError):  # counted there
            self._mirror.apply(data, self._clock(), self._settings.id)

    # --- peers --------------------------------------------------------------------------------------------------------

    def _greeted(self, data: bytes, sender: str) -> None:
        try:
            said = msgspec.json.decode(data, type=Greeting)
        except msgspec.MsgspecError:
            self._foreign += 1
            return
        now = time.monotonic()
        peer = self._peers.get(sender)
        if peer is None:
            if len(self._peers) >= PEERS_MAX:
                return
            peer = self._peers[sender] = Peer(sender)
        if peer.run != said.run:
            log.info("sync: %s is there", sender)
            peer.run, peer.messages, peer.sum, peer.doubted = said.run, said.messages, said.sum, False
            peer.wanted = True
        elif now - peer.seen > SILENCE:
            peer.wanted = True
        as_sent = (peer.messages, peer.sum) == (said.messages, said.sum)
        if not as_sent and peer.doubted:  # what overtook one greeting is here at the next
            peer.lost += max(said.messages - peer.messages, 1)
            peer.messages, peer.sum = said.messages, said.sum
            peer.wanted = as_sent = True
        peer.doubted = not as_sent
        peer.seen, peer.lag, peer.whole = now, said.lag, said.whole
        if peer.wanted:
            self._asked.set()

    def _judge(self, now: float) -> None:
        """Whether anybody is there whose table could be had."""
        if (
            self._state == "waiting"
            and now - self._began > ALONE
            and not any(peer.wanted and now - peer.seen < SILENCE for peer in self._peers.values())
        ):
            self._state = "alone"

    def _asks(self) -> None:
        """Have the tables of peers that joined, returned, or of which something was lost."""
        while not self._stop.is_set():
            self._asked.wait(1.0)
            self._asked.clear()
            if self._settings.role == "master":
                continue
            for peer in list(self._peers.values()):
                if peer.wanted and time.monotonic() - peer.asked >= AGAIN and not self._stop.is_set():
                    self._ask(peer)

    def _ask(self, peer: Peer) -> None:
        peer.asked = time.monotonic()
        before = self._state
        if before != "whole":
            self._state = "resyncing"
        try:
            with socket.socket(self._family, socket.SOCK_STREAM) as sock:
                sock.settimeout(resync.SECONDS)
                if self._own:
                    sock.bind((self._own, 0))
                if self._settings.interface:
                    sock.setsockopt(
                        socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self._settings.interface.encode() + b"\0"
                    )
                sock.connect((peer.address, self._settings.port))
                resync.take(sock, self._key, self._enter)
        except (OSError, ValueError) as error:
            self._failure = f"no table of {peer.address}: {error}"
            log.warning("sync: %s", self._failure)
            if self._state == "resyncing":
                self._state = "waiting"
            return
        peer.wanted = False
        self._tables += 1
        self._state = "whole"
        log.info("sync: has the whole table of %s", peer.address)

    def _enter(self, message: bytes) -> None:
        with self._lock:
            self._mirror.apply(message, self._clock(), self._settings.id, whole=True)

    def _answers(self) -> None:
        """Give the table to who asks for it; one at a time."""
        assert self._listener
        while not self._stop.is_set():
            try:
                sock, sender = self._listener.accept()
            except TimeoutError:
                continue
            except OSError as error:  # no descriptor is left, or the peer is gone again
                self._fail(error)
                self._stop.wait(OPEN_SECONDS)
                continue
            with sock:
                if self._peer_names and sender[0] not in self._peer_names:
                    self._foreign += 1
                    continue
                try:
                    resync.give(sock, self._key, self._dump)
                except (OSError, ValueError) as error:
                    log.warning("sync: %s did not get the table: %s", sender[0], error)

    def _dump(self, place: int) -> tuple[list[bytes], int]:
        with self._lock:
            return self._mirror.dump(self._clock(), self._settings.id, resync.ROOM, place, resync.PLACES)


def require(settings: Sync) -> None:
    """ConfigError for what cannot be done on this machine."""
    if settings.interface:
        require_device("interface", settings.interface)
    if settings.key_file:
        read_key(settings.key_file)
