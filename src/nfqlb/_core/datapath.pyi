from typing import NamedTuple, Self

from nfqlb._core.connection import Table
from nfqlb._core.snapshot import Snapshot

class Result(NamedTuple):
    verdict: str
    reason: str
    packet: bytes | None

class Drained(NamedTuple):
    reasons: dict[str, int]
    slots: dict[int, tuple[int, int, int, int, int, int, int]]
    batches: int
    packets: int

class Datapath:
    def __new__(cls, table: Table) -> Self: ...
    def publish(self, snapshot: Snapshot) -> None: ...
    def worker(self) -> Worker: ...
    def drain(self) -> Drained: ...

class Worker:
    def __new__(cls, datapath: Datapath) -> Self: ...
    def process(self, packet: bytes, now: int, *, hook: int = 0, mark: int = 0, flags: int = 0) -> Result: ...
    def outgoing(self) -> list[bytes]: ...
    def expire(self, now: int, budget: int = 0x7FFFFFFF) -> int: ...
