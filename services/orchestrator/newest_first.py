"""Pages of what a bounded stream keeps, newest first: read in windows of sequences, so that a filter that fits nothing
does not read everything at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from nats.aio.client import Client

from headrace.edge.direct_get import read_batch
from headrace.edge.jetstream_assets import JetStreamAssets, StoredMessage
from headrace.model.pages import Page

WINDOW = 200
MOST_WINDOWS = 25
READ_AT_ONCE = 100

T = TypeVar("T")


async def stream_bounds(assets: JetStreamAssets, stream: str) -> tuple[int, int]:
    """Sequences of the oldest message kept and of the newest ever; (1, 0) where there was none."""
    info = await assets.stream_info(stream)
    if info is None:
        return 1, 0
    return max(1, int(info["state"]["first_seq"])), int(info["state"]["last_seq"])


async def newest_first(
    connection: Client,
    stream: str,
    pattern: str,
    page: Page,
    bounds: tuple[int, int],
    read: Callable[[StoredMessage], T | None],
) -> tuple[list[T], str]:
    """A page's worth of what `read` makes of messages (None: does not fit), older than the page's token; and the token
    of the next page, empty at the end. A page with a filter may be short although a next one follows."""
    first, last = bounds
    before = min(page.number or last + 1, last + 1)
    found: list[tuple[int, T]] = []
    for _ in range(MOST_WINDOWS):
        if before <= first or len(found) > page.size:
            break
        begin = max(first, before - WINDOW)
        found += reversed(await _window(connection, stream, pattern, begin, before, read))
        before = begin
    if len(found) > page.size:
        found = found[: page.size]
        return [item for _, item in found], page.token(found[-1][0])
    return [item for _, item in found], page.token(before) if before > first else ""


async def _window(
    connection: Client,
    stream: str,
    pattern: str,
    begin: int,
    before: int,
    read: Callable[[StoredMessage], T | None],
) -> list[tuple[int, T]]:
    """With begin <= sequence < before, oldest first."""
    found: list[tuple[int, T]] = []
    sequence, pending = begin, 1
    while sequence < before and pending:
        messages, pending = await read_batch(connection, stream, pattern, sequence, count=READ_AT_ONCE)
        if not messages:
            break
        sequence = messages[-1].sequence + 1
        made = ((message.sequence, read(message)) for message in messages if message.sequence < before)
        found += [(number, item) for number, item in made if item is not None]
    return found
