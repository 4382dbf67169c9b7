"""What curl and wrk cannot ask. Runs in a client's namespace, as `python -m netns.ask VERB ...`; prints JSON lines.

hold ADDRESS PORT COUNT      opens connections to netns.echo and prints a list of [server, client address]; then, for
                             every line on standard input, sends it on all of them and prints how many repeated it
probe URL INTERVAL PATIENCE  one request on a new connection every INTERVAL seconds, until ended: [monotonic time, ok];
                             no step of one may take more than PATIENCE seconds
udp ADDRESS PORT SIZE SOURCE,...  a datagram from each of these ports: [server, client address] or null
again ADDRESS PORT COUNT SOURCE  that many requests of a page from one source port, each on a new connection that the
                             server closes: [server, client address, seconds that it took to connect]
half URL                     half a download, then "half"; after a line on standard input the rest, and its SHA-256
gso ADDRESS PORT COUNT SIZE  that many datagrams from one port, handed to the kernel as one UDP_SEGMENT super-packet
                             for every 16: [how many came back unharmed, how many came back]
"""

from __future__ import annotations

import errno
import hashlib
import json
import socket
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import urlsplit

UDP_SEGMENT = 103  # include/uapi/linux/udp.h
BATCH = 16


def say(value: object) -> None:
    print(json.dumps(value), flush=True)


def hold(address: str, port: str, count: str) -> None:
    connections = [socket.create_connection((address, int(port)), 10) for _ in range(int(count))]
    files = [connection.makefile("rwb") for connection in connections]

    def all_say(line: bytes) -> list[list[str]]:
        heard = []
        for file in files:
            with suppress(OSError):
                file.write(line)
                file.flush()
        for file in files:
            with suppress(OSError):
                server, client, *rest = file.readline().split(b" ", 2) or [b""] * 3
                if rest == [line]:
                    heard.append([server.decode(), client.decode()])
        return heard

    say(all_say(b"hello\n"))
    for line in sys.stdin.buffer:
        say(len(all_say(line)))


def probe(url: str, interval: str, patience: str) -> None:
    parts = urlsplit(url)
    request = f"GET {parts.path} HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\r\n".encode()
    end = parts.hostname or "", parts.port or 80
    while True:
        started = time.monotonic()
        answer = b""
        with suppress(OSError), socket.create_connection(end, float(patience)) as connection:
            connection.sendall(request)
            while data := connection.recv(65536):
                answer += data
        say([started, answer.startswith(b"HTTP/1.1 200 ")])
        time.sleep(max(0.0, started + float(interval) - time.monotonic()))


def again(address: str, port: str, count: str, source: str) -> None:
    for _ in range(int(count)):
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            connection.bind(("", int(source)))
            connection.settimeout(10)
            while True:
                started = time.monotonic()
                try:
                    connection.connect((address, int(port)))
                    break
                except OSError as error:
                    if error.errno != errno.EADDRNOTAVAIL:  # the last ACK for the one before has not come yet
                        raise
            took = time.monotonic() - started
            connection.sendall(b"GET /whoami HTTP/1.1\r\nHost: again\r\nConnection: close\r\n\r\n")
            answer = b""
            while data := connection.recv(65536):
                answer += data
        server, client = answer.split(b"\r\n\r\n")[1].split()
        say([server.decode(), client.decode(), took])


def half(url: str) -> None:
    parts = urlsplit(url)
    address = parts.hostname or ""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)  # so that the rest stays with the server
        connection.connect((address, parts.port or 80))
        connection.sendall(f"GET {parts.path} HTTP/1.1\r\nHost: half\r\nConnection: close\r\n\r\n".encode())
        file = connection.makefile("rb")
        length = 0
        while (line := file.readline()) not in (b"\r\n", b""):
            if line.lower().startswith(b"content-length:"):
                length = int(line.split()[1])
        body = file.read(length // 2)
        say("half")
        sys.stdin.readline()
        say(hashlib.sha256(body + file.read()).hexdigest())


def udp(address: str, port: str, size: str, sources: str) -> None:
    for number, source in enumerate(sources.split(",")):
        data = content(number, int(size))
        with datagrams(address, port, int(source)) as connection:
            connection.settimeout(2)
            connection.send(data)
            try:
                server, client, body = connection.recv(65535).split(b" ", 2)
                say([server.decode(), client.decode()] if body == data else None)
            except OSError:
                say(None)


def gso(address: str, port: str, count: str, size: str) -> None:
    waiting = [content(number, int(size)) for number in range(int(count))]
    came = unharmed = 0
    with datagrams(address, port) as connection:
        connection.settimeout(2)
        segment = [(socket.SOL_UDP, UDP_SEGMENT, struct.pack("=H", int(size)))]
        while waiting:
            batch, waiting = waiting[:BATCH], waiting[BATCH:]
            connection.sendmsg([b"".join(batch)], segment)
            with suppress(TimeoutError):
                for _ in batch[:]:
                    body = connection.recv(65535).split(b" ", 2)[-1]
                    came += 1
                    if body in batch:
                        batch.remove(body)
                        unharmed += 1
    say([unharmed, came])


def content(number: int, size: int) -> bytes:
    return hashlib.shake_256(str(number).encode()).digest(size)


def datagrams(address: str, port: str, source: int = 0) -> socket.socket:
    connection = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    connection.bind(("", source))
    connection.connect((address, int(port)))
    return connection


VERBS: dict[str, Callable[..., None]] = {verb.__name__: verb for verb in (hold, probe, udp, gso, again, half)}

if __name__ == "__main__":
    VERBS[sys.argv[1]](*sys.argv[2:])
