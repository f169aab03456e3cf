"""Prices an order, in whole cents: every rounding is half up, once per line."""

from typing import Literal

import msgspec
from catalogue import ARTICLES, COUPONS, FREE_SHIPPING_FROM_CENTS, QUANTITY_DISCOUNTS, SHIPPING_CENTS, TAX_RATES

from headrace.sdk import Component, ComponentError

REVISION = "price-r1"

component = Component()


class Customer(msgspec.Struct):
    id: str
    name: str


class Line(msgspec.Struct):
    sku: str
    quantity: int


class Order(msgspec.Struct):
    order_id: str
    customer: Customer
    currency: Literal["EUR", "USD"]
    country: Literal["DE", "AT", "FR", "SE", "US"]
    lines: list[Line]
    coupon: str = ""
    note: str = ""


class PricedLine(msgspec.Struct):
    sku: str
    quantity: int
    unit_cents: int
    discount_cents: int
    net_cents: int
    tax_cents: int


class Priced(msgspec.Struct):
    order_id: str
    customer: Customer
    currency: str
    lines: list[PricedLine]
    net_cents: int
    shipping_cents: int
    tax_cents: int
    total_cents: int
    note: str
    revision: str


def share(cents: int, hundredths_of_percent: int) -> int:
    """That share of an amount, rounded half up to a cent."""
    return (cents * hundredths_of_percent + 5_000) // 10_000


def price_line(line: Line, order: Order) -> PricedLine:
    article = ARTICLES.get(line.sku)
    if article is None:
        raise ComponentError("UNKNOWN_SKU", f"{line.sku!r} is not in the catalogue", status=422)
    if line.quantity <= 0:
        raise ComponentError("BAD_QUANTITY", f"{line.sku}: quantity {line.quantity} is not positive", status=422)
    unit = article.eur_cents if order.currency == "EUR" else article.usd_cents
    gross = unit * line.quantity
    off = share(gross, next((rate for least, rate in QUANTITY_DISCOUNTS if line.quantity >= least), 0))
    off += share(gross - off, COUPONS[order.coupon]) if order.coupon else 0
    net = gross - off
    tax = share(net, TAX_RATES[order.country][article.tax_class])
    return PricedLine(line.sku, line.quantity, unit, off, net, tax)


@component.action
async def price(order: Order) -> Priced:
    if not order.lines:
        raise ComponentError("EMPTY_ORDER", f"order {order.order_id} has no lines", status=422)
    if order.coupon and order.coupon not in COUPONS:
        raise ComponentError("UNKNOWN_COUPON", f"coupon {order.coupon!r} is not known", status=422)
    lines = [price_line(line, order) for line in order.lines]
    net = sum(line.net_cents for line in lines)
    shipping = 0 if net >= FREE_SHIPPING_FROM_CENTS else SHIPPING_CENTS[order.currency]
    tax = sum(line.tax_cents for line in lines) + share(shipping, TAX_RATES[order.country]["standard"])
    return Priced(
        order_id=order.order_id,
        customer=order.customer,
        currency=order.currency,
        lines=lines,
        net_cents=net,
        shipping_cents=shipping,
        tax_cents=tax,
        total_cents=net + shipping + tax,
        note=order.note,
        revision=REVISION,
    )
