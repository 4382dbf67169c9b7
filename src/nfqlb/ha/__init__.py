"""Several directors for the same VIPs: which of them has these now, and what they tell each other."""

from __future__ import annotations

import socket

from nfqlb.errors import ConfigError


def require_device(field: str, device: str) -> None:
    """ConfigError where there is no such network device here."""
    there = [name for _, name in socket.if_nameindex()]
    if device not in there:
        raise ConfigError(field, device, "is not there", f"choose from {', '.join(there)}")
