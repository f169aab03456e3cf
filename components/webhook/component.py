"""Starts an execution from an HTTP request: body, headers and content type go on as they came."""

from headrace.sdk import Component, Context

component = Component()


@component.trigger
async def receive(body: bytes, ctx: Context) -> None:
    message = ctx.message
    await ctx.emit(body, headers=message.headers, content_type=message.content_type)
