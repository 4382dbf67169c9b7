"""`make demo HA=1`: one failure of each kind under traffic, and what clients saw of it. In under two minutes.

The network of `make demo` with two directors by keepalived, which tell each other of their connections. Clients ask for
pages, mail, files and names all the time, PACE after the last answer. Then a server, a service, a director's process, a
director's machine and a server's mount of the storage fail, one after the other, and are mended. A line each says how
soon nfqlb knew, how many requests failed, and when the last kind of request was answered again; a failure that is not
healed within BAR seconds is an expectation that failed.
"""

from __future__ import annotations

import contextlib
import ftplib
import http.client
import imaplib
import io
import re
import smtplib
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from netns import dns, kernelstate
from netns.desk import Desk
from netns.director import Director
from netns.ftp import FTP, Trusting
from netns.host import CommandError, until
from netns.mail import IMAP, SMTP
from netns.mounts import PASSWORD, USER
from netns.pair import SECONDS, Pair
from netns.tiers import Tiers
from nfqlb.api.client import Client
from nfqlb.errors import NfqlbError

PACE = 0.05  # seconds between an answer and the next request
TIMEOUT = 1.0  # of a request
STEADY = 1.2  # seconds without a failure; what began before is over then
BAR = 5.0
PAGE = "/page.html"
MOUNT = f'{{ type = "http", port = 80, path = "{PAGE}" }}'  # what is on the storage
CHECKS = {
    "web": "",
    "smtp": ', { type = "smtp" }',
    "imap": ', { type = "imap" }',
    "dns": f', {{ type = "dns", query = "text.{dns.ZONE}", record = "TXT" }}',
    "dns-tcp": ', { type = "tcp" }',
    "ftp": ', { type = "ftp" }',
}
QUERY = (
    struct.pack(">6H", 1, 0x100, 1, 0, 0, 0)
    + b"\4text"
    + b"".join(bytes([len(label)]) + label.encode() for label in dns.ZONE.split("."))
    + struct.pack(">B2H", 0, 16, 1)
)  # TXT, IN


class TiersPair(Pair, Tiers):
    """Two directors in front of the three tiers."""

    def configuration(self, *families: int) -> str:
        """With checks for every service: of its own program, and of the storage's mount."""

        def checked(found: re.Match[str]) -> str:
            if found[1] not in CHECKS:
                return found[0]
            own = f"check = [{MOUNT}{CHECKS[found[1]]}]"
            return f"{found[0]}\nhealth = {{ interval = 0.5, timeout = 0.5, fall = 2, rise = 2, {own} }}"

        text = re.sub(r'^name = "([\w-]+)"$', checked, super().configuration(*families), flags=re.MULTILINE)
        return f'[sync]\nid = 7\ninterface = "eth0"\n{text}'


class Request(NamedTuple):
    kind: str
    began: float
    ended: float
    ok: bool


