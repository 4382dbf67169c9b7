"""A real server that dies under 500 requests per second: `python -m bench.failure`.

Three web servers behind a director that checks them over HTTP. One is killed, as a crash would, while a client asks
every two milliseconds, each time on a connection of its own; when the director says it is down, it is started again.
The same with a look at handshakes beside the checks. Nothing is dropped from the figures. Exit code 1 where a server
was found down later than its checks allow, where a request failed outside of that time, where a server that is back
does not get its share, or where handshakes tell less than SOONER times as soon as checks.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from typing import NamedTuple

from bench import figures
from netns import load
from netns.topology import Net
from nfqlb.api.client import Client

ROUNDS = 7
INTERVAL, TIMEOUT, FALL, RISE = 0.5, 0.5, 2, 2
SLACK = 0.1
BAR = INTERVAL * FALL + TIMEOUT + SLACK
SOONER = 3.0
PACE = 0.002
PATIENCE = 10.0
WAYS = {"checks": "", "handshakes": "passive = 10, eject = 1, "}


class Round(NamedTuple):
    """Seconds from the kill: until the director said so, and until the first and the last request failed; how many did,
    and the share that the server had when it was back.
    """

    told: float
    first: float
    last: float
    failed: int
    share: float


def await_event(client: Client, since: float, words: str) -> float:
    """When an event after that time said this."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        for event in client.events():
            if event["time"] > since and words in event["message"]:
                return float(event["time"])
        time.sleep(0.02)
    raise SystemExit(f"nobody said {words!r} within {PATIENCE:g} s")


def once(net: Net, client: Client) -> Round:
    dying = net.servers[1]
    name = f"{dying.v4}:80 of "
    probe = load.Probe(net.client, net.url("/whoami"), PACE)
    probe.wait(200)
    time.sleep(random.random() * INTERVAL)
    began, clock = time.time(), time.monotonic()
    dying.kill()
    told = await_event(client, began, name) - began
    time.sleep(0.5)
    failed = [moment - clock for moment, ok in probe.end() if not ok]
    back = time.time()
    dying.start()
    await_event(client, back, f"{name}{net.vip()}:80/tcp is up again")
    answers = load.split(load.whoami(net.client, net.url("/whoami"), 60))
    share = answers.get(dying.name, 0) * len(net.servers) / 60
    return Round(told, min(failed, default=0.0), max(failed, default=0.0), len(failed), share)


def run(way: str) -> list[Round]:
    with Net(clients=1, servers=3) as net:
        file = net.director.folder / "nfqlb.toml"
        reals = ", ".join(f'{{ address = "{server.v4}" }}' for server in net.servers)
        times = f"interval = {INTERVAL}, timeout = {TIMEOUT}, fall = {FALL}, rise = {RISE}"
        file.write_text(
            f'[[service]]\nvip = "{net.service()}"\nscheduler = "rr"\nreal = [{reals}]\n'
            f'health = {{ type = "http", path = "/whoami", {WAYS[way]}{times} }}\n'
        )
        process = net.director.nfqlb("--config", str(file))
        assert process.running
        client = Client(str(net.director.run_folder / net.director.instance / "api.sock"))
        return [once(net, client) for _ in range(ROUNDS)]


def main() -> int:
    found = {way: run(way) for way in WAYS}
    print(f"{'':<12} {'told':>7} {'worst':>7} {'last failure':>13} {'failed':>7} {'share after':>12}")
    for way, rounds in found.items():
        told = [one.told for one in rounds]
        print(
            f"{way:<12} {statistics.median(told):>7.3f} {max(told):>7.3f} {max(one.last for one in rounds):>13.3f}"
            f" {statistics.median(one.failed for one in rounds):>7.0f} {min(one.share for one in rounds):>12.2f}"
        )
    rounds = [one for way in found.values() for one in way]
    medians = {way: statistics.median(one.told for one in some) for way, some in found.items()}
    sooner = medians["checks"] / medians["handshakes"]
    print(f"handshakes tell {sooner:.1f} times as soon; medians and extremes of {ROUNDS} rounds, seconds")
    sheet = figures.Sheet()
    sheet.bar(f"told within {BAR:g} s", all(one.told <= BAR for one in rounds))
    sheet.bar(f"failures only within {BAR:g} s", all(one.first > -SLACK and one.last <= BAR for one in rounds))
    sheet.bar("a third of the requests afterwards", all(abs(one.share - 1) <= 0.1 for one in rounds))
    sheet.bar(f"handshakes tell {SOONER:g} times as soon", sooner >= SOONER)
    return sheet.end()


if __name__ == "__main__":
    sys.exit(main())
