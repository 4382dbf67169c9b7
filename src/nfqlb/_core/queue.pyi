from collections.abc import Collection, Sequence
from typing import Self

from nfqlb._core.datapath import Worker

class FastEngine:
    def __new__(
        cls,
        worker: Worker,
        queues: Sequence[tuple[int, int]],
        heads: Collection[int] = (),
        firsts: Collection[int] = (),
    ) -> Self: ...
    def run(self) -> None: ...
    def stop(self) -> None: ...
    def statistics(self) -> list[dict[str, int]]: ...

def configure(
    fd: int, queue: int, *, gso: bool, copy_range: int = 65535, maxlen: int = 16384, fail_open: bool = False
) -> None: ...
