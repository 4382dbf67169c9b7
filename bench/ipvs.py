"""The offload beside the kernel's own IPVS, counted in instructions: `python -m bench.ipvs [ROUNDS]`.

Strategy. A kernel that has ip_vs boots in an emulated machine (tests/vm/ipvs-vm) whose time is the number of
instructions that it has executed, so the same work takes the same time whatever else the host does. Inside, small UDP
packets go through each way in turn, one CPU does everything, and what counts are ratios inside a round. Rounds are
fixed in advance; round 0 warms up and is not counted, no other is dropped. Before each sample a short one makes flows
established. IPVS has a director of its own for each method, set up by ipvsadm. A full run writes docs/bench/ipvs.md.
Exit code 1 when a median is below its bar.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from bench import figures
from bench.road import COUNTED, Road, Way
from bench.ways import OFFLOAD, nfqlb, own, plain
from netns.director import NFQLB

ROUNDS, SECONDS, LEAD = 15, 0.5, 0.1
BAR = 1.05
MACHINE = {"IPVS_VM_BACKEND": "qemu", "IPVS_VM_ICOUNT": "2", "IPVS_VM_MEM": "3072", "IPVS_VM_TIMEOUT": "3000"}
MODULES = ["ip_vs", "ip_vs_rr", "nft_compat", "xt_NFQUEUE", "nfnetlink_queue", "sch_ingress", "cls_bpf"]
PAGE = figures.ROOT / "docs" / "bench" / "ipvs.md"
INTRODUCTION = """# The offload beside the kernel's IPVS

Written by `python -m bench.ipvs`: small UDP packets in an emulated machine with Debian's kernel, whose time counts
instructions, so that these figures do not depend on the host. Rates are those of that machine, which is slow: look at
the ratios. `plain` is forwarding without a load balancer.

```
{}
```
"""
Rates = dict[str, float]  # packets a second of the machine's time, by way


def ipvs(mode: str) -> Callable[[Way], list[int]]:
    """IPVS as an operator has it by default: the VIP is the director's, nothing is tuned."""

    def start(way: Way) -> list[int]:
        service, method = f"{way.vip}:{COUNTED}", {"nat": "-m", "dr": "-g"}[mode]
        way.director.run(["ipvsadm", "-A", "-u", service, "-s", "rr"])
        for real in way.reals:
            way.director.run(["ipvsadm", "-a", "-u", service, "-r", f"{real}:{COUNTED}", method])
        if mode == "dr":
            for server in way.servers:
                server.run([NFQLB, "real-server", "setup", "--mode", "dr", "--vip", way.vip], env=own(server))
        return []

    return start


WAYS: dict[str, Callable[[Way], list[int]]] = {
    "plain": plain,
    "ipvs-nat": ipvs("nat"),
    "ipvs-dr": ipvs("dr"),
    "nfqlb-nat": nfqlb("fast", 1, "nat", *OFFLOAD),
    "nfqlb-dr": nfqlb("fast", 1, "dr", *OFFLOAD, local=True),
}
RATIOS = [("nfqlb-nat", "ipvs-nat", BAR), ("nfqlb-dr", "ipvs-dr", BAR), ("ipvs-nat", "plain", None)]


def rate(road: Road, way: Way) -> float:
    """What arrives of a blast that ends by itself."""
    counts = []
    for seconds in (LEAD, SECONDS):
        before = sum(reading.packets for reading in road.arrived())
        words = [way.device, way.mac, way.client, ",".join(way.targets), str(COUNTED), str(seconds)]
        blast = road.start(road.client, "bench.blast", *words)
        blast.wait(600)
        counts.append(sum(reading.packets for reading in road.arrived()) - before)
    return counts[-1] / float(blast.text.split()[-1])


def inside(rounds: int, to: Path) -> None:
    """In the machine: measure, and write all rounds."""
    subprocess.run(["modprobe", "-a", *MODULES], check=True)
    taken: list[Rates] = []
    with Road(*WAYS) as road:
        for name, start in WAYS.items():
            road.ways[name].pids = start(road.ways[name])
        names = list(WAYS)
        for number in range(rounds + 1):
            turn = number % len(names)
            rates = {name: rate(road, road.ways[name]) for name in names[turn:] + names[:turn]}
            print(f"round {number} of {rounds}: {rates}", file=sys.stderr, flush=True)
            if number:
                taken.append(rates)
        for name, way in road.ways.items():
            if name.startswith("nfqlb"):
                packets = way.director.show("daemon")["offload"]["packets"]
                if packets < taken[0][name] * SECONDS:
                    raise AssertionError(f"{name}: {packets} packets were offloaded")
    to.write_text(json.dumps({"about": figures.circumstances(), "rounds": taken}))


def main(*words: str) -> int:
    if words[:1] == ("inside",):
        inside(int(words[1]), Path(words[2]))
        return 0
    rounds = max(2, int(words[0])) if words else ROUNDS
    figures.RESULTS.mkdir(parents=True, exist_ok=True)
    machine = [str(figures.ROOT / "tests" / "vm" / "ipvs-vm"), "run"]
    command = f"{sys.executable} -m bench.ipvs inside {rounds} /out/ipvs.json"
    env = {**os.environ, **MACHINE, "IPVS_VM_OUT": str(figures.RESULTS), "IPVS_VM_SHARE": str(figures.ROOT)}
    subprocess.run([*machine, command], env=env, check=True, cwd=figures.ROOT)
    path = figures.RESULTS / "ipvs.json"
    kept = json.loads(path.read_text())
    heading = figures.heading(kept["about"], f"{rounds} rounds of {SECONDS} s of the machine's time")
    lines = [figures.line(f"{name}, packets/s", [one[name] for one in kept["rounds"]], ",.0f") for name in WAYS]
    for name, peer, bar in RATIOS:
        ratios = [one[name] / one[peer] for one in kept["rounds"]]
        lines.append(figures.line(f"{name} / {peer}", ratios, ".3f", bar))
    text = "\n".join([heading, *(line for line, _ in lines)])
    print(f"{text}\nall rounds: {path.relative_to(figures.ROOT)}")
    if not words:
        PAGE.write_text(INTRODUCTION.format(text))
    return 0 if all(met for _, met in lines) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
