"""TCP streams as fast as they go: `python -m bench.stream sink PORT FILE`, and
`python -m bench.stream source PORT RATE ADDRESS ...`.

The sink swallows what comes and keeps the number of bytes that it has read in FILE, so that who measures reads it
without asking. The source opens one connection to each address and sends until it is ended, RATE bytes per second in
all, 0 for as fast as it goes. Buffers are 256 KiB, the kernel is left to choose all else.
"""

from __future__ import annotations

import mmap
import selectors
import socket
import sys
import threading
from pathlib import Path

BUFFER = 256 << 10
COUNT = 8  # bytes of the count, in the machine's order
SO_MAX_PACING_RATE = 47  # include/uapi/asm-generic/socket.h


def counter(file: Path) -> memoryview:
    """One number that processes share; memoryview reads and writes it whole, struct a byte at a time."""
    with file.open("r+b") as opened:
        return memoryview(mmap.mmap(opened.fileno(), COUNT)).cast("Q")


def count(file: Path) -> int:
    return int(counter(file)[0])


def sink(port: str, file: str) -> None:
    """One thread for all connections: the count is written by nobody else."""
    Path(file).write_bytes(bytes(COUNT))
    kept = counter(Path(file))
    total, buffer, selector = 0, bytearray(BUFFER), selectors.DefaultSelector()
    server = socket.create_server(("", int(port)), backlog=64)
    selector.register(server, selectors.EVENT_READ)
    print("ready", flush=True)
    while True:
        for key, _ in selector.select():
            if key.fileobj is server:
                selector.register(server.accept()[0], selectors.EVENT_READ)
                continue
            connection = key.fileobj
            assert isinstance(connection, socket.socket)
            try:
                got = connection.recv_into(buffer)
            except OSError:
                got = 0
            if not got:
                selector.unregister(connection)
                connection.close()
            total += got
            kept[0] = total


def source(port: str, rate: str, *addresses: str) -> None:
    def send(connection: socket.socket) -> None:
        while True:
            connection.sendall(data)

    data = memoryview(bytes(BUFFER))
    connections = [socket.create_connection((address, int(port)), 5) for address in addresses]
    for connection in connections if int(rate) else ():
        connection.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, int(rate) // len(connections))
    print("going", flush=True)
    for connection in connections:
        connection.settimeout(None)
        threading.Thread(target=send, args=(connection,)).start()


if __name__ == "__main__":
    {"sink": sink, "source": source}[sys.argv[1]](*sys.argv[2:])
