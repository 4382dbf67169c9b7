"""The offload of one director: the program in the kernel, and the thread that follows what it does.

Strategy: without it everything works, only slower; so what stands against it is said, and the director goes on. It is
attached after the workers began, and before rules are taken away it is gone. Routes and neighbours that change are
heard by the director, which has next hops looked up again; once a second that is done in any case, and a packet of each
flow shows the kernel that its neighbour is in use.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from nfqlb import _core
from nfqlb._core.datapath import Datapath
from nfqlb._core.follow import Follower
from nfqlb._core.offload import Offload
from nfqlb.errors import MissingError, NfqlbError
from nfqlb.kernel.offload import RING_BYTES, Program, Sizes, detach

log = logging.getLogger("nfqlb")

FLOWS_MAX = 1 << 20
PROGRAM = Path(_core.__path__[0]) / "offload.bpf.o"


class Offloading:
    """A running offload. MissingError where it cannot be had."""

    def __init__(self, name: str, datapath: Datapath, connections: int) -> None:
        flows = min(connections, FLOWS_MAX)
        self._name = name
        self._program = Program(name, PROGRAM, Sizes(Offload.KEY, Offload.FLOW, Offload.PLACE, Offload.CONTROL), flows)
        self._datapath, self._refused, self._waits = datapath, dict[int, str](), False
        try:
            self._offload = Offload(*self._program.maps, RING_BYTES, flows)
        except OSError as error:
            self._program.close()
            raise MissingError(f"the kernel gives no memory of BPF maps: {error.strerror}") from None

    def start(self) -> None:
        """Attach to the interfaces, in place of a predecessor's program; then hand flows down, and follow them.
        KernelError where no interface takes it: nothing is handed down then.
        """
        try:
            self._attach()
        except NfqlbError:
            self._program.close()
            raise
        self._datapath.hand_down(self._offload)
        self._follower = Follower(self._datapath)
        self._thread = threading.Thread(target=self._follower.run, name="offload", daemon=True)
        self._thread.start()

    def _attach(self) -> list[str]:
        found = self._program.follow()
        self._offload.know(self._program.ethernet, self._program.paired)
        for index, why in self._program.refused.items():
            if self._refused.get(index) != why:
                log.warning("no offload of what comes in by %s", why)
        self._refused = self._program.refused
        if self._waits != self._program.waits:
            log.warning("the offload %s", "waits while there are IPsec policies" if self._program.waits else "goes on")
        self._waits = self._program.waits
        return found

    @property
    def state(self) -> str:
        return "waits while there are IPsec policies" if self._waits else "on"

    def follow(self) -> list[str]:
        """Attach to interfaces that came, and where somebody took it away: a sentence for each of the latter."""
        return [f"the offload was gone from {device}" for device in self._attach()]

    def look_again(self) -> None:
        """Routes or neighbours may have changed."""
        self._offload.look_again()

    def statistics(self) -> dict[str, int]:
        return self._offload.statistics()

    def stop(self) -> None:
        """Have everything come up again, and end the thread."""
        detach(self._name)
        self._follower.stop()
        self._thread.join(5)
