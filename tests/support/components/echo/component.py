"""Replies what it got, with the code that it is and the deployment that it runs in."""

from typing import Any

from headrace.sdk import Component, Context

component = Component()


@component.action
async def echo(body: Any, ctx: Context) -> None:
    await ctx.reply({"code": 1, "body": body, "deployment": ctx.step.deployment})
