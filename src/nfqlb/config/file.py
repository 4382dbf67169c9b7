"""The configuration file on disk."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from nfqlb.config.toml import Loaded, loads
from nfqlb.errors import ConfigError


def read(file: str, *, whole: bool = False) -> Loaded:
    """Read a configuration; ConfigErrors holds everything that is wrong with it. `whole`: it replaces another one, and
    must not delete every service just because it says nothing.
    """
    try:
        text = Path(file).read_text()
    except OSError as error:
        raise ConfigError("config", file, f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError("config", file, "is not UTF-8 text") from None
    return loads(text, file, whole=whole)


def write(file: str, text: str) -> None:
    """Replace the file as a whole, or leave it as it is."""
    path = Path(file)
    try:
        fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(fd, "w") as out:
                out.write(text)
            os.chmod(temporary, path.stat().st_mode & 0o777 if path.exists() else 0o644)
            os.rename(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise ConfigError("file", file, f"cannot be written: {error.strerror}") from None
