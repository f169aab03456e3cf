"""Reads many stored messages of a stream in one request: JetStream's batched direct get (`allow_direct`)."""

from __future__ import annotations

import asyncio
import contextlib
import json

from nats.aio.client import Client
from nats.aio.msg import Msg

from headrace.edge.jetstream_assets import StoredMessage
from headrace.model.errors import Unavailable

READ_LIMIT_S = 5.0
MAX_BYTES = 4 * 1024 * 1024
NO_RESPONDERS = "503"
END_OF_BATCH = "204"
NO_MESSAGES = "404"


async def read_batch(
    connection: Client,
    stream: str,
    subject_filter: str,
    begin: int,
    *,
    count: int,
    max_bytes: int = MAX_BYTES,
) -> tuple[list[StoredMessage], int]:
    """Up to `count` messages (and about `max_bytes`) from that sequence on, oldest first, and how many match after
    them. Empty where there is no such stream; Unavailable when the broker does not answer in time."""
    inbox = connection.new_inbox()
    answers: asyncio.Queue[Msg] = asyncio.Queue()
    subscription = await connection.subscribe(inbox, cb=answers.put)
    request = {"seq": max(1, begin), "next_by_subj": subject_filter, "batch": count, "max_bytes": max_bytes}
    found: list[StoredMessage] = []
    try:
        await connection.publish(f"$JS.API.DIRECT.GET.{stream}", json.dumps(request).encode(), reply=inbox)
        async with asyncio.timeout(READ_LIMIT_S):
            while True:
                message = await answers.get()
                headers = message.headers or {}
                status = headers.get("Status", "")
                if status == END_OF_BATCH:
                    return found, int(headers.get("Nats-Num-Pending", "0"))
                if status in (NO_MESSAGES, NO_RESPONDERS):
                    return found, 0
                if status:
                    raise Unavailable(f"{stream} cannot be read: {status} {headers.get('Description', '')}")
                found.append(
                    StoredMessage(headers["Nats-Subject"], int(headers["Nats-Sequence"]), message.data, headers)
                )
    except TimeoutError as error:
        raise Unavailable(f"{stream} was not read in time", next_step="Try again") from error
    finally:
        with contextlib.suppress(Exception):
            await subscription.unsubscribe()
