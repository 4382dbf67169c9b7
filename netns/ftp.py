"""Files on a real server: vsftpd, with the storage as what it shows and a range of passive ports of its own.

Clients are told the VIP and a port of the server's range (PASV), or the port alone (EPSV, which IPv6 needs): the range
is a service with that one real server, so that the data comes from the one that the client talks to.

Also the client's side, as `python -m netns.ftp VERB ADDRESS ...` in its namespace; it prints JSON:

fetch ADDRESS FILE COUNT     the file, on that many connections one after the other: [[server, SHA-256], ...]
store ADDRESS FILE SIZE      that many bytes, upwards: [[server, SHA-256]]
"""

from __future__ import annotations

import ftplib
import hashlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

from netns.host import Host
from netns.mounts import PASSWORD, SHARED, USER, Mounting

FTP = 21
FIRST_PORT, RANGE = 30_000, 100

CONFIGURATION = """
background=NO
listen={ipv4}
listen_ipv6={ipv6}
ftpd_banner={name} ready
anonymous_enable=NO
local_enable=YES
local_root={files}
local_umask=022
write_enable=YES
chroot_local_user=YES
allow_writeable_chroot=YES
connect_from_port_20=NO
pasv_address={vip}
pasv_min_port={first}
pasv_max_port={last}
secure_chroot_dir=/run/vsftpd
xferlog_enable=NO
"""


def ports(number: int) -> tuple[int, int]:
    """The passive ports of the number-th server, first and last."""
    first = FIRST_PORT + RANGE * number
    return first, first + RANGE - 1


class FileServer:
    """vsftpd on port 21, once for IPv4 and once for IPv6: one for both cannot tell its clients an address."""

    def __init__(self, host: Mounting, number: int, vip: str) -> None:
        self.host = host
        first, last = ports(number)
        (host.own("run") / "vsftpd").mkdir()
        about = {"name": host.name, "files": SHARED / "ftp", "vip": vip, "first": first, "last": last}
        for family, other in (("ipv4", "ipv6"), ("ipv6", "ipv4")):
            self.file(family).write_text(CONFIGURATION.format(**about, **{family: "YES", other: "NO"}))

    def file(self, family: str) -> Path:
        return self.host.own("vsftpd") / f"{family}.conf"

    def start(self) -> None:
        self.host.sysctl("net.ipv6.bindv6only=1")
        for family in ("ipv4", "ipv6"):  # what it complains of it says on its standard input
            self.host.spawn(["sh", "-c", f"exec vsftpd {self.file(family)} 0>&1"], log=f"vsftpd-{family}.log")


def fetch(client: Host, address: str, file: str, count: int = 1) -> list[tuple[str, str]]:
    """The file `count` times, each on a connection of its own: the server and the SHA-256 of what came."""
    return [(server, digest) for server, digest in _ask(client, "fetch", address, file, str(count))]


def store(client: Host, address: str, file: str, size: int) -> tuple[str, str]:
    """Upload `size` bytes: the server and their SHA-256."""
    [(server, digest)] = _ask(client, "store", address, file, str(size))
    return server, digest


def _ask(client: Host, *words: str) -> list[list[str]]:
    answer: list[list[str]] = json.loads(client.run([sys.executable, "-m", "netns.ftp", *words], timeout=60).stdout)
    return answer


class Trusting(ftplib.FTP):
    """Goes to the address that PASV names, as clients do that know nothing better."""

    trust_server_pasv_ipv4_address = True


def _login(address: str) -> ftplib.FTP:
    connection = Trusting(timeout=10)
    connection.connect(address, FTP)
    connection.login(USER, PASSWORD)
    return connection


def _server(connection: ftplib.FTP) -> str:
    return (connection.welcome or "").split()[1]


def _fetch(address: str, file: str, count: str) -> list[tuple[str, str]]:
    got = []
    for _ in range(int(count)):
        with _login(address) as connection:
            digest = hashlib.sha256()
            connection.retrbinary(f"RETR {file}", digest.update)
            got.append((_server(connection), digest.hexdigest()))
    return got


def _store(address: str, file: str, size: str) -> list[tuple[str, str]]:
    data = hashlib.shake_256(file.encode()).digest(int(size))
    with _login(address) as connection:
        connection.storbinary(f"STOR {file}", io.BytesIO(data))
        return [(_server(connection), hashlib.sha256(data).hexdigest())]


VERBS: dict[str, Callable[..., object]] = {"fetch": _fetch, "store": _store}

if __name__ == "__main__":
    print(json.dumps(VERBS[sys.argv[1]](*sys.argv[2:])))
