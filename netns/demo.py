"""`make demo`: the main job on real traffic, in a minute, on this machine and without touching its network.

A client, a router, a director with nfqlb and three nginx servers whose pages come from one shared storage directory.
Every line that starts with `ok` is an expectation that held; the exit code is 1 when one did not. MODE=nat chooses the
way of forwarding.
"""

from __future__ import annotations

import os
import signal
import sys
import time

from netns import CommandError, Net, kernelstate, load

MODES = ("nat",)
WEIGHTS = (3, 2, 1)
ROUND = sum(WEIGHTS)
MIB = 1 << 20
DOWNLOAD = 64 * MIB

PICTURE = """
  client {client} --- router --- switch --- director, VIP {vip}
                                   |
                     s1 {s1}  s2 {s2}  s3 {s3}: nginx, pages from one shared storage
"""


class Demo:
    def __init__(self, net: Net, mode: str) -> None:
        self.net, self.mode, self.failures = net, mode, 0
        self.vip = net.service()

    def expect(self, held: bool, text: str) -> None:
        self.failures += not held
        print(f"{'  ok  ' if held else 'FAILED'}  {text}", flush=True)

    def operator(self, *words: str) -> None:
        """What an operator types on the director, shown as they would type it."""
        print(f"   $    nfqlb {' '.join(words)}", flush=True)
        self.net.director.cli(*words)

    def run(self) -> int:
        found = self.net.director.state()
        self.start()
        self.requests_are_spread()
        self.a_server_dies_and_comes_back()
        self.content_changes_on_storage()
        self.download()
        self.figures()
        self.stop(found)
        return self.failures

    def start(self) -> None:
        args = ["--mode", self.mode, "--vip", self.vip, *self.net.reals(*WEIGHTS), "--scheduler", "wrr"]
        print(f"   $    nfqlb run {' '.join(args)}", flush=True)
        started = time.monotonic()
        self.net.director.nfqlb(*args)
        self.expect(True, f"ready after {time.monotonic() - started:.2f} s")

    def requests_are_spread(self) -> None:
        answers = load.whoami(self.net.client, self.net.url(), 10 * ROUND)
        expected = {server.name: 10 * weight for server, weight in zip(self.net.servers, WEIGHTS, strict=True)}
        split = load.split(answers)
        self.expect(split == expected, f"{len(answers)} requests by weight 3:2:1: {listed(split)}")
        seen = {client for _, client in answers}
        self.expect(
            seen == {self.net.client.v4}, f"the servers saw the client's own address: {', '.join(sorted(seen))}"
        )

    def a_server_dies_and_comes_back(self) -> None:
        server = self.net.servers[1]
        real = f"{server.v4}:80"
        server.kill()
        print("   !    nginx on s2 is killed", flush=True)
        self.operator("real", "edit", self.vip, real, "--weight", "0")
        split = load.split(load.whoami(self.net.client, self.net.url(), 40))
        self.expect(
            sum(split.values()) == 40 and "s2" not in split, f"40 of 40 requests answered without it: {listed(split)}"
        )
        server.start()
        print("   !    nginx on s2 runs again", flush=True)
        self.operator("real", "edit", self.vip, real, "--weight", str(WEIGHTS[1]))
        split = load.split(load.whoami(self.net.client, self.net.url(), 10 * ROUND))
        self.expect(split.get("s2", 0) > 0, f"it takes its share again: {listed(split)}")

    def content_changes_on_storage(self) -> None:
        for text in ("first edition", "second edition"):
            self.net.storage.write("page.html", text)
            answers = load.pages(self.net.client, self.net.url("/page.html"), 2 * ROUND)
            served = {server for server, _ in answers}
            ok = {page for _, page in answers} == {text} and len(served) == len(self.net.servers)
            self.expect(ok, f"{text!r} written to storage, served by {', '.join(sorted(served))}")

    def download(self) -> None:
        stored = self.net.storage.fill("image.bin", DOWNLOAD)
        started = time.monotonic()
        got = load.download(self.net.client, self.net.url("/image.bin"))
        rate = DOWNLOAD / MIB / (time.monotonic() - started)
        self.expect(
            got == stored, f"{DOWNLOAD // MIB} MiB downloaded at {rate:.0f} MiB/s, SHA-256 equal: {got[:16]}..."
        )

    def figures(self) -> None:
        for keepalive, kind in ((True, "keep-alive"), (False, "closing")):
            wrk = load.Wrk(self.net.client, self.net.url(), connections=100, seconds=3, keepalive=keepalive).figures()
            text = f"100 {kind} connections for 3 s: {wrk.per_second:,.0f} requests/s, {wrk.errors} errors"
            self.expect(wrk.errors == 0 and wrk.requests > 0, text)
        for service in self.net.director.show("stats")["services"]:
            for real in service["reals"]:
                print(f"        {real['endpoint']}: {real['conns']:,} connections, {real['inpkts']:,} packets in")

    def stop(self, found: dict[str, str]) -> None:
        code = self.net.director.stop()
        left = kernelstate.difference(found, self.net.director.state())
        self.expect(
            code == 0 and not left, f"stopped; rules, sets, sysctls and addresses are as found{left and ': ' + left}"
        )


def listed(split: dict[str, int]) -> str:
    return ", ".join(f"{server} {count}" for server, count in sorted(split.items()))


def main() -> int:
    mode = os.environ.get("MODE", "nat")
    if mode not in MODES:
        print(f"MODE {mode!r} is not known; choose from {', '.join(MODES)}", file=sys.stderr)
        return 2
    if os.geteuid() != 0:
        print("the demo makes network namespaces and needs root: sudo make demo", file=sys.stderr)
        return 3
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    started = time.monotonic()
    try:
        with Net(servers=len(WEIGHTS)) as net:
            s1, s2, s3 = (server.v4 for server in net.servers)
            print(PICTURE.format(client=net.client.v4, vip=net.vip(), s1=s1, s2=s2, s3=s3))
            failures = Demo(net, mode).run()
    except CommandError as error:
        print(f"FAILED  {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    took = f"{time.monotonic() - started:.0f} s, network removed"
    print(f"\n{failures} expectations failed; {took}" if failures else f"\nall as expected; {took}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
