"""The Python client SDK: `AsyncClient`, its sync face `Client`, and the errors that both raise.

These names are stable. The clients are loaded at first use, since gRPC takes a while to import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headrace.model.errors import (
    AlreadyExists,
    Cancelled,
    Conflict,
    Damaged,
    DeadlineExceeded,
    Exhausted,
    FieldViolation,
    HeadraceError,
    InvalidInput,
    NotFound,
    OutOfRange,
    Unavailable,
    WrongState,
)

if TYPE_CHECKING:
    from headrace.client.async_client import AsyncClient
    from headrace.client.sync_client import Client

__all__ = [
    "AlreadyExists",
    "AsyncClient",
    "Cancelled",
    "Client",
    "Conflict",
    "Damaged",
    "DeadlineExceeded",
    "Exhausted",
    "FieldViolation",
    "HeadraceError",
    "InvalidInput",
    "NotFound",
    "OutOfRange",
    "Unavailable",
    "WrongState",
]


def __getattr__(name: str) -> Any:
    if name == "AsyncClient":
        from headrace.client.async_client import AsyncClient

        return AsyncClient
    if name == "Client":
        from headrace.client.sync_client import Client

        return Client
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
