"""Many who change one document at once: each change is there once, or its caller was told that it is not."""

from __future__ import annotations

import asyncio
import time

import msgspec

from headrace.edge.broker_process import BrokerProcess
from headrace.edge.nats_connection import close_nats, connect_nats
from headrace.model.errors import Conflict
from services.orchestrator.domain.documents import FlowDocument, encode, flow_key
from services.orchestrator.stores import Stores

WRITERS, CHANGES = 24, 5


async def test_a_storm_of_changes_loses_none_and_makes_none_up(broker: BrokerProcess) -> None:
    connections = [await connect_nats(broker.url, f"writer-{number}") for number in range(3)]
    try:
        stores = [await Stores.open(connection, "default") for connection in connections]
        await stores[0].flows.create(flow_key("orders"), encode(FlowDocument("orders", "realtime", time.time())))

        async def write(number: int) -> int:
            done = 0

            async def edit(document: FlowDocument) -> FlowDocument:
                return msgspec.structs.replace(document, edit=document.edit + 1)

            for _ in range(CHANGES):
                try:
                    await stores[number % len(stores)].change_flow("orders", edit)
                except Conflict:
                    continue  # told, and nothing was done
                done += 1
            return done

        done = sum(await asyncio.gather(*(write(number) for number in range(WRITERS))))
        document, _ = await stores[0].existing_flow("orders")
        print(f"{done} of {WRITERS * CHANGES} changes went through, the others were told")
        assert document.edit == 1 + done
        assert done >= WRITERS
    finally:
        for connection in connections:
            await close_nats(connection)
