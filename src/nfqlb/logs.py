"""What holder and director say on stderr: lines to read, or one JSON object a line whose keys are a promise.

Strategy: the standard library alone, and without `logging`, since the holder speaks through this too; the director's
logging writes the same lines by a formatter.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import suppress

FORMATS = ("console", "json")


class Voice:
    """How one director's processes speak; `name` is the director's."""

    def __init__(self, form: str = "console", name: str = "") -> None:
        self.form, self.name = form, name

    def line(self, message: str, level: str = "info", now: float | None = None, trace: str = "") -> str:
        """`nfqlb: MESSAGE` for people; JSON with time (RFC 3339, UTC), level, message, name, pid, at times trace."""
        if self.form == "console":
            mark = "warning: " if level == "warning" else ""
            return f"nfqlb: {mark}{message}" + (f"\n{trace}" if trace else "")
        seconds = time.time() if now is None else now
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
        told: dict[str, object] = {"time": f"{stamp}.{int(seconds % 1 * 1000):03}Z", "level": level, "message": message}
        told |= {"name": self.name, "pid": os.getpid(), **({"trace": trace} if trace else {})}
        return json.dumps(told, ensure_ascii=False)

    def say(self, message: str, level: str = "info") -> None:
        self.write(self.line(message, level))

    def ready(self) -> None:
        """The line that scripts wait for."""
        self.write("ready" if self.form == "console" else self.line("ready"))

    @staticmethod
    def write(line: str) -> None:
        with suppress(OSError):  # whoever read this may be gone; that is no reason to end
            print(line, file=sys.stderr, flush=True)
