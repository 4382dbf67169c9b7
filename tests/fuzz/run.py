"""Fuzzes all targets, one after the other: `python -m tests.fuzz.run PACKETS`, by `make fuzz`.

Each target gets its share of the packets. What was new is kept in build/fuzz/corpus for the next run; what found
something lies in tests/fuzz/crashers and is a test from now on. Ends with 1 when there was a finding.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

BUILD = Path("build/fuzz")
CORPUS, CRASHERS = Path("tests/fuzz/corpus"), Path("tests/fuzz/crashers")
# target: share of the packets in percent, longest input in bytes
SHARES = {"packet": (30, 1500), "sequence": (50, 2048), "table": (20, 480)}
OPTIONS = ["-detect_leaks=0", "-len_control=0", "-timeout=60", "-rss_limit_mb=4096"]
SANITIZERS = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
FINDING = re.compile(r"^Traceback|ERROR: |runtime error: ", re.MULTILINE)
SHOWN = 4000  # characters of a finding


class Run(NamedTuple):
    packets: int
    executions: int
    edges: str  # reached, of all; every check of the sanitizers has one that only a finding takes
    seconds: float
    findings: int


def fuzz(target: str, packets: int, longest: int) -> Run:
    """One target until so many packets went through, or until its first finding, which is printed."""
    kept, crashers, log = BUILD / "corpus" / target, CRASHERS / target, BUILD / f"{target}.log"
    kept.mkdir(parents=True, exist_ok=True)
    crashers.mkdir(parents=True, exist_ok=True)
    command = [BUILD / "python", "-m", "tests.fuzz.engine", target, str(packets), kept, CORPUS / target]
    command += [f"-max_len={longest}", f"-artifact_prefix={crashers}/", *OPTIONS]
    started = time.monotonic()
    with log.open("w") as errors:
        ended = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, check=False, env=os.environ | SANITIZERS
        )
    seconds = time.monotonic() - started
    told = log.read_text(errors="replace")
    covered = re.findall(r" cov: (\d+) ", told)
    known = re.search(r"modules +\((\d+) inline", told)
    counted = re.findall(r"^(\d+) packets, (\d+) executions$", told + ended.stdout, re.MULTILINE)
    done, executions = map(int, counted[-1]) if counted else (0, 0)
    failed = ended.returncode != 0 or done < packets
    if failed:
        start = FINDING.search(told)
        print(f"{target}: a finding; the input lies in {crashers}, the whole log in {log}")
        print(told[start.start() :][:SHOWN] if start else told[-SHOWN:])
    if not any(crashers.iterdir()):
        crashers.rmdir()
    edges = f"{covered[-1] if covered else 0} of {known[1] if known else '?'}"
    return Run(done, executions, edges, seconds, int(failed))


def commit() -> str:
    """The commit, and whether the tree has more than it."""
    return subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True).stdout


def main(packets: int) -> int:
    print(f"commit {commit().strip()}, Clang's AddressSanitizer and UndefinedBehaviorSanitizer", flush=True)
    print(f"{'target':10}{'packets':>12}{'executions':>12}{'edges':>16}{'seconds':>9}{'packets/s':>11}{'findings':>10}")
    runs = []
    for target, (percent, longest) in SHARES.items():
        run = fuzz(target, -(-packets * percent // 100), longest)
        runs.append(run)
        rate = run.packets / run.seconds
        print(f"{target:10}{run.packets:12,}{run.executions:12,}{run.edges:>16}", end="")
        print(f"{run.seconds:9.0f}{rate:11,.0f}{run.findings:10}", flush=True)
    findings = sum(run.findings for run in runs)
    print(f"{sum(run.packets for run in runs):,} packets, {findings} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
