"""Keys of the pin bucket, read: who holds which digest."""

from __future__ import annotations

from headrace.model.bucket_names import pin_key
from headrace.model.names import is_number

_COLLECTIONS = {"d": "deployments", "v": "versions"}


def pins_of_digest(digest: str) -> str:
    """Pattern of all pins of a digest."""
    return pin_key(digest, "*", "*")


def digest_of_pin(key: str) -> str:
    return "sha256:" + key.partition(".")[0]


def holder_of_pin(key: str) -> str:
    """Resource name of the holder: `<hex>.orders.d1` → `flows/orders/deployments/1`."""
    _, flow, holder = key.split(".", 2)
    collection = _COLLECTIONS.get(holder[:1])
    if collection is None or not is_number(holder[1:]):
        return f"flows/{flow}/{holder}"
    return f"flows/{flow}/{collection}/{holder[1:]}"
