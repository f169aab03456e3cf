"""Forgets operations that ended long ago, so that the bucket stays bounded."""

from __future__ import annotations

from services.orchestrator.domain.documents import OperationDocument, operation_key
from services.orchestrator.stores import Stores

KEEP_S = 24 * 3600.0
KEEP_COUNT = 1000


def outdated(operations: list[OperationDocument], now: float) -> list[str]:
    """Ids of those that are done and older than a day, or beyond the newest thousand."""
    done = sorted((item for item in operations if item.done), key=lambda item: item.done_at, reverse=True)
    return [item.id for index, item in enumerate(done) if index >= KEEP_COUNT or now - item.done_at > KEEP_S]


async def prune_operations(stores: Stores, now: float) -> int:
    """Answers how many were forgotten."""
    ids = outdated(await stores.operations(), now)
    for identifier in ids:
        await stores.flows.purge(operation_key(identifier))
    return len(ids)
