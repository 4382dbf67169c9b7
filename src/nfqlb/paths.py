"""Where one director keeps its files: everything follows from its name.

`NFQLB_RUN_DIR`, `NFQLB_STATE_DIR` and `NFQLB_TABLE_DIR` move the folders, for tests and where the usual ones cannot be
written. Nothing here touches the file system. Commands that only ask a director need `api_socket` and are spared the
import of pathlib.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

DEFAULT_NAME = "main"


class Paths(NamedTuple):
    """`run` is the folder of what lives as long as the director; at `door` a successor knocks; `kernel` keeps what it
    changed as it was found.
    """

    run: Path
    api: Path
    lock: Path
    door: Path
    kernel: Path
    state: Path
    table: Path


def paths(name: str = DEFAULT_NAME, environ: Mapping[str, str] = os.environ) -> Paths:
    """The files of the director called `name`."""
    from pathlib import Path

    api = Path(api_socket(name, environ))
    return Paths(
        run=api.parent,
        api=api,
        lock=api.parent / "lock",
        door=api.parent / "heir",
        kernel=api.parent / "kernel.json",
        state=Path(environ.get("NFQLB_STATE_DIR") or "/var/lib/nfqlb", name, "state.toml"),
        table=Path(environ.get("NFQLB_TABLE_DIR") or "/dev/shm", f"nfqlb-{name}"),
    )


def api_socket(name: str = DEFAULT_NAME, environ: Mapping[str, str] = os.environ) -> str:
    return os.path.join(environ.get("NFQLB_RUN_DIR") or "/run/nfqlb", name, "api.sock")
