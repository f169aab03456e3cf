"""Makes orders.jsonl: what a shop's orders look like, odd ones included. The same every time (seeded).

    python examples/orders/generate_orders.py

One order a line: `{"id", "headers", "body"}`. `headers` go with the request; `body` is posted as JSON. A line
with `after` is posted only once the order named there has been answered (it repeats its Idempotency-Key).
"""

import json
import random
from pathlib import Path
from typing import Any

SEED = 20_261
ORDINARY_ORDERS = 200
LARGE_NOTE_BYTES = 300_000

SKUS = [
    "BOLT-M6", "BOLT-M8", "NUT-M6", "GEAR-20T", "PUMP-HX2", "VALVE-3/4", "SEAL-KIT", "TURBINE-S",
    "MANUAL-DE", "MANUAL-日本", "HONEY-500G", "GIFT-CARD",
]  # fmt: skip
CUSTOMERS = [
    ("C-100", "Werk Süd GmbH"), ("C-101", "Zoë Ångström"), ("C-102", "Łukasz Żółć"), ("C-103", "Nguyễn Thị Hòa"),
    ("C-104", "株式会社タービン"), ("C-200", "Jane O'Neill"), ("C-201", "مريم حسن"), ("C-666", "Blocked & Sons"),
]  # fmt: skip
COUNTRIES = ["DE", "DE", "AT", "FR", "SE", "US"]
QUANTITIES = [1, 1, 1, 2, 3, 4, 7, 9, 10, 11, 25, 99, 100, 101, 499, 500, 1_000]
NOTES = ["", "", "", "please ring twice", "línea 2 «rápido»", "🚚 before noon", 'quote " and \\ backslash']


def plain_order(number: int, dice: random.Random) -> dict[str, Any]:
    customer, name = dice.choice(CUSTOMERS)
    lines = [
        {"sku": dice.choice(SKUS), "quantity": dice.choice(QUANTITIES)} for _ in range(dice.choice([1, 1, 2, 3, 5, 8]))
    ]
    body: dict[str, Any] = {
        "order_id": f"O-{number:04d}",
        "customer": {"id": customer, "name": name},
        "currency": dice.choice(["EUR", "EUR", "USD"]),
        "country": dice.choice(COUNTRIES),
        "lines": lines,
    }
    if dice.random() < 0.2:
        body["coupon"] = dice.choice(["WELCOME10", "SPRING"])
    if note := dice.choice(NOTES):
        body["note"] = note
    return body


def small_order(order_id: str, *lines: tuple[str, Any], **changes: Any) -> dict[str, Any]:
    body = {
        "order_id": order_id,
        "customer": {"id": "C-100", "name": "Werk Süd GmbH"},
        "currency": "EUR",
        "country": "DE",
        "lines": [{"sku": sku, "quantity": quantity} for sku, quantity in lines],
    }
    body.update(changes)
    return {"id": order_id, "headers": {}, "body": body}


def odd_orders() -> list[dict[str, Any]]:
    bolt = ("BOLT-M6", 1)
    large = "".join(chr(0x20 + (i * 7) % 0x5F) for i in range(LARGE_NOTE_BYTES))
    no_lines = small_order("X-no-lines-field", bolt)
    del no_lines["body"]["lines"]
    return [
        small_order("X-unknown-sku", ("BOLT-M7", 5)),
        small_order("X-unknown-sku-second", bolt, ("Ø-RING", 1)),
        small_order("X-zero", ("NUT-M6", 0)),
        small_order("X-negative", bolt, ("GEAR-20T", -3)),
        small_order("X-empty", lines=[]),
        no_lines,
        small_order("X-coupon", bolt, coupon="WINTER"),
        small_order("X-currency", bolt, currency="GBP"),
        small_order("X-country", bolt, country="XX"),
        small_order("X-text-quantity", ("BOLT-M6", "3")),
        small_order("X-half-quantity", ("BOLT-M6", 1.5)),
        {"id": "X-not-an-object", "headers": {}, "body": "an order, please"},
        {"id": "X-list", "headers": {}, "body": [1, 2, 3]},
        small_order("X-large", ("TURBINE-S", 1), note=large, customer={"id": "C-104", "name": "株式会社タービン"}),
        small_order("X-many-lines", *[(SKUS[i % len(SKUS)], 1 + i % 4) for i in range(120)]),
        small_order("X-many-pieces", ("NUT-M6", 2_000_000)),
        small_order("X-free-shipping-edge", ("GIFT-CARD", 2)),
        small_order("X-shipping-edge", ("GIFT-CARD", 1), ("SEAL-KIT", 1)),
        small_order("X-stock-edge", ("TURBINE-S", 3), customer={"id": "C-104", "name": "株式会社タービン"}),
        small_order("X-stock-split", ("TURBINE-S", 2), ("TURBINE-S", 2), customer={"id": "C-104", "name": "株"}),
        small_order("X-no-credit", ("NUT-M6", 1), customer={"id": "C-103", "name": "Nguyễn Thị Hòa"}),
        small_order("X-extra-field", bolt, reference="not known to price"),
    ]


def repeated_orders() -> list[dict[str, Any]]:
    first = small_order("R-first", ("VALVE-3/4", 2)) | {"headers": {"Idempotency-Key": "orders-example-1"}}
    refused = small_order("R-refused", ("BOLT-M7", 2)) | {"headers": {"Idempotency-Key": "orders-example-2"}}
    return [
        first,
        first | {"id": "R-again", "after": "R-first"},
        first | {"id": "R-once-more", "after": "R-again"},
        refused,
        refused | {"id": "R-refused-again", "after": "R-refused"},
    ]


def main() -> None:
    dice = random.Random(SEED)  # noqa: S311
    orders = []
    for number in range(1, ORDINARY_ORDERS + 1):
        body = plain_order(number, dice)
        orders.append({"id": body["order_id"], "headers": {}, "body": body})
    orders += odd_orders()
    dice.shuffle(orders)
    orders += repeated_orders()
    path = Path(__file__).with_name("orders.jsonl")
    path.write_text("".join(json.dumps(order, ensure_ascii=False) + "\n" for order in orders), encoding="utf-8")
    print(f"{path.name}: {len(orders)} orders")


if __name__ == "__main__":
    main()
