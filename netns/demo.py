"""`make demo`: the main job on real traffic, in a minute, on this machine and without touching its network.

A client, a router, a director with nfqlb, and three servers that do web, mail, files and names from one storage (see
netns.tiers); the director runs docs/three-tiers.toml. Every line that starts with `ok` is an expectation that held; the
exit code is 1 when one did not. MODE=nat, dr or tun chooses the way of forwarding; HA=1 shows two directors, and how
failures are healed (netns.mishaps).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable

from netns import dns, ftp, kernelstate, load, mail
from netns.desk import Desk
from netns.host import CommandError
from netns.mishaps import Mishaps, TiersPair
from netns.tiers import CONFIGURATION, Tiers
from nfqlb.model import MODES

WEIGHTS = (3, 2, 1)
ROUND = sum(WEIGHTS)
MIB = 1 << 20
DOWNLOAD, FETCHED = 64 * MIB, 8 * MIB

PICTURE = """
  client {client} --- router --- switch --- director, VIP {vip}
                                   |
         s1 {s1}  s2 {s2}  s3 {s3}: nginx, Postfix, Dovecot, vsftpd, BIND
                                   |
                     storage {storage}: what they serve, by sshfs
"""


class Demo(Desk):
    def __init__(self, net: Tiers) -> None:
        super().__init__(net)
        self.vip = net.service()

    def run(self) -> int:
        found = self.net.director.state()
        self.start()
        self.requests_are_spread()
        self.a_server_dies_and_comes_back()
        self.content_changes_on_storage()
        self.download()
        self.mail_is_sent_and_read()
        self.files_are_fetched()
        self.names_are_asked_for()
        self.figures()
        self.stop(found)
        return self.failures

    def start(self) -> None:
        file = self.net.director.folder / CONFIGURATION.name
        file.write_text(self.net.configuration(4))
        print(f"   $    nfqlb run --config {file.name}    # mode {self.net.mode}", flush=True)
        started = time.monotonic()
        self.net.director.nfqlb("--config", str(file))
        self.expect(True, f"ready after {time.monotonic() - started:.2f} s")

    def spread(self, servers: Iterable[str], text: str) -> None:
        """Expect one connection by weight to each server, and a whole round of them."""
        split = dict(Counter(servers))
        expected = {server.name: weight for server, weight in zip(self.net.servers, WEIGHTS, strict=True)}
        self.expect(split == expected, f"{text}: {listed(split)}")

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

    def mail_is_sent_and_read(self) -> None:
        subjects = [f"message {number}" for number in range(1, ROUND + 1)]
        self.spread(mail.send(self.net.client, self.net.vip(), subjects), f"{ROUND} messages sent by SMTP")
        self.net.delivered(subjects)
        boxes = mail.read(self.net.client, self.net.vip(), ROUND)
        readers = [server for server, box in boxes if box == subjects]
        self.spread(readers, f"all {ROUND} read by IMAP, {ROUND} times")

    def files_are_fetched(self) -> None:
        stored = self.net.storage.fill("../ftp/image.bin", FETCHED)
        got = ftp.fetch(self.net.client, self.net.vip(), "image.bin", ROUND)
        servers = [server for server, digest in got if digest == stored]
        self.spread(servers, f"{FETCHED // MIB} MiB by passive FTP, {ROUND} times, SHA-256 equal")

    def names_are_asked_for(self) -> None:
        for protocol, tcp in (("UDP, in fragments", False), ("TCP", True)):
            answers = dns.ask(self.net.client, self.net.vip(), "wide", ROUND, tcp=tcp)
            whole = [answer.server for answer in answers if answer.text == "w" * dns.WIDE]
            self.spread(whole, f"{ROUND} DNS answers of {answers[0].size:,} bytes over {protocol}")

    def figures(self) -> None:
        for keepalive, kind in ((True, "keep-alive"), (False, "closing")):
            wrk = load.Wrk(self.net.client, self.net.url(), connections=100, seconds=3, keepalive=keepalive).figures()
            text = f"100 {kind} connections for 3 s: {wrk.per_second:,.0f} requests/s, {wrk.errors} errors"
            self.expect(wrk.errors == 0 and wrk.requests > 0, text)
        web = next(one for one in self.net.director.show("stats")["services"] if one["key"] == f"{self.vip}/tcp")
        for real in web["reals"]:
            print(f"        {real['endpoint']}: {real['conns']:,} connections, {real['inpkts']:,} packets in")

    def stop(self, found: dict[str, str]) -> None:
        code = self.net.director.stop()
        left = kernelstate.difference(found, self.net.director.state())
        self.expect(
            code == 0 and not left, f"stopped; rules, sets, sysctls and addresses are as found{left and ': ' + left}"
        )


def listed(split: dict[str, int]) -> str:
    return ", ".join(f"{server} {count}" for server, count in sorted(split.items()))


def show(net: Tiers) -> None:
    addresses = {host.name: host.v4 for host in net.servers}
    print(PICTURE.format(client=net.client.v4, vip=net.vip(), storage=net.storage.v4, **addresses))


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
        if os.environ.get("HA"):
            with TiersPair(mode=mode, servers=len(WEIGHTS)) as pair:
                show(pair)
                failures = Mishaps(pair).run()
        else:
            with Tiers(mode=mode, servers=len(WEIGHTS)) as net:
                show(net)
                failures = Demo(net).run()
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