class Clients:
    """Somebody who asks for each thing, again and again, in threads; `done` are the requests that are over."""

    def __init__(self, net: TiersPair) -> None:
        self.vip, self.done = net.vip(), list[Request]()
        self.over = threading.Event()
        self.kinds: dict[str, Callable[[], None]] = {
            "web": self.web,
            "smtp": self.smtp,
            "imap": self.imap,
            "ftp": self.ftp,
            "dns": self.dns,
        }
        self.threads = [
            threading.Thread(target=net.client.inside, args=(lambda kind=kind: self.ask(kind),), daemon=True)
            for kind in self.kinds
        ]
        for thread in self.threads:
            thread.start()

    def ask(self, kind: str) -> None:
        while not self.over.wait(PACE):
            began, ok = time.monotonic(), False
            with contextlib.suppress(OSError, EOFError, AssertionError, http.client.HTTPException, *LIBRARIES):
                self.kinds[kind]()
                ok = True
            self.done.append(Request(kind, began, time.monotonic(), ok))

    def web(self) -> None:
        connection = http.client.HTTPConnection(self.vip, 80, timeout=TIMEOUT)
        with contextlib.closing(connection):
            connection.request("GET", PAGE)
            assert connection.getresponse().status == http.HTTPStatus.OK

    def smtp(self) -> None:
        with smtplib.SMTP(self.vip, SMTP, "client", TIMEOUT) as connection:
            connection.noop()

    def imap(self) -> None:
        with imaplib.IMAP4(self.vip, IMAP, TIMEOUT) as connection:
            connection.noop()

    def ftp(self) -> None:
        with Trusting(timeout=TIMEOUT) as connection:
            connection.connect(self.vip, FTP)
            connection.login(USER, PASSWORD)
            connection.retrbinary("RETR small", io.BytesIO().write)

    def dns(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection:
            connection.settimeout(TIMEOUT)
            connection.connect((self.vip, 53))
            connection.send(QUERY)
            assert connection.recv(4096)[3] & 15 == 0

    def whole(self, since: float) -> float | None:
        """When the last kind was answered after the last failure since that moment; None until that is STEADY seconds
        ago.
        """
        done = [one for one in list(self.done) if one.ended >= since]
        failed = max((one.ended for one in done if not one.ok), default=since)
        firsts: dict[str, float] = {}
        for one in done:
            if one.ok and one.ended >= failed:
                firsts.setdefault(one.kind, one.ended)
        if len(firsts) < len(self.kinds) or time.monotonic() - max(firsts.values()) < STEADY:
            return None
        return max(firsts.values())

    def count(self, since: float) -> tuple[int, int]:
        """Requests since then that failed, and all."""
        done = [one for one in list(self.done) if one.ended >= since]
        return sum(not one.ok for one in done), len(done)

    def end(self) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join()


LIBRARIES = (smtplib.SMTPException, imaplib.IMAP4.error, ftplib.Error)


class Mishaps(Desk):
    net: TiersPair
    clients: Clients

    def run(self) -> int:
        net = self.net
        found = net.second.state()
        (net.storage.files / "page.html").write_text("first edition\n")
        (net.storage.shared / "ftp" / "small").write_text("small\n")
        started = time.monotonic()
        net.start_pair(net.configuration(4))
        self.expect(
            True, f"two directors are ready after {time.monotonic() - started:.2f} s, {net.director.name} is master"
        )
        self.clients = Clients(net)
        try:
            self.steady()
            self.a_server()
            self.a_service()
            self.a_directors_process()
            self.a_directors_machine()
            self.a_mount()
        finally:
            self.clients.end()
        first, second = net.directors
        self.expect(first.stop() == 0, f"{first.name}, a new machine since, stopped")
        code = second.stop()
        left = kernelstate.difference(found, second.state())
        self.expect(code == 0 and not left, f"{second.name} stopped; all there is as found{left and ': ' + left}")
        return self.failures

    def a_server(self) -> None:
        net, server = self.net, self.net.servers[1]
        self.happens("server s2 is cut off", lambda: net.cut(server), self.says(f"{server.v4}:80 of", "is down"))
        self.mended(lambda: net.mend(server), self.says(f"{server.v4}:80 of", "is up again"))

    def a_service(self) -> None:
        server = self.net.servers[0]
        named = server.names.process
        assert named is not None
        name = f"{server.v4}:53 of {self.net.vip()}:53/udp"
        self.happens("BIND on s1 is killed", lambda: named.end(9), self.says(name, "is down"))
        self.mended(server.names.start, self.says(name, "is up again"))

    def a_directors_process(self) -> None:
        director = self.net.director
        before = director.director_pid()

        def another() -> bool:
            with contextlib.suppress(CommandError, OSError):
                return director.director_pid() != before
            return False

        self.happens("the director's process is killed", director.kill_director, another)
        self.mended(lambda: None, lambda: director.show("daemon")["ha"]["role"] == "master")

    def a_directors_machine(self) -> None:
        net = self.net
        first, second = net.directors
        self.happens(
            "the director's machine dies",
            lambda: net.destroy(first),
            self.says("this director is", "master", of=second),
        )

        def revive() -> None:
            net.revive(first)
            net.start_one(first, net.configuration(4), priority="150")

        self.mended(revive, lambda: first.show("daemon")["ha"]["role"] == "master")

    def a_mount(self) -> None:
        server = self.net.servers[2]
        self.happens("s3 loses its mount", server.unmount, self.says(f"{server.v4}:21 of", "is down"))
        self.mended(server.remount, self.says(f"{server.v4}:21 of", "is up again"))

    def says(self, about: str, what: str, of: Director | None = None) -> Callable[[], bool]:
        """Whether a director's events say that from now on; the master's, unless it is of another."""
        director = of or self.net.director
        client = Client(str(director.run_folder / director.instance / "api.sock"))
        since = time.time()

        def said() -> bool:
            with contextlib.suppress(NfqlbError):
                events = [one for one in client.events() if one["time"] > since]
                return any(about in one["message"] and what in one["message"] for one in events)
            return False

        return said

    def happens(self, what: str, do: Callable[[], object], detected: Callable[[], bool]) -> None:
        print(f"   !    {what}", flush=True)
        since = time.monotonic()
        do()
        until(detected, SECONDS, lambda: f"{what}: nobody saw it")
        seen = time.monotonic() - since
        healed = max(self.steady(since) - since, seen)
        failed, count = self.clients.count(since)
        self.expect(
            healed <= BAR,
            f"detected in {seen:.2f} s, {failed} of {count} requests failed, healed in {healed:.2f} s",
        )

    def mended(self, do: Callable[[], object], back: Callable[[], bool]) -> None:
        do()
        until(back, SECONDS, lambda: "what was mended is not back")
        self.steady(time.monotonic())

    def steady(self, since: float = 0.0) -> float:
        """Wait until every kind of request is answered again; when that was."""
        found: list[float] = []

        def whole() -> bool:
            now = self.clients.whole(since)
            found.extend([] if now is None else [now])
            return bool(found)

        until(whole, SECONDS, lambda: f"not healed: {[one for one in self.clients.done[-30:] if not one.ok]}")
        return found[0]
