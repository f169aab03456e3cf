"""Removes pins that no deployment needs: a write of an earlier leader may come after the deployment was forgotten."""

from __future__ import annotations

from services.orchestrator.stores import Stores


async def sweep_pins(stores: Stores) -> int:
    """Answers how many were removed. Pins are read before flows: one that is there belongs to a deployment that
    was decided already, so where no flow lists it, it is over."""
    keys = await stores.pins.keys()
    live = {document.flow: set(document.live) for document in await stores.all_flows()}
    removed = 0
    for key in keys:
        _, flow, holder = key.split(".")
        if holder.startswith("d") and int(holder[1:]) not in live.get(flow, set()):
            await stores.pins.delete(key)
            removed += 1
    return removed
