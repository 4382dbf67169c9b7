"""Who owns which namespaces, so that nothing outlives its test.

Strategy: before anything is made, an instance leaves a claim: /run/nfqlb-netns/TAG with the pid and start time of its
owner and the folder it works in. Everything made afterwards bears the tag (namespaces TAG-host, shared memory
nfqlb-TAG), so that a later start finds the claims of dead owners and removes what is theirs, and only that: the
processes that are ended are those inside the namespaces of the tag, which nobody else enters.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

CLAIMS = Path("/run/nfqlb-netns")
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Claim:
    """A tag that is ours alone, and the folder that goes with it."""

    tag: str
    folder: Path


def take() -> Claim:
    """Remove what dead owners left, then take a new tag (a director's name as well, so at most 15 characters)."""
    sweep()
    claim = Claim(f"t{os.getpid()}-{next(_numbers)}", Path(tempfile.mkdtemp(prefix="nfqlb-netns-")))
    owner = {"pid": os.getpid(), "start": _start_time(os.getpid()), "folder": str(claim.folder)}
    with locked():
        (CLAIMS / claim.tag).write_text(json.dumps(owner))
    return claim


def release(claim: Claim) -> None:
    """End the processes of the tag, remove its namespaces, files and shared memory, and give the tag back."""
    names = [name for name in namespaces() if name.startswith(claim.tag + "-")]
    _end_processes(names)
    for name in names:
        subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)
    for memory in Path("/dev/shm").glob(f"nfqlb-{claim.tag}*"):
        memory.unlink(missing_ok=True)
    shutil.rmtree(claim.folder, ignore_errors=True)
    (CLAIMS / claim.tag).unlink(missing_ok=True)


def sweep() -> list[str]:
    """Release every claim whose owner is gone; the tags."""
    swept = []
    with locked():
        for path in sorted(CLAIMS.iterdir()):
            if path.name == ".lock":
                continue
            try:
                owner = json.loads(path.read_text())
            except FileNotFoundError:
                continue  # its owner has just given it back
            if _start_time(owner["pid"]) != owner["start"]:
                release(Claim(path.name, Path(owner["folder"])))
                swept.append(path.name)
    return swept


def namespaces() -> list[str]:
    listing = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True).stdout
    return [line.split()[0] for line in listing.splitlines() if line]


@contextmanager
def locked() -> Iterator[None]:
    """Nobody takes or sweeps a claim meanwhile, in whatever process."""
    CLAIMS.mkdir(exist_ok=True)
    with (CLAIMS / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _start_time(pid: int) -> str | None:
    """Clock ticks since boot at which the process started: with the pid it names a process for good."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


def _end_processes(names: list[str], patience: float = 5.0) -> None:
    end = time.monotonic() + patience
    while (pids := [pid for name in names for pid in _pids(name)]) and time.monotonic() < end:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _pids(namespace: str) -> list[int]:
    listing = subprocess.run(["ip", "netns", "pids", namespace], check=False, capture_output=True, text=True).stdout
    return [int(pid) for pid in listing.split()]
