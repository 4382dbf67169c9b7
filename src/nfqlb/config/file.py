"""The configuration file on disk."""

from __future__ import annotations

import gc
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nfqlb.config.toml import Loaded, loads
from nfqlb.errors import ConfigError

SIZE_MAX = 256 * 2**20
STDIN = "-"


def read(file: str, *, whole: bool = False, stdin: bool = False) -> Loaded:
    """Read a configuration; ConfigErrors holds everything that is wrong with it. `whole`: it replaces another one, and
    must not delete every service just because it says nothing. With `stdin` the file "-" is the standard input.
    """
    if not file:
        raise ConfigError("config", file, "is no name of a file")
    try:
        piped = stdin and file == STDIN
        with open(0 if piped else file, "rb", closefd=not piped) as source:
            data = source.read(SIZE_MAX + 1)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError("config", file, f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError("config", file, "is not UTF-8 text") from None
    if len(data) > SIZE_MAX:
        raise ConfigError("config", file, f"is longer than {SIZE_MAX} bytes")
    with _uncollected():
        return loads(text, file, whole=whole)


def write(file: str, text: str, *, secret: bool = False) -> None:
    """Replace the file as a whole, or leave it as it is; a new one with a `secret` is for its owner alone. A symbolic
    link leads to the file; what is no regular file is written to.
    """
    try:
        before = os.stat(file) if os.path.exists(file) else None
        if before and (not stat.S_ISREG(before.st_mode) or _is_descriptor(file)):
            with open(file, "w", encoding="utf-8") as out:
                out.write(text)
            return
        path = Path(os.path.realpath(file))
        fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:200]}.")
        try:
            with os.fdopen(fd, "w", encoding="utf-8") as out:
                out.write(text)
            if before and (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
                with suppress(PermissionError):  # only root may give files away
                    os.chown(temporary, before.st_uid, before.st_gid)
            os.chmod(temporary, before.st_mode & 0o777 if before else 0o600 if secret else 0o644)
            os.rename(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise ConfigError("file", file, f"cannot be written: {error.strerror}") from None


@contextmanager
def _uncollected() -> Iterator[None]:
    """What is read stays: to look for garbage among it takes a fifth of the time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _is_descriptor(file: str) -> bool:
    """/dev/stdout and the like, which may be a regular file that is open already."""
    folder = Path(file).parent.resolve()
    return folder == Path("/dev") or folder.is_relative_to("/proc")
