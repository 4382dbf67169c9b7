"""How one holder takes over from another: words and descriptors through a unix socket, and systemd's store of them.

Strategy: the holder that runs has a socket beside its lock, the door. Another one (`nfqlb run --takeover`) knocks, and
is given a description and a copy of every descriptor; from then on both hold all of it, so nothing is lost whichever
of them dies. The heir's director prepares itself; then it asks the other one to let go, takes the packets that wait in
the kernel meanwhile, and says that it is done. A connection that ends before that word tells the old holder to go on.

    holder    -> heir    the description as JSON, then descriptors, AT_ONCE a message
    heir      -> holder  LET_GO      its director is prepared
    holder    -> heir    GONE        no packet is answered any more, nobody writes to the table
    heir      -> holder  DONE        packets are taken; the old holder ends and leaves everything

Only root reaches the door, and only a process of the same user is let in. Standard library only: the holder uses this.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nfqlb.errors import TakenError

LET_GO, GONE, DONE = b"let go", b"gone", b"done"
LETS_GO = signal.SIGUSR2  # tells a director to answer what it has, and to end
PREPARED, READY = b"p", b"1"  # what a director writes into its holder's pipe
AT_ONCE = 64  # descriptors in a message; the kernel takes 253 (SCM_MAX_FD)
MESSAGE_MAX = 1 << 20
KEPT = ("workers", "engine", "connections", "on_failure")  # settings of queues and table, which stay as they are
SYSTEMD_SECONDS = 5.0  # that it may take to listen
FIRST_STORED = 3  # SD_LISTEN_FDS_START


class Estate(NamedTuple):
    """What a holder leaves: descriptors, and what is to be known about them."""

    lock: int
    table: int
    queues: tuple[int, ...]
    about: Mapping[str, Any]


def open_door(path: Path) -> socket.socket:
    """Listen there; OSError where that cannot be."""
    path.unlink(missing_ok=True)
    door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        door.bind(str(path))
        path.chmod(0o600)
        door.listen()
    except OSError:
        door.close()
        raise
    return door


def admit(door: socket.socket) -> socket.socket | None:
    """Whoever knocks, if it may come in."""
    try:
        guest, _ = door.accept()
    except OSError:
        return None
    peer = struct.unpack("3i", guest.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    if peer[1] == os.geteuid():
        return guest
    guest.close()
    return None


def give(guest: socket.socket, estate: Estate) -> None:
    """Tell what there is, and pass it; OSError where the other end has gone."""
    fds = [estate.lock, estate.table, *estate.queues]
    guest.send(json.dumps({**estate.about, "descriptors": len(fds)}).encode())
    for at in range(0, len(fds), AT_ONCE):
        socket.send_fds(guest, [b"descriptors"], fds[at : at + AT_ONCE])


def knock(path: Path, seconds: float) -> tuple[socket.socket, Estate] | None:
    """What the holder behind that door leaves, and the connection to it; None where there is no door, or nobody behind
    it. TakenError where it does not answer.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(seconds)
    try:
        connection.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    fds: list[int] = []
    try:
        about = json.loads(connection.recv(MESSAGE_MAX) or b"null")
        while about and len(fds) < about["descriptors"]:
            word, more, _, _ = socket.recv_fds(connection, 64, AT_ONCE)
            if not word:
                break
            fds += more
    except (OSError, ValueError):
        about = None
    if not about or len(fds) != about["descriptors"]:
        for fd in fds:
            os.close(fd)
        connection.close()
        raise TakenError(f"the director that runs hands nothing over ({path} gives no answer)")
    return connection, Estate(fds[0], fds[1], tuple(fds[2:]), about)


def hindrance(wanted: Mapping[str, Any], running: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first setting that a takeover cannot change: its name, what is wanted and what there is."""
    for name in KEPT:
        if name in wanted and name in running and wanted[name] != running[name]:
            return name, wanted[name], running[name]
    if wanted.get("queue") is not None and wanted["queue"] != running.get("queue"):
        return "queue", wanted["queue"], running.get("queue")
    return None


def store(path: str, fds: Mapping[str, int]) -> None:
    """Have systemd keep descriptors, each under its name (sd_notify(3)); OSError where it cannot be reached.

    FDPOLL=0: systemd would throw a queue's socket away that overflowed once, since that looks like an error to poll.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.settimeout(SYSTEMD_SECONDS)
        out.connect("\0" + path[1:] if path[0] == "@" else path)
        for name, fd in fds.items():
            socket.send_fds(out, [f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0".encode()], [fd])


def drop(path: str, names: Sequence[str]) -> None:
    """Have systemd keep these no longer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.settimeout(SYSTEMD_SECONDS)
        out.connect("\0" + path[1:] if path[0] == "@" else path)
        for name in names:
            out.send(f"FDSTOREREMOVE=1\nFDNAME={name}".encode())


def stored(environ: Mapping[str, str], pid: int) -> dict[str, int]:
    """What systemd kept for this process: descriptors by name, not passed on to what it starts."""
    if environ.get("LISTEN_PID") != str(pid):
        return {}
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    found = {}
    for fd, name in enumerate(names[: int(environ.get("LISTEN_FDS", "0"))], FIRST_STORED):
        with contextlib.suppress(OSError):
            os.set_inheritable(fd, False)
            found[name] = fd
    return found
