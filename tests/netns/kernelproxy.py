"""A Kernel in another network namespace: a child process lives there and does what it is told through a pipe."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from netfilterqueue import NetfilterQueue, Packet
from pyroute2 import netns

from nfqlb.kernel.kernel import Kernel
from nfqlb.kernel.plan import Plan
from nfqlb.kernel.queues import Queue, queues

PREROUTING, INPUT, FORWARD, OUTPUT = range(4)


class Taken(NamedTuple):
    """A packet that came to a queue."""

    queue: int
    hook: int
    payload: bytes


class KernelProxy:
    """The verbs of Kernel, done in `namespace`; and queues bound there.

    The queues accept what is forwarded or goes out, and drop what would come to the local stack, which would answer it.
    """

    def __init__(self, namespace: str, name: str, saved: Path) -> None:
        self._pipe, other = multiprocessing.get_context("fork").Pipe()
        self._child = multiprocessing.get_context("fork").Process(
            target=_serve, args=(other, namespace, name, saved), daemon=True
        )
        self._child.start()
        other.close()

    def crash(self) -> None:
        """Lose everything that the process knew."""
        self._child.kill()
        self._child.join(5)
        self._pipe.close()

    def require(self, plan: Plan) -> None:
        self._call("require", plan)

    def apply(self, plan: Plan) -> None:
        self._call("apply", plan)

    def check(self) -> list[str]:
        return self._call("check")

    def repair(self) -> list[str]:
        return self._call("repair")

    def warnings(self) -> list[str]:
        return self._call("warnings")

    def withdraw(self) -> None:
        self._call("withdraw")

    def bind(self, numbers: Iterable[int]) -> dict[int, Queue]:
        """Listen on these queues; what /proc says of them then."""
        return self._call("bind", tuple(numbers))

    def taken(self) -> list[Taken]:
        """The packets that came since the last call."""
        return self._call("taken")

    def _call(self, verb: str, *arguments: Any) -> Any:
        self._pipe.send((verb, arguments))
        if not self._pipe.poll(30):
            raise TimeoutError(verb)
        answer = self._pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer


class _Queues:
    def __init__(self) -> None:
        self._bound: list[NetfilterQueue] = []
        self._taken: list[Taken] = []

    def bind(self, numbers: tuple[int, ...]) -> dict[int, Queue]:
        for number in numbers:
            queue = NetfilterQueue()
            queue.bind(number, lambda packet, number=number: self._take(number, packet))
            self._bound.append(queue)
        return queues()

    def taken(self) -> list[Taken]:
        for queue in self._bound:
            queue.run(block=False)
        found, self._taken = self._taken, []
        return found

    def _take(self, number: int, packet: Packet) -> None:
        self._taken.append(Taken(number, packet.hook, packet.get_payload()))
        if packet.hook in (PREROUTING, INPUT):
            packet.drop()
        else:
            packet.accept()


def _serve(pipe: Connection, namespace: str, name: str, saved: Path) -> None:
    netns.setns(namespace)
    kernel, listeners = Kernel(name, saved), _Queues()
    while True:
        try:
            verb, arguments = pipe.recv()
        except EOFError:
            return
        try:
            answer = getattr(listeners if verb in ("bind", "taken") else kernel, verb)(*arguments)
        except Exception as error:
            answer = error if type(error).__init__ is Exception.__init__ else RuntimeError(str(error))
        pipe.send(answer)
