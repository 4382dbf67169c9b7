"""Numbers to lines and files: spread, where and when they were taken, the bar they have to reach."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "build" / "bench"


def circumstances() -> dict[str, str | int]:
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(git, check=False, capture_output=True, text=True).stdout.strip()
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "?")
    return {
        "commit": commit or "unknown",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cpu": cpu.partition(":")[2].strip(),
        "cpus": os.cpu_count() or 0,
        "time": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    }


def heading(about: dict[str, str | int], rounds: str) -> str:
    return f"commit {about['commit']}, kernel {about['kernel']}, {about['cpus']} CPUs ({about['cpu']}), {rounds}"


def keep(name: str, content: object) -> Path:
    """Write all that was measured to build/bench/NAME.json."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def line(
    name: str, values: Sequence[float], form: str, bar: float | None = None, *, most: float | None = None
) -> tuple[str, bool]:
    """Median and spread of the values as text, and whether the median is at least `bar` or at most `most`."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    spread = ", ".join(
        f"{word} {value:{form}}"
        for word, value in zip(("min", "q1", "q3", "max"), (min(values), low, high, max(values)), strict=True)
    )
    good = (bar is None or middle >= bar) and (most is None or middle <= most)
    limit = f"at least {bar:{form}}" if bar is not None else f"at most {most:{form}}" if most is not None else ""
    verdict = f"   {limit}: {'yes' if good else 'NO'}" if limit else ""
    return f"{name:<32} {middle:>9{form}}   ({spread}){verdict}", good


class Sheet:
    """What a run prints, line by line, and whether it reached every bar."""

    def __init__(self) -> None:
        self.good = True

    def figure(
        self,
        name: str,
        values: Sequence[float],
        form: str,
        bar: float | None = None,
        *,
        most: float | None = None,
        each: bool = False,
    ) -> str:
        """One line, as `line` has it; with `each` no value at all may be more than `most`."""
        text, met = line(name, values, form, bar, most=most)
        self.good = self.good and met and not (each and most is not None and max(values) > most)
        print(text, flush=True)
        return text

    def bar(self, what: str, held: bool) -> None:
        """Something that has to be so in every round."""
        self.good = self.good and held
        print(f"{'held' if held else 'MISSED'}: {what}", flush=True)

    def end(self, kept: Path | None = None) -> int:
        """Say where all rounds are kept; the exit code, 1 where a bar was missed."""
        if kept:
            print(f"all rounds: {kept.relative_to(ROOT)}")
        return 0 if self.good else 1
