"""What the API needs of the director: the seam between the two, and all that a test has to imitate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from nfqlb.model import Intent, Key

if TYPE_CHECKING:
    from nfqlb._core.datapath import Drained

# protocol number, client and port, virtual address and port, server and port, state number, seconds left, template
Connection = tuple[int, bytes, int, bytes, int, bytes, int, int, int, bool]
Slots = Mapping[tuple[Key, str, int], int]


class Director(Protocol):
    @property
    def revision(self) -> int:
        """Counts the changes of the intent."""

    def intent(self) -> Intent:
        """What is asked for now."""

    async def change(self, edit: Callable[[Intent], Intent]) -> int:
        """Edit, apply, publish and save, one change at a time; the new revision. An NfqlbError has changed nothing."""

    def drained(self) -> Drained:
        """Totals since the start, over all workers."""

    def connections(self, limit: int) -> Sequence[Connection]:
        """Live connections, at most `limit` of them; 0 is no limit."""

    def slots(self) -> Slots:
        """The numbers under which `drained` counts the real servers."""

    def info(self) -> Mapping[str, object]:
        """What `nfqlb show daemon` tells."""
