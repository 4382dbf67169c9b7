"""What the demos have in common: a network, what an operator types on its director, what is expected; a line each."""

from __future__ import annotations

from netns.tiers import Tiers


class Desk:
    """`failures` counts the expectations that did not hold."""

    def __init__(self, net: Tiers) -> None:
        self.net, self.failures = net, 0

    def expect(self, held: bool, text: str) -> None:
        self.failures += not held
        print(f"{'  ok  ' if held else 'FAILED'}  {text}", flush=True)

    def operator(self, *words: str) -> None:
        """What an operator types on the director, shown as they would type it."""
        print(f"   $    nfqlb {' '.join(words)}", flush=True)
        self.net.director.cli(*words)
