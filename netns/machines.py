"""The life of a topology: claimed, built, used, and gone again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from netns import claim
from netns.host import CommandError, Host


class Machines(ABC):
    """`with` builds it and leaves nothing of it, and fails where a program of ours broke meanwhile; a subclass names
    its `hosts` and builds them.
    """

    hosts: Sequence[Host]

    def __init__(self) -> None:
        self.claim = claim.take()

    @abstractmethod
    def build(self) -> None:
        """Make the namespaces of the hosts, wire them, start what runs in them."""

    def close(self) -> None:
        for host in self.hosts:
            host.close()
        claim.release(self.claim)

    def __enter__(self) -> Self:
        try:
            self.build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        faults = [fault for host in self.hosts for fault in host.faults()]
        self.close()
        if faults and error is None:
            raise CommandError("\n".join(faults))
