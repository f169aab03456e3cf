"""Does what its messages say: `{"do": ..., "file": ...}`; what waits goes on when the file is gone."""

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


@component.action
async def work(body: dict[str, Any], ctx: Context) -> dict[str, Any]:
    match body.get("do"):
        case "wait":
            await until_gone(body["file"])
        case "block":
            until_gone_at_once(body["file"])
        case "die":
            os._exit(7)
        case "fail" if Path(body["file"]).exists():
            raise ComponentError("SHAKY", "not today", retryable=True)
        case "refused" if Path(body["file"]).exists():
            raise ComponentError("HTTP_401", "401 Unauthorized: bad token", retryable=True)
        case "later" if Path(body["file"]).exists():
            raise Rebound("not yet", delay_s=4)
        case "reject":
            raise ComponentError("NO_PRICE", "it has no price")
    return body


@component.action
def last(body: dict[str, Any], ctx: Context) -> None:
    """In a thread."""
    if body.get("last") == "wait":
        until_gone_at_once(body["file"])


async def until_gone(file: str) -> None:
    while Path(file).exists():  # noqa: ASYNC110
        await asyncio.sleep(0.02)  # tidy: pace


def until_gone_at_once(file: str) -> None:
    while Path(file).exists():
        time.sleep(0.02)  # tidy: pace
