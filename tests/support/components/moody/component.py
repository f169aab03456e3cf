"""Does what its messages say, `{"do": {STEP: ...}, "file": ...}`, while the file is there."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from headrace.sdk import Component, ComponentError, Context, Rebound

component = Component()


@component.init
async def init(config: dict[str, Any]) -> None:
    if config.get("hold"):
        await until_gone(config["hold"])
    if Path(config.get("crash", "/nowhere")).exists():
        asyncio.get_running_loop().call_later(0.1, os._exit, 9)
    if Path(config.get("broken", "/nowhere")).exists():
        raise RuntimeError("no licence")


@component.action
async def work(body: dict[str, Any], ctx: Context) -> dict[str, Any]:
    if not Path(body.get("file", "/nowhere")).exists():
        return body
    match body.get("do", {}).get(ctx.step.step):
        case "wait":
            await until_gone(body["file"])
        case "slow":
            await asyncio.sleep(1.0)  # tidy: pace
        case "block":
            until_gone_at_once(body["file"])
        case "die":
            os._exit(7)
        case "fail":
            raise ComponentError("SHAKY", "not today", retryable=True)
        case "refused":
            raise ComponentError("HTTP_401", "401 Unauthorized: bad token", retryable=True)
        case "later":
            raise Rebound("not yet", delay_s=4)
        case "reject":
            raise ComponentError("NO_PRICE", "it has no price")
    return body


@component.action
def last(body: dict[str, Any], ctx: Context) -> None:
    """In a thread."""
    if body.get("do", {}).get(ctx.step.step) == "wait":
        until_gone_at_once(body["file"])


async def until_gone(file: str) -> None:
    while Path(file).exists():  # noqa: ASYNC110
        await asyncio.sleep(0.02)  # tidy: pace


def until_gone_at_once(file: str) -> None:
    while Path(file).exists():
        time.sleep(0.02)  # tidy: pace
