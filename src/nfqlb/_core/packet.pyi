from typing import NamedTuple

class View(NamedTuple):
    reason: str | None
    version: int
    protocol: int
    length: int
    transport: int
    source: bytes
    destination: bytes
    sport: int
    dport: int
    segment: int
    chunk: int

def view(packet: bytes) -> View: ...
def checksum(data: bytes) -> int: ...
def checksum_update(check: int, old: bytes, new: bytes) -> int: ...
