"""Accepts or declines a priced order by static tables, and answers the caller."""

from hashlib import sha256
from typing import Any

import msgspec

from headrace.sdk import Component, Context

REVISION = "check-r1"

# What a customer may owe, in cents of the order's currency. Who is not listed has the default.
CREDIT_CENTS = {"C-100": 5_000_000, "C-101": 250_000, "C-102": 75_000, "C-103": 0, "C-104": 20_000_000}
DEFAULT_CREDIT_CENTS = 100_000
BLOCKED_CUSTOMERS = {"C-666"}

# Pieces in stock. What is not listed is made to order and never short.
STOCK = {"TURBINE-S": 3, "PUMP-HX2": 12, "GEAR-20T": 250, "HONEY-500G": 60, "SEAL-KIT": 400}

component = Component()


class Customer(msgspec.Struct):
    id: str
    name: str


class Line(msgspec.Struct):
    sku: str
    quantity: int


class Priced(msgspec.Struct):
    order_id: str
    customer: Customer
    currency: str
    lines: list[Line]
    net_cents: int
    shipping_cents: int
    tax_cents: int
    total_cents: int
    note: str
    revision: str


def reasons_against(order: Priced) -> list[str]:
    reasons = []
    if order.customer.id in BLOCKED_CUSTOMERS:
        reasons.append("CUSTOMER_BLOCKED")
    if order.total_cents > CREDIT_CENTS.get(order.customer.id, DEFAULT_CREDIT_CENTS):
        reasons.append("CREDIT_EXCEEDED")
    ordered: dict[str, int] = {}
    for line in order.lines:
        ordered[line.sku] = ordered.get(line.sku, 0) + line.quantity
    short = sorted(sku for sku, quantity in ordered.items() if quantity > STOCK.get(sku, quantity))
    return reasons + [f"OUT_OF_STOCK:{sku}" for sku in short]


@component.action
async def check(order: Priced, ctx: Context) -> None:
    reasons = reasons_against(order)
    answer: dict[str, Any] = {
        "order_id": order.order_id,
        "decision": "declined" if reasons else "accepted",
        "reasons": reasons,
        "customer": order.customer.name,
        "currency": order.currency,
        "net_cents": order.net_cents,
        "shipping_cents": order.shipping_cents,
        "tax_cents": order.tax_cents,
        "total_cents": order.total_cents,
        "note_sha256": sha256(order.note.encode()).hexdigest(),
        "revisions": {"price": order.revision, "check": REVISION},
    }
    await ctx.reply(answer)
