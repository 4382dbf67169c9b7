"""The seam between the kernel facade and the two ways to send packets to the queues.

Strategy: a diverter owns its rules, its NOTRACK rules and nothing else. It is told what should be there and makes it
so in one step: before and after that step, never between, packets of the VIPs go to a queue. Both diverters stand in
the same hooks and match the same packets; nft reads its members from its own sets, iptables from ipsets.
"""

from __future__ import annotations

from typing import Protocol

from nfqlb.kernel.plan import Plan


class Part(Protocol):
    """One kind of thing that a director changes in the kernel; every verb can be called in any state, and twice."""

    def apply(self, plan: Plan, *, afresh: bool = False) -> None:
        """Add and change what `plan` wants; `afresh`: trust nothing that was remembered from earlier calls."""

    def prune(self, plan: Plan) -> None:
        """Take away what bears the director's name and `plan` does not want; all of it where that is `Plan(name)`."""

    def check(self, plan: Plan) -> list[str]:
        """What differs from `plan`, a sentence each."""


class Diverter(Part, Protocol):
    """The rules that send a director's packets to its queues."""

    def require(self, plan: Plan) -> None:
        """MissingError where this kernel or machine cannot do it."""


ICMP_ERRORS = {4: (3, 11, 12), 6: (1, 2, 3, 4)}  # types that quote a packet; echo and neighbour discovery stay local
SEED = 0x6E66716C  # one for both directions: a client's address and port pick the same worker
