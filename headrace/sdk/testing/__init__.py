"""Runs a component, or a whole flow, in a test: no broker, no process, the same call code as in the mesh.

    async def test_price() -> None:
        async with ComponentHarness("components/price", config={"currency": "EUR"}) as harness:
            result = await harness.call("price", {"sku": "A-1", "quantity": 2})
            assert result.value["total_cents"] == 300

    def test_orders() -> None:
        with FlowHarness("flow.yaml") as flow:
            assert flow.send({"sku": "A-1"}).reply.status == 200

`async with` gives the asynchronous face, `with` the blocking one.
"""

from headrace.sdk.testing.component_harness import BlockingComponentHarness, ComponentHarness
from headrace.sdk.testing.flow_harness import BlockingFlowHarness, FlowHarness, FlowResult, StepError
from headrace.sdk.testing.listener_harness import HeardEmit, ListenerHarness
from headrace.sdk.testing.results import CallResult, Failure, Output, ReboundAsked, Reply

__all__ = [
    "BlockingComponentHarness",
    "BlockingFlowHarness",
    "CallResult",
    "ComponentHarness",
    "Failure",
    "FlowHarness",
    "FlowResult",
    "HeardEmit",
    "ListenerHarness",
    "Output",
    "ReboundAsked",
    "Reply",
    "StepError",
]
