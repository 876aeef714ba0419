"""Python's garbage collector, kept from stopping a service that holds many requests.

A full collection looks at every object there is. With 10,000 held polls that takes most of a second, and since it is set off by
objects that are made, it comes in the middle of answering them. What a request leaves is freed without it, so it is a net that
nothing needs to hang in: it comes seldom, and by the clock.
"""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_YOUNG = (2_000, 10)  # a collection of the young looks at 20,000 objects: some milliseconds
_NEVER = 1_000_000_000
_FULL_SECONDS = 600.0


@asynccontextmanager
async def seldom_full_collections(seconds: float = _FULL_SECONDS) -> AsyncIterator[None]:
    """Within it a full collection comes every so many seconds, and never looks at what was there at the start."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_YOUNG, _NEVER)
    collecting = asyncio.create_task(_collect(seconds))
    try:
        yield
    finally:
        collecting.cancel()
        gc.set_threshold(*before)
        gc.unfreeze()


async def _collect(seconds: float) -> None:
    while True:
        await asyncio.sleep(seconds)
        gc.collect()
