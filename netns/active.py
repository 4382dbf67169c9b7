"""The usual network with three directors that all take packets: each announces the VIP, the router spreads flows.

d 10.2.0.1, d2 10.2.0.2, d3 10.2.0.3; the VIP is 203.0.113.10, which stands on a director's loopback device while the
director is ready, and which its BIRD announces by BGP while it stands there (docs/active.md). The router learns a path
from each director, spreads flows over them by a hash of addresses and ports, and hears by BFD that one is dead.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from netns.director import Director
from netns.host import Host, until
from netns.pair import SECONDS, VRID, Pair
from netns.wiring import INSIDE, ROUTED

EXAMPLE = Path(__file__).resolve().parents[1] / "docs" / "bird.conf"
KEY = "5d41402abc4b2a76b9719d911017c592"  # of the hash, the same on all directors
OPTIONS = f'[options]\nhash_key = "{KEY}"\n'
SLOPPY = "[answers]\nsloppy_tcp = true\n"
ROUTER = """
router id 10.2.0.254;
protocol device {}
protocol bfd { interface "eth0" { interval 100 ms; multiplier 3; }; }
protocol kernel { ipv4 { export all; }; merge paths on; }
protocol kernel { ipv6 { export all; }; merge paths on; }
template bgp director { local as 65000; passive; bfd; error wait time 1, 2; }
"""
SESSION = """
protocol bgp director%(number)s_4 from director { neighbor %(v4)s as 65001; ipv4 { import all; export none; }; }
protocol bgp director%(number)s_6 from director { neighbor %(v6)s as 65001; ipv6 { import all; export none; }; }
"""


class Active(Pair):
    """Build it with `with Active(mode="dr") as net:`; `start_all` starts the directors."""

    DIRECTORS = 3

    def __init__(self, *, mode: str = "dr", servers: int = 3, web: bool = True, echo: bool = False) -> None:
        super().__init__(mode=mode, servers=servers, web=web, echo=echo)
        self.vips = ROUTED

    def start(self) -> None:
        super().start()
        self.router.sysctl("net.ipv4.fib_multipath_hash_policy=1", "net.ipv6.fib_multipath_hash_policy=1")
        ends = [INSIDE.at(number) for number in range(1, self.DIRECTORS + 1)]
        sessions = [SESSION % {"number": number, **end._asdict()} for number, end in enumerate(ends, 1)]
        self.start_bird(self.router, ROUTER + "".join(sessions))
        for director in self.directors:
            self.start_announcing(director)

    def start_all(self, text: Callable[[Director], str]) -> None:
        """All run what `text` says for them; returns when the router goes by all of them."""
        with ThreadPoolExecutor(self.DIRECTORS) as pool:
            list(pool.map(lambda director: self.start_one(director, text(director)), self.directors))
        self.announced(*self.directors)

    def start_announcing(self, director: Director) -> None:
        own, router = INSIDE.at(1 + self.directors.index(director)), INSIDE.at(254)
        text = EXAMPLE.read_text()
        for placeholder, address in (
            ("192.0.2.1", own.v4),
            ("192.0.2.254", router.v4),
            ("2001:db8::1", own.v6),
            ("2001:db8::fe", router.v6),
        ):
            text = text.replace(f" {placeholder};", f" {address};").replace(f" {placeholder} ", f" {address} ")
        self.start_bird(director, text)

    @staticmethod
    def start_bird(host: Host, text: str) -> None:
        file, control = host.folder / "bird.conf", host.folder / "bird.ctl"
        file.write_text(text)
        control.unlink(missing_ok=True)
        host.spawn(["bird", "-f", "-c", str(file), "-s", str(control)], log="bird.log")
        until(control.exists, SECONDS, lambda: (host.folder / "bird.log").read_text())

    def ha(self, director: Director) -> dict[str, str]:
        """Each is alone in its group, and so master while it is ready."""
        return {"vrid": str(VRID + self.directors.index(director)), "device": '"lo"'}

    def paths(self, family: int = 4) -> set[str]:
        """The directors that the router sends the VIP's packets to."""
        words = self.router.run(["ip", f"-{family}", "route", "show", self.vip(family)]).stdout.split()
        ways = {after for word, after in itertools.pairwise(words) if word == "via"}
        return {director.name for director in self.directors if director.address(family) in ways}

    def announced(self, *directors: Director, families: Sequence[int] = (4, 6)) -> None:
        """Wait until the router has a path to these, and to no other."""
        wanted = {director.name for director in directors}

        def found() -> list[set[str]]:
            return [self.paths(family) for family in families]

        until(
            lambda: all(one == wanted for one in found()),
            SECONDS,
            lambda: f"the router goes by {found()}, not {wanted}",
        )

    def revive(self, director: Director) -> None:
        super().revive(director)
        self.start_announcing(director)
