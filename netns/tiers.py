"""Three tiers: clients and a router; the director; real servers with web, mail, files and names, and their storage.

Every real server runs nginx, Postfix, Dovecot, vsftpd and BIND, and each of them serves what is on the storage: one
machine whose /srv all mount by sshfs. docs/three-tiers.toml is the director's configuration for this network.
"""

from __future__ import annotations

import os
import re
import signal
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from netns import dns, mail
from netns.dns import NameServer
from netns.ftp import FTP, FileServer
from netns.host import PROJECT, until
from netns.mail import IMAP, SMTP, PostOffice
from netns.mounts import SHARED, Mounting, StorageHost
from netns.topology import Net
from netns.web import WebServer
from netns.wiring import INSIDE

PORTS = Counter((80, 80, SMTP, SMTP, IMAP, IMAP, FTP, FTP))  # for IPv4 and IPv6
CONFIGURATION = PROJECT / "docs" / "three-tiers.toml"


class TierServer(Mounting, WebServer):
    """A real server with all four services on what the storage has."""

    mail: PostOffice
    files: FileServer
    names: NameServer

    @property
    def pages(self) -> Path:
        return SHARED / "www"

    def start_all(self, number: int, vip: str) -> None:
        """Mount the storage and start everything; `is_ready` says when it answers."""
        assert isinstance(self.storage, StorageHost)
        self.mail, self.files, self.names = PostOffice(self), FileServer(self, number, vip), NameServer(self)
        self.storage.mounted_by(self, self.mail.mounts)
        for service in (self.mail, self.files, self.names):
            service.start()
        self.launch()

    def unmount(self) -> None:
        """The program that has the storage mounted dies; all others run on."""
        assert self.root is not None
        self.root.end(signal.SIGKILL)

    def remount(self) -> None:
        assert isinstance(self.storage, StorageHost)
        self.root = self.nginx  # it sees the mounts, too
        self.storage.mounted_again(self)

    def is_ready(self) -> bool:
        return self.names.is_ready() and self.listening() >= PORTS


class Tiers(Net):
    """Build it with `with Tiers(mode="dr") as net:`."""

    STORAGE, SERVER = StorageHost, TierServer
    storage: StorageHost
    servers: Sequence[TierServer]

    def __init__(self, *, mode: str = "nat", servers: int = 3, **more: Any) -> None:
        super().__init__(mode=mode, servers=servers, **more)
        self.serial = 1  # of the zone

    def start(self) -> None:
        for name in ("mail", "ftp", "ftp/incoming", "dns"):
            (self.storage.shared / name).mkdir()
        self.write_zone("first edition")
        self.storage.start()
        for number, server in enumerate(self.servers, 1):
            server.start_all(number, self.vip())
        until(lambda: all(server.is_ready() for server in self.servers), 20, self.logs)

    def delivered(self, subjects: Iterable[str], family: int = 4) -> None:
        """Wait until they are in the mailbox: a server that took a message has yet to deliver it.

        The router asks a server for them, so that the turns of the virtual service stay as they are.
        """
        address, expected = self.servers[0].address(family), set(subjects)

        def there() -> bool:
            return expected <= set(mail.read(self.router, address)[0][1])

        until(there, 20, self.logs)

    def name_says(self, text: str) -> None:
        """Replace the zone on the storage, and have every name server load it."""
        self.serial += 1
        self.write_zone(text)
        for server in self.servers:
            server.names.reload(self.serial)

    def write_zone(self, text: str) -> None:
        file = self.storage.shared / "dns" / dns.ZONE
        self.storage.replace(file, dns.zone(text, self.serial))
        os.utime(file, (self.serial, self.serial))  # BIND loads what is newer, and SFTP tells whole seconds

    def logs(self) -> str:
        """The end of what each program on the servers said."""
        programs = [(server.name, program) for server in self.servers for program in server.processes]
        return "\n".join(f"{name}: {' '.join(program.argv)}:\n{program.text[-1000:]}" for name, program in programs)

    def configuration(self, *families: int) -> str:
        """The director's file for this mode, and for these families."""
        text = CONFIGURATION.read_text().replace('mode = "nat"', f'mode = "{self.mode}"')
        return "".join(text if family == 4 else in_ipv6(text) for family in families)


def in_ipv6(text: str) -> str:
    """The same services over IPv6, with names of their own."""
    text = re.sub(r'(?<=name = ")([\w-]+)', r"\1-6", text)
    return re.sub(r"10\.2\.0\.(\d+)", lambda address: f"[{INSIDE.at(int(address[1])).v6}]", text)
