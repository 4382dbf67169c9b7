"""What the API needs of the director: the seam between the two, and all that a test has to imitate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from nfqlb.applying import Applier
from nfqlb.control.rates import Meter
from nfqlb.draining import Draining
from nfqlb.feed import Feed
from nfqlb.health.runner import Runner
from nfqlb.model import Intent, Key, Real
from nfqlb.serving import Serving

if TYPE_CHECKING:
    from nfqlb._core.advisor import Advice
    from nfqlb._core.datapath import Drained

# protocol number, client and port, virtual address and port, server and port, state number, seconds left, template
Connection = tuple[int, bytes, int, bytes, int, bytes, int, int, int, bool]
Slots = Mapping[tuple[Key, str, int], int]


# connections compared, how many differed, by slot how many a server got and would have got, the last that differed:
# client and port, slot that it got and would have got (snapshot.Service.compared)
Compared = tuple[int, int, Mapping[int, tuple[int, int]], Sequence[tuple[bytes, int, int, int]]]


class Choosing(NamedTuple):
    """What a scheduler in Python did for a service, and what its shadow would have done."""

    advice: Advice | None = None
    compared: Compared | None = None
    shadow: Advice | None = None


class Director(Protocol):
    meter: Meter
    """Rates, and what the counters were when they were zeroed."""

    feed: Feed
    """What happens."""

    applier: Applier
    """Whole configurations."""

    draining: Draining
    """Real servers on their way out."""

    @property
    def health(self) -> Runner:
        """What checks found."""

    @property
    def serving(self) -> Serving:
        """Who gets connections."""

    @property
    def revision(self) -> int:
        """Counts the changes of the intent."""

    def intent(self) -> Intent:
        """What is asked for now."""

    async def change(self, edit: Callable[[Intent], Intent], revision: int | None = None) -> int:
        """Edit, apply, publish and save, one change at a time; the new revision. An NfqlbError has changed nothing;
        ConflictError: there is another revision than the one that is named.
        """

    async def maintain(self, key: Key, real: Real, on: bool, why: str = "") -> None:
        """Take a real server out, or back in; it stays so through restarts. NotFoundError where there is none."""

    def drained(self) -> Drained:
        """Totals since the start, over all workers."""

    def connections(self, limit: int) -> Sequence[Connection]:
        """Live connections, at most `limit` of them; 0 is no limit."""

    def slots(self) -> Slots:
        """The numbers under which `drained` counts the real servers."""

    def choosing(self) -> Mapping[Key, Choosing]:
        """Of the services that have a scheduler in Python, or a shadow."""

    def syncing(self) -> dict[str, object] | None: ...
    def info(self) -> Mapping[str, object]:
        """What `nfqlb show daemon` tells."""
