"""How long a command takes from the shell: `python -m bench.startup`.

Wall time of `nfqlb --help`, and of what scripts ask a running director: `nfqlb show services --json`, `ipvsadm -Ln`.
Bytecode is compiled first, as an installation has it. Round 0 warms up and is not counted; no other is dropped. Exit
code 1 when a median is above its bar.
"""

from __future__ import annotations

import compileall
import os
import subprocess
import sys
import time

from bench import figures
from netns.director import NFQLB
from netns.topology import Net

ROUNDS = 11
BAR = 0.2
COMMANDS = {
    "nfqlb --help": ["--help"],
    "nfqlb show services --json": ["show", "services", "--json"],
    "nfqlb ipvsadm -Ln": ["ipvsadm", "-Ln"],
}


def seconds(argv: list[str], env: dict[str, str]) -> float:
    began = time.perf_counter()
    subprocess.run([NFQLB, *argv], env=env, check=True, capture_output=True)
    return time.perf_counter() - began


def measure() -> dict[str, list[float]]:
    """Each command once a round, the warm-up first."""
    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with Net(servers=2, web=False) as net:
        net.director.nfqlb("--vip", net.service(), *net.reals())
        socket = str(net.director.run_folder / net.director.instance / "api.sock")
        env = {**os.environ, "NFQLB_API": socket}
        for _ in range(ROUNDS + 1):
            for name, argv in COMMANDS.items():
                taken[name].append(seconds(argv, env))
        net.director.stop()
    return taken


def main() -> int:
    compileall.compile_dir(figures.ROOT / "src", quiet=1)
    taken = measure()
    about = figures.circumstances()
    figures.keep("startup", {"about": about, "seconds": taken})
    print(figures.heading(about, f"{ROUNDS} rounds, median (spread)"))
    results = [figures.line(f"{name}, s", values[1:], ".3f", most=BAR) for name, values in taken.items()]
    print(*(text for text, _ in results), sep="\n")
    return 0 if all(good for _, good in results) else 1


if __name__ == "__main__":
    sys.exit(main())
