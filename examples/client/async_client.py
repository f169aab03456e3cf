"""The same with asyncio: two things at once, and a watch that goes on where it was."""

import asyncio
import sys
from contextlib import aclosing

from headrace.client import AsyncClient, HeadraceError, WrongState

ORDER = b"""{"order_id": "O-1", "customer": {"id": "C-100", "name": "Ada"}, "currency": "EUR", "country": "DE",
  "lines": [{"sku": "PUMP-HX2", "quantity": 2}]}"""


async def tell(client: AsyncClient) -> None:
    async with aclosing(client.watch_flows()) as changes:  # survives a restart of the mesh
        async for change in changes:
            for flow in change.flows:
                print("flow:", flow.name, "runs" if flow.active_deployment else "rests", flow.running_operation)


async def main() -> None:
    async with AsyncClient() as client:
        telling = asyncio.create_task(tell(client))
        try:
            await client.apply("examples/orders/flow.yaml")
            try:
                await client.publish("orders", request_id="release-2026-11")  # the same id is done once
            except WrongState as error:
                print(error.reason, error.next_step)
            await client.start("orders", timeout_s=60)
            injected = await client.inject("orders", ORDER)
            print("execution:", injected.execution_id)
            await client.stop("orders")
        finally:
            telling.cancel()


try:
    asyncio.run(main())
except HeadraceError as error:
    sys.exit(f"{error.reason}: {error.message}. {error.next_step}")
