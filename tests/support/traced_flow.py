"""A flow of three steps whose traces are looked at: webhook `receive` → `price` → `answer`, each a component."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.cli.http_caller import HttpAnswer, HttpConnection, HttpRequest
from tests.support.commands import ROOT, headrace
from tests.support.mesh import RunningMesh

CODE = """
import asyncio
from headrace.sdk import Component, ComponentError, Context

component = Component()


@component.action
async def price(order: dict, ctx: Context) -> None:
    if ctx.message.attempt <= order.get("fail", 0):
        raise ComponentError("NO_PRICE", "no price yet", retryable=True)
    await asyncio.sleep(order.get("wait", 0.001))  # tidy: pace
    await ctx.emit({**order, "baggage": ctx.message.baggage, "traceparent": ctx.message.traceparent})


@component.action
async def answer(order: dict, ctx: Context) -> None:
    if ctx.message.wants_reply:
        await ctx.reply(order)
"""


@dataclass(frozen=True)
class TracedFlow:
    """`components`: the `service.name` of each step."""

    name: str
    mesh: RunningMesh
    components: dict[str, str]

    @classmethod
    def start(cls, mesh: RunningMesh, folder: Path, name: str, head: str = "reply_timeout: 10s") -> TracedFlow:
        components = {step: f"{name}-{step}" for step in ("price", "answer")}
        for step, component in components.items():
            (folder / step).mkdir(parents=True)
            manifest = f"name: {component}\nfunctions: {{{step}: {{kind: action}}}}\n"
            (folder / step / "component.yaml").write_text(manifest)
            unwanted = "answer" if step == "price" else "price"
            begin, end = CODE.index(f"@component.action\nasync def {unwanted}"), len(CODE)
            if unwanted == "price":
                end = CODE.index("@component.action\nasync def answer")
            (folder / step / "component.py").write_text(CODE[:begin] + CODE[end:])
        (folder / "flow.yaml").write_text(
            f"name: {name}\ntype: realtime\n{head}\nsteps:\n"
            f"  receive: {{component: {ROOT / 'components' / 'webhook'}, function: receive, to: [price]}}\n"
            "  price: {component: ./price, to: [answer], retry: {attempts: 3, backoff: 20ms}}\n"
            "  answer: {component: ./answer}\n"
        )
        headrace("flow", "apply", folder / "flow.yaml", "--run", data=mesh.data).ok()
        return cls(name, mesh, {"receive": "webhook", **components})

    def post(self, body: dict[str, Any] | None = None, **headers: str) -> HttpAnswer:
        """The answer, with this caller's own clock in it; header names are given with `_` for `-`."""
        host, _, port = self.mesh.gateway.rpartition(":")
        given = {"content-type": "application/json"} | {key.replace("_", "-"): value for key, value in headers.items()}
        connection = HttpConnection(host, int(port), timeout_s=20.0)
        try:
            return connection.call(HttpRequest(f"/hook/{self.name}", json.dumps(body or {}).encode(), given))
        finally:
            connection.close()


LISTENER = """
from headrace.sdk import Component, Context

component = Component()


@component.listener
async def listen(ctx: Context) -> None:
    await ctx.emit({"n": 1}, source_id="1", headers={"traceparent": ctx.config["traceparent"], "baggage": "a=b"})
    await ctx.draining.wait()
"""


def start_without_callers(mesh: RunningMesh, folder: Path, answer: Path, traceparent: str) -> None:
    """Two flows that nobody calls: `ticking` (timer → a keyed step) and `heard` (a listener that emits once → both ways
    to the same component)."""
    (folder / "ear").mkdir(parents=True)
    config = "{type: object, properties: {traceparent: {type: string}}}"
    manifest = f"name: ear\nfunctions: {{listen: {{kind: listener, config: {config}}}}}\n"
    (folder / "ear" / "component.yaml").write_text(manifest)
    (folder / "ear" / "component.py").write_text(LISTENER)
    (folder / "ticking.yaml").write_text(
        "name: ticking\ntype: realtime\nsteps:\n"
        f"  tick: {{component: {ROOT / 'components' / 'timer'}, function: tick, every: 200ms, to: [answer]}}\n"
        f"  answer: {{component: {answer}, key: 'body:/every', slots: 2}}\n"
    )
    (folder / "heard.yaml").write_text(
        "name: heard\ntype: realtime\nsteps:\n"
        f"  listen: {{component: ./ear, config: {{traceparent: {traceparent}}}, to: [left, right]}}\n"
        f"  left: {{component: {answer}, function: answer}}\n  right: {{component: {answer}, function: answer}}\n"
    )
    for name in ("ticking", "heard"):
        headrace("flow", "apply", folder / f"{name}.yaml", "--run", data=mesh.data).ok()
