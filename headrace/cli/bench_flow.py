"""The flow that `headrace bench` makes of itself: trigger, relay, answer; brought into the mesh and taken out again."""

from __future__ import annotations

import contextlib
import secrets
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from headrace.api.flow.v1 import flow_pb2
from headrace.client import AsyncClient
from headrace.model.errors import HeadraceError

COMPONENT = "headrace-bench"
MANIFEST = f"""\
name: {COMPONENT}
title: Passes a message on; for measuring
functions:
  receive: {{kind: trigger}}
  relay: {{kind: action}}
  answer: {{kind: action}}
"""
CODE = """\
from headrace.sdk import Component, Context

component = Component()


@component.trigger
async def receive(body: bytes) -> bytes:
    return body


@component.action
async def relay(body: bytes) -> bytes:
    return body


@component.action
async def answer(body: bytes, ctx: Context) -> None:
    await ctx.reply(body)
"""
FLOW = """\
name: {name}
type: realtime
reply_timeout: 30s
steps:
  receive: {{component: ., function: receive, to: [relay]}}
  relay: {{component: ., function: relay, to: [answer]}}
  answer: {{component: ., function: answer}}
"""
RELAY = "relay"


@contextlib.asynccontextmanager
async def bench_flow(client: AsyncClient) -> AsyncIterator[flow_pb2.FlowStatus]:
    """Runs the flow; at the end, also after an interrupt, neither flow nor component is left."""
    name = f"bench-{secrets.token_hex(4)}"
    try:
        with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
            for file, text in (("component.yaml", MANIFEST), ("component.py", CODE), ("flow.yaml", FLOW)):
                (Path(folder) / file).write_text(text.format(name=name) if file == "flow.yaml" else text)
            (Path(folder) / ".headraceignore").write_text("flow.yaml\n")
            ran = await client.run(folder)
        yield ran.status
    finally:
        with contextlib.suppress(HeadraceError):
            await client.stop(name, drop=True)
        with contextlib.suppress(HeadraceError):
            await client.discard_dead_letters(name, all_letters=True)
        with contextlib.suppress(HeadraceError):
            await client.delete_flow(name)
        with contextlib.suppress(HeadraceError):  # another bench may use it
            for revision in await client.list_revisions(COMPONENT):
                await client.delete_revision(COMPONENT, revision.number)
