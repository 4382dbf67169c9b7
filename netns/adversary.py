"""A machine between the sync of two directors, each of which takes it for the other: what passes, it harms.

    python -m netns.adversary PORT ONE OTHER SEED PART

Datagrams and connections to PORT go on to the other of the two addresses. It says ready, and then goes by each line on
standard input: "harm" begins to cut, delay, duplicate, reorder, change and play again, "pass" ends that, anything else
changes nothing; it answers each with how often it did what so far, as JSON. PART is what it changes of a message: "any"
byte, or only its "head", where no change makes another message that is right; nobody but a key could tell such a one.
"""

from __future__ import annotations

import heapq
import itertools
import json
import select
import socket
import sys
import threading
from collections import Counter, deque
from contextlib import suppress
from random import Random
from time import monotonic

LOSS, AGAIN, LATER, CHANGED, OLD = 0.15, 0.1, 0.3, 0.15, 0.1  # of all datagrams
LATER_SECONDS = 0.3
OLD_KEPT = 64  # datagrams that may be played again
HEAD = 8  # bytes of a message
PIECE = 512  # bytes of a connection between two decisions
CUT, TURNED = 0.1, 0.1  # of all pieces


class Adversary:
    def __init__(self, port: int, one: str, other: str, seed: int, part: str) -> None:
        self.port, self.other, self.part = port, {one: other, other: one}, part
        self.random, self.seeds, self.order = Random(seed), itertools.count(seed + 1), itertools.count()
        self.harms = False
        self.did: Counter[str] = Counter()
        self.old: deque[tuple[bytes, str]] = deque(maxlen=OLD_KEPT)
        self.later: list[tuple[float, int, bytes, str]] = []
        self.datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.datagrams.bind(("", port))
        self.listener = socket.create_server(("", port))
        threading.Thread(target=self.connections, daemon=True).start()

    def run(self) -> None:
        print("ready", flush=True)
        while True:
            due = max(0.0, self.later[0][0] - monotonic()) if self.later else None
            readable, _, _ = select.select([self.datagrams, sys.stdin], [], [], due)
            if sys.stdin in readable:
                if not (word := sys.stdin.readline()):
                    return
                self.harms = {"harm\n": True, "pass\n": False}.get(word, self.harms)
                print(json.dumps(self.did), flush=True)
            if self.datagrams in readable:
                data, (sender, _) = self.datagrams.recvfrom(65535)
                if sender in self.other:
                    self.datagram(data, self.other[sender])
            while self.later and self.later[0][0] <= monotonic():
                _, _, data, to = heapq.heappop(self.later)
                self.send(data, to)

    def datagram(self, data: bytes, to: str) -> None:
        if not self.harms:
            self.send(data, to)
            return
        self.old.append((data, to))
        if self.happens("lost", LOSS):
            return
        if self.happens("changed", CHANGED):
            data = self.change(data, self.random)
        if self.happens("late", LATER):
            self.postpone(data, to)
        else:
            self.send(data, to)
        if self.happens("again", AGAIN):
            self.postpone(data, to)
        if self.happens("old", OLD):
            self.postpone(*self.random.choice(self.old))

    def happens(self, what: str, share: float) -> bool:
        happens = self.random.random() < share
        if happens:
            self.did[what] += 1
        return happens

    def change(self, data: bytes, random: Random) -> bytes:
        """Another bit, or less of it."""
        if random.random() < 0.3:
            return data[: random.randrange(len(data))]
        changed = bytearray(data)
        changed[random.randrange(len(data) if self.part == "any" else min(HEAD, len(data)))] ^= 1 << random.randrange(8)
        return bytes(changed)

    def postpone(self, data: bytes, to: str) -> None:
        due = monotonic() + self.random.random() * LATER_SECONDS
        heapq.heappush(self.later, (due, next(self.order), data, to))

    def send(self, data: bytes, to: str) -> None:
        with suppress(OSError):
            self.datagrams.sendto(data, (to, self.port))

    def connections(self) -> None:
        while True:
            sock, (sender, _) = self.listener.accept()
            if sender not in self.other:
                sock.close()
                continue
            try:
                on = socket.create_connection((self.other[sender], self.port), 5)
            except OSError:
                sock.close()
                continue
            on.settimeout(None)
            for source, sink in ((sock, on), (on, sock)):
                threading.Thread(
                    target=self.pass_on, args=(source, sink, Random(next(self.seeds))), daemon=True
                ).start()

    def pass_on(self, source: socket.socket, sink: socket.socket, random: Random) -> None:
        """One way of a connection. TCP itself sees to it that nothing is lost, but not that it goes on."""
        with suppress(OSError):
            while data := source.recv(PIECE):
                if self.harms and random.random() < CUT:
                    self.did["cut"] += 1
                    break
                if self.harms and self.part == "any" and random.random() < TURNED:
                    self.did["turned"] += 1
                    data = self.change(data, random)
                sink.sendall(data)
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


if __name__ == "__main__":
    port, one, other, seed, part = sys.argv[1:]
    Adversary(int(port), one, other, int(seed), part).run()
