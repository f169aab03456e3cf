"""`work` fails as its input's headers or body say; `complain` is an error step that does what the failed input says."""

import json
from typing import Any

from headrace.sdk import Component, ComponentError, Context

component = Component()


@component.action
async def work(body: bytes, ctx: Context) -> None:
    wish = json.loads(body) if body.startswith(b"{") else {"code": ctx.message.headers.get("fail", "BROKEN")}
    if "code" in wish:
        status = wish.get("status", 0)
        raise ComponentError(wish["code"], wish.get("text", "as it was told"), retryable="again" in wish, status=status)
    await ctx.emit(wish)


@component.action
async def complain(failure: Any, ctx: Context) -> None:
    """Writes what it got to the file of its config."""
    with open(ctx.config["path"], "a") as file:
        file.write(json.dumps({"id": ctx.message.id, "body": failure, "headers": ctx.message.headers}) + "\n")
    wish = failure["input"] if isinstance(failure["input"], dict) else {}
    if wish.get("handler") == "fails":
        raise ComponentError("HANDLER_BROKEN", "so is the handler", retryable=False)
    if wish.get("handler") == "replies":
        await ctx.reply({"sorry": failure["error"]["code"]}, status=200)
