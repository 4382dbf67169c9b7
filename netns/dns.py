"""Names on a real server: BIND with one zone, whose file is on the storage; dig asks it."""

from __future__ import annotations

import re
from typing import NamedTuple

from netns.host import Host, Process, until
from netns.mounts import SHARED, Mounting

DNS = 53
ZONE = "example.test"
WIDE = 2500  # bytes of text in the wide answer: two fragments, and less than the reference engine copies

CONFIGURATION = """
options {{
    directory "/run/named";
    pid-file none;
    session-keyfile none;
    listen-on {{ any; }};
    listen-on-v6 {{ any; }};
    recursion no;
    empty-zones-enable no;
    dnssec-validation no;
    server-id "{name}";
    edns-udp-size 4096;
    max-udp-size 4096;
    minimal-responses yes;
}};
controls {{ }};
zone "{zone}" {{ type primary; file "{files}/{zone}"; }};
"""
RECORDS = """
$TTL 0
@       SOA   ns.{zone}. hostmaster.{zone}. {serial} 3600 600 86400 0
@       NS    ns
ns      A     192.0.2.1
text    TXT   "{text}"
wide    TXT   {wide}
"""


def zone(text: str, serial: int) -> str:
    """The zone's file: `text` is what the name text.ZONE says; a greater serial makes it newer."""
    wide = " ".join(f'"{"w" * 250}"' for _ in range(WIDE // 250))
    return RECORDS.format(zone=ZONE, serial=serial, text=text, wide=wide)


class NameServer:
    """named on port 53, UDP and TCP."""

    def __init__(self, host: Mounting) -> None:
        self.host = host
        self.process: Process | None = None
        (host.own("run") / "named").mkdir()
        self.configuration = host.own("named") / "named.conf"
        self.configuration.write_text(CONFIGURATION.format(name=host.name, zone=ZONE, files=SHARED / "dns"))

    def start(self) -> None:
        self.process = self.host.spawn(["named", "-g", "-n", "1", "-c", str(self.configuration)])

    def is_ready(self, serial: int = 1) -> bool:
        assert self.process is not None
        return f"zone {ZONE}/IN: loaded serial {serial}\n" in self.process.text

    def reload(self, serial: int, timeout: float = 20.0) -> None:
        """Read the zone again, and return when the one with this serial is served."""
        assert self.process is not None
        self.host.run(["kill", "-HUP", str(self.process.pid)])
        log = self.process
        until(lambda: self.is_ready(serial), timeout, lambda: f"{self.host.name}: no zone {serial}:\n{log.text}")


class Answer(NamedTuple):
    """`text` is that of the first record, in one piece; `size` the whole answer's in bytes."""

    server: str
    text: str
    size: int
    protocol: str


ANSWER = re.compile(
    r"NSID: [^\n]*\(\"(?P<server>\w+)\"\).*?\sTXT\t(?P<text>[^\n]*)"
    r".*?\((?P<protocol>UDP|TCP)\)\n.*?rcvd: (?P<size>\d+)",
    re.S,
)


def ask(client: Host, address: str, name: str, count: int = 1, *, tcp: bool = False) -> list[Answer]:
    """As many questions for a name's text, each from a port of its own; one that fails is missing."""
    options = ["+tcp" if tcp else "+notcp", "+ignore", "+tries=1", "+time=3", "+bufsize=4096", "+nsid"]
    said = client.run(["dig", f"@{address}", *options, *["-q", f"{name}.{ZONE}", "-t", "TXT"] * count]).stdout
    return [
        Answer(found["server"], re.sub(r'"( ")?', "", found["text"]), int(found["size"]), found["protocol"].lower())
        for found in ANSWER.finditer(said)
    ]
