"""Holds each message for `seconds`, writes down that this code handled it, and passes it on."""

import asyncio
from typing import Any

from headrace.sdk import Component, Context

REVISION = "r0"

component = Component()


@component.action
async def work(order: dict[str, Any], ctx: Context) -> None:
    await asyncio.sleep(float(ctx.config.get("seconds", 0.02)))  # tidy: pace
    touch = [ctx.step.step, ctx.step.deployment, REVISION]
    await ctx.emit({**order, "touched": [*order.get("touched", []), touch]})
