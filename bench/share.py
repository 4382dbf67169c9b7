"""Who has which CPU, and who comes first."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

SENDER, ENGINE = 0, 1
FIRST = -20  # nice


def alone() -> None:
    """Go on in a session of our own, whose place before other programs is not its shell's as well (sched(7), the
    autogroup feature); who started us waits, and hands on what would end us.
    """
    child = os.fork()
    if child:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: os.kill(child, signal.SIGINT))
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    os.setsid()
    hasten()


def take(cpu: int, pid: int | None = None) -> None:
    """Pin all threads of the process to the CPU, before all others there."""
    _pin({cpu}, pid)
    hasten(pid)


def roam(pid: int) -> None:
    """Let the process run on every CPU again."""
    _pin(set(range(os.cpu_count() or 1)), pid)


def hasten(pid: int | None = None) -> None:
    """Before all other programs. Who reads the counters needs it too, or waits for the CPUs that it measures."""
    process = Path(f"/proc/{pid or os.getpid()}")
    for thread in (process / "task").iterdir():
        os.setpriority(os.PRIO_PROCESS, int(thread.name), FIRST)
    with suppress(FileNotFoundError):  # where the kernel shares time by session first (sched_autogroup)
        (process / "autogroup").write_text(str(FIRST))


def spent(pids: list[int]) -> float:
    """Seconds of CPU that the processes have had, with what the kernel did in their name."""
    threads = [thread for pid in pids for thread in Path(f"/proc/{pid}/task").iterdir()]
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def busy() -> float:
    """Seconds that all CPUs together have not been idle: user, nice, system, irq, softirq (proc_stat(5))."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().partition("\n")[0].split()[1:]]
    return (sum(ticks[:3]) + sum(ticks[5:7])) / os.sysconf("SC_CLK_TCK")


def _pin(cpus: set[int], pid: int | None) -> None:
    for thread in Path(f"/proc/{pid or os.getpid()}/task").iterdir():
        os.sched_setaffinity(int(thread.name), cpus)
