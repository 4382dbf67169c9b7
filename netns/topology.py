"""A whole network in namespaces: client(s) -- router -- switch { director, real servers, storage }.

    c1 10.1.1.2 -- 10.1.1.1 .                       . d  10.2.0.1
                             r 10.2.0.254 -- switch - s1 10.2.0.11, s2 10.2.0.12, ...
    c2 10.1.2.2 -- 10.1.2.1 '                       ' st 10.2.0.250

IPv6 is the same picture: 10.1.N.x is 2001:db8:1:N::x and 10.2.0.x is 2001:db8:2::x, in hexadecimal. With arms=2
the director stands between router and switch, with its uplink up0 as 10.3.0.1, the router's being 10.3.0.254.
Real servers have the director as their gateway. The director's kernel settings are left as a new namespace has them:
what nfqlb needs there, nfqlb has to set.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import ClassVar

from netns.director import NFQLB, Director
from netns.host import Host
from netns.machines import Machines
from netns.web import Storage, WebServer
from netns.wiring import INSIDE, ROUTED, UPLINK, Wiring, endpoint, lan


class Net(Machines):
    """Build it with `with Net(servers=2) as net:`; nothing of it is left at the end.

    vip: "local" puts it on the director; "routed" is an address that the router routes to the director, who does not
    have it; "free" is an address of the director's network that nobody has, for --vip-dev.
    web, echo: which programs the real servers run (nginx on port 80, netns.echo on port 7).
    mode: with "dr" and "tun" the real servers are set up for that, and answer past the director; setup: what else
    `nfqlb real-server setup` is told then.
    """

    # what a subclass may have better ones of
    STORAGE: ClassVar[type[Storage]] = Storage
    SERVER: ClassVar[type[WebServer]] = WebServer
    servers: Sequence[WebServer]

    def __init__(
        self,
        *,
        clients: int = 1,
        servers: int = 3,
        arms: int = 1,
        vip: str = "local",
        web: bool = True,
        echo: bool = False,
        mode: str = "nat",
        setup: Sequence[str] = (),
    ) -> None:
        self.arms, self.web, self.echo, self.mode, self.setup = arms, web, echo, mode, setup
        self.outside = UPLINK if arms == 2 else INSIDE
        self.vip_kind, self.vips = vip, ROUTED if vip == "routed" else self.outside.at(100)
        super().__init__()
        tag, folder = self.claim.tag, self.claim.folder
        self.clients = [Host(tag, f"c{n}", folder) for n in range(1, clients + 1)]
        self.router, self.switch = Host(tag, "r", folder), Host(tag, "sw", folder)
        self.director = Director(tag, "d", folder)
        self.storage = self.STORAGE(tag, "st", folder)
        self.servers = [self.SERVER(tag, f"s{n}", folder, self.storage) for n in range(1, servers + 1)]
        self.hosts = [*self.clients, self.router, self.switch, self.director, self.storage, *self.servers]

    @property
    def client(self) -> Host:
        return self.clients[0]

    @property
    def uplink(self) -> str:
        """The director's device towards the router."""
        return "up0" if self.arms == 2 else "eth0"

    def vip(self, family: int = 4) -> str:
        return self.vips.of(family)

    def service(self, port: int = 80, family: int = 4) -> str:
        """The virtual service as the command line takes it."""
        return endpoint(self.vip(family), port)

    def url(self, path: str = "/whoami", family: int = 4) -> str:
        return f"http://{self.service(80, family)}{path}"

    def reals(self, *weights: int, port: int = 80, family: int = 4) -> list[str]:
        """The --real arguments that name all servers, or as many as there are weights."""
        where = [endpoint(server.address(family), port) for server in self.servers]
        if weights:
            where = [f"{text},weight={weight}" for text, weight in zip(where, weights, strict=False)]
        return [word for text in where for word in ("--real", text)]

    @property
    def serves(self) -> list[str]:
        """What `nfqlb real-server` has to know here."""
        return ["--mode", self.mode, "--vip", self.vip(4), "--vip", self.vip(6)]

    def real_server(self, server: Host, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """`nfqlb real-server ARGS` on that machine."""
        return server.run([NFQLB, "real-server", *args], check=check, env={"NFQLB_RUN_DIR": str(server.folder)})

    def offload(self, on: bool) -> None:
        """Checksum offload of every device of every machine."""
        for host in self.hosts:
            host.offload(on)

    def build(self) -> None:
        self._wire().apply(self.switch, self.router)
        if self.mode != "nat":
            for server in self.servers:
                self.real_server(server, "setup", *self.serves, *self.setup)
        self.start()

    def start(self) -> None:
        """Start what the machines run."""
        for server in self.servers:
            if self.web:
                server.start()
            if self.echo:
                server.start_echo()

    def _wire(self) -> Wiring:
        wiring = Wiring(self.hosts)
        for number, client in enumerate(self.clients, 1):
            wiring.cable(client, "eth0", self.router, f"lan{number}")
            wiring.address(self.router, f"lan{number}", lan(number).at(1))
            wiring.address(client, "eth0", lan(number).at(2))
            wiring.default(client, lan(number).at(1))
        for host, address in [
            (self.storage, 250),
            (self.director, 1),
            *((s, 10 + n) for n, s in enumerate(self.servers, 1)),
        ]:
            wiring.plug(host, self.switch)
            wiring.address(host, "eth0", INSIDE.at(address))
            if host is not self.director:
                wiring.default(host, INSIDE.at(1 if self.mode == "nat" else 254))
        if self.arms == 2:
            wiring.cable(self.director, "up0", self.router, "eth0")
            wiring.address(self.director, "up0", UPLINK.at(1))
            wiring.route(self.router, INSIDE.prefixes, UPLINK.at(1))
        else:
            wiring.plug(self.router, self.switch)
        wiring.address(self.router, "eth0", self.outside.at(254))
        wiring.default(self.director, self.outside.at(254))
        if self.vip_kind == "local":
            wiring.alias(self.director, self.uplink, self.vips)
        elif self.vip_kind == "routed":
            wiring.route(self.router, self.vips, self.outside.at(1))
        return wiring
