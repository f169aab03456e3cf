"""Holds each message for `seconds` (0.05 unless configured), then passes it on unchanged."""

import asyncio

from headrace.sdk import Component, Context

component = Component()


@component.action
async def work(order: dict, ctx: Context) -> None:  # type: ignore[type-arg]
    await asyncio.sleep(float(ctx.config.get("seconds", 0.05)))  # tidy: pace
    await ctx.emit(order)
