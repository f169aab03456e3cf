"""Notes each priced order: one line in a file, on its way to the disk before the message counts as done.

A message that is delivered again after a crash makes its line again; `message_id` is the same in both.
"""

import os
from pathlib import Path

import msgspec

from headrace.sdk import Component, Context

REVISION = "notify-r1"

component = Component()
opened: dict[str, int] = {}


class Customer(msgspec.Struct):
    name: str


class Priced(msgspec.Struct):
    order_id: str
    customer: Customer
    currency: str
    total_cents: int
    revision: str


@component.init
def open_file(config: dict[str, str]) -> None:
    path = Path(config["path"])
    path.parent.mkdir(parents=True, exist_ok=True)
    opened["file"] = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)


@component.action
async def notify(order: Priced, ctx: Context) -> None:
    line = {
        "order_id": order.order_id,
        "execution_id": ctx.message.execution_id,
        "message_id": ctx.message.id,
        "attempt": ctx.message.attempt,
        "customer": order.customer.name,
        "currency": order.currency,
        "total_cents": order.total_cents,
        "revisions": {"price": order.revision, "notify": REVISION},
    }
    # One write of one line: whole or not at all, and kept by the system when this process is killed.
    os.write(opened["file"], msgspec.json.encode(line) + b"\n")


@component.close
def close_file() -> None:
    os.close(opened.pop("file"))
