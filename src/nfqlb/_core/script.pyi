from collections.abc import Sequence
from typing import Self

from nfqlb._core.datapath import Datapath, Worker
from nfqlb._core.snapshot import Snapshot

class Player:
    datapath: Datapath
    now: int
    packets: int
    def __new__(
        cls,
        datapath: Datapath,
        workers: Sequence[Worker],
        snapshots: Sequence[Snapshot],
        bases: Sequence[tuple[bytes, int, int, int, int]],
        now: int,
    ) -> Self: ...
    def play(self, script: bytes) -> None: ...
    def every_way(self, packet: bytes) -> None: ...
    def audit(self) -> None: ...
    def finish(self) -> None: ...
