"""The usual network with a second director: whoever of the two is master has the VIP and the real servers' gateway.

d 10.2.0.1, d2 10.2.0.2; the VIP is 10.2.0.100, the gateway 10.2.0.3.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from netns.director import Director
from netns.host import Host, until
from netns.topology import Net
from netns.wiring import INSIDE, Wiring

INTERVAL = 0.1  # seconds between adverts
SECONDS = 30.0  # that a change of roles may take on a machine that does much else
VRID = 51
GATEWAY = INSIDE.at(3)


class Pair(Net):
    """Build it with `with Pair(servers=2) as net:`; `start_pair` starts both directors."""

    DIRECTORS = 2

    def __init__(self, *, mode: str = "nat", servers: int = 2, web: bool = True, echo: bool = False) -> None:
        super().__init__(mode=mode, servers=servers, vip="free", web=web, echo=echo)
        others = [Director(self.claim.tag, f"d{n}", self.claim.folder) for n in range(2, self.DIRECTORS + 1)]
        for director in others:
            director.instance += director.name  # one table of that name on this machine
        self.directors = [self.director, *others]
        self.second = others[0]
        self.hosts = [*self.hosts, *others]

    def start_pair(self, services: str, **more: str) -> None:
        """Both run these services; the first one is to be master. `more` are further lines of [ha]."""
        for number, director in enumerate(self.directors, 1):
            self.start_one(director, services, priority=str(150 - 50 * (number - 1)), **more)
        self.role(self.director, "master")
        self.role(self.second, "backup")

    def start_one(self, director: Director, services: str, **more: str) -> None:
        """Start one of them; returns when it is ready."""
        lines = {"interface": '"eth0"', "interval": str(INTERVAL), **self.ha(director), **more}
        file = director.folder / "director.toml"
        file.write_text("[ha]\n" + "".join(f"{key} = {value}\n" for key, value in lines.items()) + services)
        director.nfqlb("--config", str(file))

    def ha(self, director: Director) -> dict[str, str]:
        """What [ha] says on this one."""
        other = next(one for one in self.directors if one is not director)
        gateways = f'["{GATEWAY.v4}", "{GATEWAY.v6}"]'
        return {"vrid": str(VRID), "peers": f'["{other.v4}"]', "gateways": gateways}

    def services(self, port: int = 80, scheduler: str = "rr", more: str = "", protocol: str = "tcp") -> str:
        """A service of each family, of all real servers."""
        text = ""
        for family in (4, 6):
            text += f'[[service]]\nvip = "{self.service(port, family)}/{protocol}"\nmode = "{self.mode}"\n'
            text += f'scheduler = "{scheduler}"\n{more}'
            ends = [one for one in self.reals(port=port, family=family) if one != "--real"]
            text += "".join(f'[[service.real]]\naddress = "{end}"\n' for end in ends)
        return text

    def cut(self, host: Host) -> None:
        """Pull its cable."""
        self.switch.ip(f"link set p-{host.name} down")

    def mend(self, host: Host) -> None:
        self.switch.ip(f"link set p-{host.name} up")

    def destroy(self, director: Director) -> None:
        """Its machine dies: the cable is dead, and so is every process, without a word to anybody."""
        self.cut(director)
        pids = director.run(["ip", "netns", "pids", director.namespace]).stdout.split()
        director.run(["sh", "-c", f"kill -KILL {' '.join(pids)} 2>/dev/null || true"])
        director.close()

    def revive(self, director: Director) -> None:
        """It is switched on again: no process, none of the addresses that it had as a master, no table."""
        director.ip(*(f"address flush dev {device}" for device in ("eth0", "lo")))
        own = INSIDE.at(1 + self.directors.index(director))
        director.ip(
            "link set eth0 down",
            "link set eth0 up",  # with its link-local address
            "address add 127.0.0.1/8 dev lo",
            f"address add {own.v4}/24 dev eth0",
            f"address add {own.v6}/64 dev eth0 nodad",
            f"route replace default via {self.outside.at(254).v4}",
            f"route replace default via {self.outside.at(254).v6}",
        )
        for memory in Path("/dev/shm").glob(f"nfqlb-{director.instance}"):
            memory.unlink()
        shutil.rmtree(director.run_folder / director.instance)
        self.mend(director)

    def role(self, director: Director, role: str, seconds: float = SECONDS) -> None:
        """Wait until a director has this role."""

        def ha() -> Mapping[str, Any]:
            found: Mapping[str, Any] = director.show("daemon")["ha"]
            return found

        until(lambda: ha()["role"] == role, seconds, lambda: f"{director.name} is {ha()}, not {role}")

    def has_vip(self, director: Director) -> bool:
        """Whether it has the VIPs of both families, or neither of them."""
        found = director.addresses()
        there = {f" {self.vip(family)}/" in found for family in (4, 6)}
        return there == {True}

    def _wire(self) -> Wiring:
        wiring = super()._wire()
        for number, director in enumerate(self.directors[1:], 2):
            wiring.plug(director, self.switch)
            wiring.address(director, "eth0", INSIDE.at(number))
            wiring.default(director, self.outside.at(254))
        if self.mode == "nat":
            for server in self.servers:
                wiring.routes[server] = []
                wiring.default(server, GATEWAY)
        return wiring
