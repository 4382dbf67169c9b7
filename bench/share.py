"""A CPU to itself: who sends has CPU 0, who rewrites has CPU 1, and other programs hardly disturb them."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

SENDER, ENGINE = 0, 1
FIRST = -20  # nice


def take(cpu: int, pid: int | None = None) -> None:
    """Pin all threads of the process to the CPU, before all others there."""
    for thread in Path(f"/proc/{pid or os.getpid()}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {cpu})
    hasten(pid)


def hasten(pid: int | None = None) -> None:
    """Before all other programs. Who reads the counters needs it too, or waits for the CPUs that it measures."""
    process = Path(f"/proc/{pid or os.getpid()}")
    for thread in (process / "task").iterdir():
        os.setpriority(os.PRIO_PROCESS, int(thread.name), FIRST)
    with suppress(FileNotFoundError):  # where the kernel shares time by session first (sched_autogroup)
        (process / "autogroup").write_text(str(FIRST))
