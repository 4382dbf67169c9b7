"""What is wrong with a director's machine and the network around it, and what to do.

Strategy: the machine is read once (`reading`), with what only the wire can say (`wire`), and the checks (`checks`) are
pure functions over that reading and over what the director serves. A finding has a sentence, a fix that can be typed,
and, where nothing can be made worse by it, a repair that does the same. Nothing here needs a director: without one,
only the machine is looked at.
"""

from __future__ import annotations

from nfqlb.kernel.doctor.checks import ANYWHERE, CHECKS, Finding
from nfqlb.kernel.doctor.reading import Machine, Queue, Served, Service, take

__all__ = ["Finding", "Machine", "Queue", "Served", "Service", "examine", "take"]


def examine(served: Served, machine: Machine) -> list[Finding]:
    """All findings, errors first."""
    checks = ANYWHERE if served.elsewhere else (*ANYWHERE, *CHECKS)
    found = [finding for check in checks for finding in check(served, machine)]
    return sorted(found, key=lambda finding: finding.severity != "error")
