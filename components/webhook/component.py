"""Starts an execution from an HTTP request: body, headers, content type and files go on as they came."""

from headrace.sdk import Component, Context

component = Component()


@component.trigger
async def receive(ctx: Context) -> None:
    message = ctx.message
    # A large body goes on by reference: its bytes do not come here.
    body = message.as_attachment() or message.body
    headers, files = message.headers, message.attachments
    await ctx.emit(body, headers=headers, content_type=message.content_type, attachments=files)
