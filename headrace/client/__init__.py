"""The Python client SDK: `AsyncClient` and its sync face `Client`.

Loaded at first use, since gRPC takes a while to import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace.client.async_client import AsyncClient
    from headrace.client.sync_client import Client

__all__ = ["AsyncClient", "Client"]


def __getattr__(name: str) -> Any:
    if name == "AsyncClient":
        from headrace.client.async_client import AsyncClient

        return AsyncClient
    if name == "Client":
        from headrace.client.sync_client import Client

        return Client
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
