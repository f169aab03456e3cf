"""The client SDK, async face."""

from __future__ import annotations

from headrace.client.attachment_calls import AttachmentCalls
from headrace.client.injection_calls import InjectionCalls
from headrace.client.run import RunCalls
from headrace.client.stimulus_calls import StimulusCalls
from headrace.client.trace_calls import TraceCalls


class AsyncClient(RunCalls, TraceCalls, StimulusCalls, AttachmentCalls, InjectionCalls):
    """Everything a person can do with a mesh, as typed calls on its one API address.

    Answers are the messages of `headrace.api.*`; errors are those of `headrace.model.errors`, with `reason`,
    `violations` and `next_step` as the mesh gave them. Each call has a limit (10 s unless said otherwise) and
    is repeated, under the same request id, at most five times while the mesh is UNAVAILABLE.

        import asyncio

        from headrace.client import AsyncClient
        from headrace.model.errors import HeadraceError


        async def main() -> None:
            async with AsyncClient("127.0.0.1:7001") as client:
                try:
                    applied = await client.apply("examples/orders/flow.yaml")
                    print(applied.flow.name, applied.change)
                    await client.publish("orders")
                    await client.start("orders", progress=lambda now: print(dict(now.steps)))
                    injected = await client.inject("orders", b'{"order": "o-1", "lines": []}')
                    print("execution", injected.execution_id)
                    status = await client.get_status("orders")
                    print([(step.step, step.pin.revision_number) for step in status.steps])
                    async for line in client.tail_logs("orders", lines=20):
                        print(line.step, line.level, line.message)
                    await client.stop("orders")
                except HeadraceError as error:
                    print(error.reason, error.message, error.next_step)


        asyncio.run(main())
    """
