"""Many messages in one call, on a real broker: what fits is stored once, the rest is named, keys keep their order."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.api.flow.v1 import flow_pb2, flow_pb2_grpc
from headrace.client import AsyncClient
from headrace.model.errors import InvalidInput, WrongState
from headrace.model.flow_spec import FlowSpec
from headrace.wire.envelope import decode_envelope
from tests.support.eventually import eventually
from tests.support.orchestrator_rig import OrchestratorRig, chain, orchestrator_rig, published
from tests.support.soak import ASKED

MOST = 20
COUNT = 300


@pytest.fixture(params=["durable", *(["fast"] if ASKED else [])])
async def rig(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[OrchestratorRig]:
    """`durable`: what waits is stored in batches; without, in a soak, and through the commands' tests."""
    async with orchestrator_rig(tmp_path, "--profile", request.param) as running:
        running.agent.keyed |= {"customer"}
        yield running


async def call(client: AsyncClient, flow: str, messages: Sequence[flow_pb2.InjectedMessage]) -> list[str]:
    """What became of each: `stored`, `known`, or the reason of its refusal."""
    stub = flow_pb2_grpc.FlowServiceStub(client.channel)
    request = flow_pb2.InjectMessagesRequest(name=f"flows/{flow}", messages=messages)
    answer = await stub.InjectMessages(request)
    assert all(outcome.execution_id or not outcome.refusal.retry_after_ms for outcome in answer.outcomes)
    return [o.refusal.reason or ("known" if o.duplicate else "stored") for o in answer.outcomes]


def numbered(first: int, count: int, **fields: str) -> list[flow_pb2.InjectedMessage]:
    return [
        flow_pb2.InjectedMessage(body=msgspec.json.encode({"n": n, **fields}), request_id=f"m{n}")
        for n in range(first, first + count)
    ]


def handled(rig: OrchestratorRig, step: str) -> list[dict[str, Any]]:
    return [msgspec.json.decode(decode_envelope(data).body) for _, at, _, data in rig.agent.handled if at == step]


async def test_each_message_is_stored_once_or_named(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await published(rig, client, "orders", chain("order", max_waiting=MOST))
        await client.start("orders")
        rig.agent.keep.add("order")
        await wrong_ones(client)
        await a_full_edge(rig, client)
        await many_callers(rig, client)
        await published(rig, client, "keyed", _keyed())
        await client.start("keyed")
        await keys_keep_their_order(rig, client)
        await client.stop("orders")
        with pytest.raises(WrongState, match="flow start orders"):
            [one async for one in client.inject_many("orders", [b"{}"])]


async def wrong_ones(client: AsyncClient) -> None:
    """They hold up nobody; the bounds of a call are those of the request."""
    mixed = [
        flow_pb2.InjectedMessage(body=b"{nonsense", request_id="bad"),
        flow_pb2.InjectedMessage(body=b"x" * 600_000, content_type="text/plain", request_id="large"),
        *numbered(0, 1),
        *numbered(0, 1),
    ]
    assert await call(client, "orders", mixed) == ["MALFORMED_JSON", "BODY_TOO_LARGE", "stored", "known"]
    for wrong in ([], numbered(0, 1_001)):
        with pytest.raises(InvalidInput, match="1000") as refused:
            await _checked(client, wrong)
        assert refused.value.reason == "BAD_BATCH"


async def _checked(client: AsyncClient, messages: Sequence[flow_pb2.InjectedMessage]) -> None:
    stub = flow_pb2_grpc.FlowServiceStub(client.channel)
    await client._call(stub.InjectMessages, flow_pb2.InjectMessagesRequest(name="flows/orders", messages=messages))


async def a_full_edge(rig: OrchestratorRig, client: AsyncClient) -> None:
    """As many as fit are stored; the rest goes in as room comes, and a repeat of all stores none again."""
    said = Counter(await call(client, "orders", numbered(1, 2 * MOST)))
    assert set(said) == {"stored", "EDGE_FULL"}
    assert MOST - 1 <= said["stored"] <= MOST + 1  # one is in work, or not yet
    rest = asyncio.ensure_future(_all(client, "orders", numbered(1, COUNT)))
    await eventually(lambda: not rest.done())
    rig.agent.keep.clear()
    outcomes = await rest
    assert all(outcomes)
    await eventually(lambda: len(handled(rig, "order")) == COUNT + 1)
    assert sorted(one["n"] for one in handled(rig, "order")) == list(range(COUNT + 1))


async def many_callers(rig: OrchestratorRig, client: AsyncClient) -> None:
    """More calls than are worked on at once, and all of them through one full edge: each takes its turn."""
    callers = [numbered(first, 50) for first in range(1_000, 1_400, 50)]
    assert all(all(stored) for stored in await asyncio.gather(*(_all(client, "orders", lot) for lot in callers)))
    await eventually(lambda: len(handled(rig, "order")) == COUNT + 401)


async def keys_keep_their_order(rig: OrchestratorRig, client: AsyncClient) -> None:
    """Through full edges, where what follows a refused message of its slot is held back."""
    rig.agent.keep.add("customer")
    bodies = [msgspec.json.encode({"customer": f"c{n % 8}", "n": n}) for n in range(COUNT)]
    sent = [flow_pb2.InjectedMessage(body=body, request_id=f"k{n}") for n, body in enumerate(bodies)]
    first = await call(client, "keyed", sent)
    assert {"stored", "EDGE_FULL", "PRECEDING_REFUSED"} == set(first)
    rig.agent.keep.clear()
    assert all(await _all(client, "keyed", sent))
    await eventually(lambda: len(handled(rig, "customer")) == COUNT)
    for customer in range(8):
        numbers = [one["n"] for one in handled(rig, "customer") if one["customer"] == f"c{customer}"]
        assert numbers == list(range(customer, COUNT, 8))


async def _all(client: AsyncClient, flow: str, messages: Sequence[flow_pb2.InjectedMessage]) -> list[bool]:
    return [one.stored async for one in client.inject_many(flow, messages)]


def _keyed() -> FlowSpec:
    spec = chain("customer", max_waiting=MOST)
    return msgspec.structs.replace(
        spec, steps=tuple(msgspec.structs.replace(step, key="body:/customer", slots=4) for step in spec.steps)
    )
