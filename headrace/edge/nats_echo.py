"""How long the broker takes for a message to come back to who sent it.

Not a flush: nats-py 2.16 keeps the future of a flush that was given up among those that wait for a PONG, and the next
PONG then breaks its reader, and with it the connection, for half a minute.
"""

from __future__ import annotations

import asyncio
import time

from nats.aio.client import Client


async def round_trip_ms(connection: Client, limit_s: float) -> float:
    """Milliseconds. TimeoutError past the limit, also while the connection is down."""
    inbox = connection.new_inbox()
    async with asyncio.timeout(limit_s):
        subscription = await connection.subscribe(inbox)
        try:
            began = time.perf_counter()
            await connection.publish(inbox, b"")
            await subscription.next_msg(timeout=2 * limit_s)
            return (time.perf_counter() - began) * 1000
        finally:
            if connection.is_connected:
                await subscription.unsubscribe()
