"""A trigger whose hooks write a line each to the file in its config; with `fail` startup and shutdown raise then."""

import os
from typing import Any

import msgspec

from headrace.sdk import Component, Context

component = Component()
CODE = 1


def note(ctx: Context, hook: str, **more: Any) -> None:
    line = {"hook": hook, "code": CODE, "pid": os.getpid(), "instance": ctx.step.instance, **more}
    with open(ctx.config["path"], "ab", buffering=0) as file:
        os.write(file.fileno(), msgspec.json.encode(line) + b"\n")
    if ctx.config.get("fail") and hook in ("startup", "shutdown"):
        raise RuntimeError("as configured")


@component.init
async def init(ctx: Context) -> None:
    note(ctx, "init")


@component.startup
async def startup(ctx: Context) -> dict[str, str]:
    note(ctx, "startup")
    return {"subscribed": f"{ctx.step.flow}-{ctx.step.deployment}"}


@component.shutdown
def shutdown(ctx: Context) -> None:
    note(ctx, "shutdown", startup=ctx.startup_result)


@component.close
async def close(ctx: Context) -> None:
    note(ctx, "close")


@component.trigger
async def receive(body: Any) -> Any:
    return body
