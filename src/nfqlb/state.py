"""What a director keeps over its own death: the intent, its revision, and how the last life ended.

Strategy: one TOML file, replaced whole (temporary file, fsync, rename, fsync of the folder), so a reader finds the old
state or the new one. `clean` is false while a director lives: found false at a start, it tells of a crash. `origin` is
a digest of the intent that the command gave: the same command after a crash means "go on", and run-time edits
survive; another command means what it says.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec
import tomli_w

from nfqlb.control.drains import Drain
from nfqlb.errors import ConfigError, NfqlbError
from nfqlb.model import Intent

HEAD = "# Written by nfqlb after every change; edit it only while no director of this name runs.\n"


class Pending(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What comes back at `until`, in seconds of the wall clock: a change was not confirmed by then."""

    until: float
    intent: Intent
    reloaded: str = ""


class Down(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A real server that its checks found down, as it is written."""

    service: str
    real: str


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The content of `state.toml`; `vip_dev` is empty where no address is added. `reloaded` is the digest of what the
    file of the start asked for when it was last read again.
    """

    revision: int
    clean: bool
    origin: str
    intent: Intent
    vip_dev: str = ""
    drains: tuple[Drain, ...] = ()
    reloaded: str = ""
    pending: Pending | None = None
    down: tuple[Down, ...] = ()


class Choice(NamedTuple):
    """What a starting director begins with; `remark` is a sentence where the choice may surprise."""

    state: State
    restored: bool
    remark: str | None


def load(path: Path) -> State | None:
    """The state, None where there is none yet; ConfigError for a file that cannot be what was saved."""
    try:
        return msgspec.convert(tomllib.loads(path.read_text()), State)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, NfqlbError) as error:  # TOML, UTF-8 and msgspec errors are ValueErrors
        raise ConfigError("state file", path, f"cannot be used ({error})", "repair it or move it away") from None


def save(path: Path, state: State) -> None:
    """Replace the file; on OSError the old one is untouched."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "wb") as file:
            file.write((HEAD + tomli_w.dumps(msgspec.to_builtins(state))).encode())
            file.flush()
            os.fsync(fd)
        os.rename(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def digest(intent: Intent | None) -> str:
    """A name for what a command gave; empty where it gave nothing."""
    return "" if intent is None else hashlib.sha256(msgspec.json.encode(intent)).hexdigest()[:16]


def choose(saved: State | None, given: Intent | None, vip_dev: str, *, restore: bool) -> Choice:
    """Which intent a start begins with: the saved one or the command's. `vip_dev` counts in any case where given."""
    origin = digest(given)
    crashed = saved is not None and not saved.clean
    if saved is not None and (restore or (crashed and (given is None or origin in (saved.origin, saved.reloaded)))):
        after = msgspec.structs.replace(saved, clean=False, vip_dev=vip_dev or saved.vip_dev)
        return Choice(after, True, None)
    remark = None
    if saved is None and restore:
        remark = "nothing was saved under this name: starting empty"
    elif saved is not None and crashed and saved.intent != given:
        remark = "the last director crashed with another configuration: the given one is used"
    return Choice(State(saved.revision + 1 if saved else 1, False, origin, given or Intent(), vip_dev), False, remark)
