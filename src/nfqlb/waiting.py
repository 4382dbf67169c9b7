"""Waits that end."""

from __future__ import annotations

import asyncio


async def within(seconds: float, event: asyncio.Event) -> bool:
    """Wait for the event, so long at most; whether it came."""
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False
