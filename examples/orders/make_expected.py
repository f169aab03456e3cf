"""Makes expected.jsonl from orders.jsonl: what each order must be answered, and what it must leave behind.

    python examples/orders/make_expected.py

A second opinion: it imports nothing of Headrace and shares no code with the components. It computes in exact
decimal fractions of the main unit (euro, dollar) and has its own copy of every table.

One line an order, in the order of orders.jsonl:

    {"id", "status", "answer", "effects", "repeats"}

`answer` is the JSON answer. For a refused order it is `{"error": {"code"[, "message"]}}`: only what stands there
is compared, since the mesh adds the execution id. `effects` are the lines that `notify` must add, without
`execution_id`, `message_id` and `attempt`. `repeats`, where present, names the order whose answer (and
execution) this one gets again; it leaves nothing more behind.
"""

import hashlib
import json
from collections import Counter
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PRICE_REVISION, CHECK_REVISION, NOTIFY_REVISION = "price-r1", "check-r1", "notify-r1"

PRICE_LIST = """
BOLT-M6     0.12      0.14      full
BOLT-M8     0.19      0.22      full
NUT-M6      0.07      0.09      full
GEAR-20T    18.49     19.99     full
PUMP-HX2    1289.95   1399.00   full
VALVE-3/4   42.15     45.75     full
SEAL-KIT    33.33     36.66     full
TURBINE-S   12499.00  13499.00  full
MANUAL-DE   24.90     27.90     low
MANUAL-日本  29.95     32.95     low
HONEY-500G  7.95      8.95      low
GIFT-CARD   50.00     50.00     zero
"""
PRICES = {row.split()[0]: row.split()[1:] for row in PRICE_LIST.strip().splitlines()}
VAT = {
    "DE": {"full": "0.19", "low": "0.07"},
    "AT": {"full": "0.20", "low": "0.10"},
    "FR": {"full": "0.20", "low": "0.055"},
    "SE": {"full": "0.25", "low": "0.06"},
    "US": {},
}
COUPON_SHARE = {"": "0", "WELCOME10": "0.10", "SPRING": "0.0333"}
CREDIT = {"C-100": 50_000, "C-101": 2_500, "C-102": 750, "C-103": 0, "C-104": 200_000}
PIECES = {"TURBINE-S": 3, "PUMP-HX2": 12, "GEAR-20T": 250, "HONEY-500G": 60, "SEAL-KIT": 400}


class Refused(Exception):
    def __init__(self, status: int, code: str, message: str | None = None) -> None:
        super().__init__(code)
        self.status = status
        self.error = {"code": code} if message is None else {"code": code, "message": message}


def cent(amount: Decimal) -> Decimal:
    return amount.quantize(Decimal("0.01"), rounding=ROUND_HALF_UP)


def cents(amount: Decimal) -> int:
    return int(amount * 100)


def check_shape(body: Any) -> None:
    """What `price` cannot even read is refused with 400; which words it says so in is not ours to know."""
    ok = (
        isinstance(body, dict)
        and isinstance(body.get("order_id"), str)
        and isinstance(body.get("customer"), dict)
        and body.get("currency") in ("EUR", "USD")
        and body.get("country") in VAT
        and isinstance(body.get("lines"), list)
        and all(type(line.get("quantity")) is int and isinstance(line.get("sku"), str) for line in body["lines"])
    )
    if not ok:
        raise Refused(400, "BAD_INPUT")


def quantity_share(quantity: int) -> Decimal:
    if quantity >= 500:
        return Decimal("0.15")
    if quantity >= 100:
        return Decimal("0.10")
    return Decimal("0.05") if quantity >= 10 else Decimal(0)


def price(body: dict[str, Any]) -> dict[str, Decimal]:
    if not body["lines"]:
        raise Refused(422, "EMPTY_ORDER", f"order {body['order_id']} has no lines")
    coupon = body.get("coupon", "")
    if coupon not in COUPON_SHARE:
        raise Refused(422, "UNKNOWN_COUPON", f"coupon {coupon!r} is not known")
    net = tax = Decimal(0)
    for line in body["lines"]:
        sku, quantity = line["sku"], line["quantity"]
        if sku not in PRICES:
            raise Refused(422, "UNKNOWN_SKU", f"{sku!r} is not in the catalogue")
        if quantity < 1:
            raise Refused(422, "BAD_QUANTITY", f"{sku}: quantity {quantity} is not positive")
        euro, dollar, tax_class = PRICES[sku]
        amount = Decimal(euro if body["currency"] == "EUR" else dollar) * quantity
        amount -= cent(amount * quantity_share(quantity))
        amount -= cent(amount * Decimal(COUPON_SHARE[coupon]))
        net += amount
        tax += cent(amount * Decimal(VAT[body["country"]].get(tax_class, "0")))
    shipping = Decimal(0)
    if net < 100:
        shipping = Decimal("4.90") if body["currency"] == "EUR" else Decimal("7.90")
        tax += cent(shipping * Decimal(VAT[body["country"]].get("full", "0")))
    return {"net": net, "shipping": shipping, "tax": tax, "total": net + shipping + tax}


def reasons(body: dict[str, Any], total: Decimal) -> list[str]:
    found = []
    customer = body["customer"]["id"]
    if customer == "C-666":
        found.append("CUSTOMER_BLOCKED")
    if total > CREDIT.get(customer, 1_000):
        found.append("CREDIT_EXCEEDED")
    wanted: Counter[str] = Counter()
    for line in body["lines"]:
        wanted[line["sku"]] += line["quantity"]
    return found + [f"OUT_OF_STOCK:{sku}" for sku in sorted(wanted) if sku in PIECES and wanted[sku] > PIECES[sku]]


def expect(order: dict[str, Any]) -> dict[str, Any]:
    body = order["body"]
    try:
        check_shape(body)
        amounts = price(body)
    except Refused as refused:
        return {"status": refused.status, "answer": {"error": refused.error}, "effects": []}
    against = reasons(body, amounts["total"])
    answer = {
        "order_id": body["order_id"],
        "decision": "declined" if against else "accepted",
        "reasons": against,
        "customer": body["customer"]["name"],
        "currency": body["currency"],
        "net_cents": cents(amounts["net"]),
        "shipping_cents": cents(amounts["shipping"]),
        "tax_cents": cents(amounts["tax"]),
        "total_cents": cents(amounts["total"]),
        "note_sha256": hashlib.sha256(body.get("note", "").encode()).hexdigest(),
        "revisions": {"price": PRICE_REVISION, "check": CHECK_REVISION},
    }
    effect = {
        "order_id": body["order_id"],
        "customer": body["customer"]["name"],
        "currency": body["currency"],
        "total_cents": cents(amounts["total"]),
        "revisions": {"price": PRICE_REVISION, "notify": NOTIFY_REVISION},
    }
    return {"status": 200, "answer": answer, "effects": [effect]}


def main() -> None:
    lines = []
    first_with_key: dict[str, str] = {}
    for text in (HERE / "orders.jsonl").read_text(encoding="utf-8").splitlines():
        order = json.loads(text)
        expected = {"id": order["id"], **expect(order)}
        key = order["headers"].get("Idempotency-Key")
        if key in first_with_key:
            expected |= {"repeats": first_with_key[key], "effects": []}
        elif key:
            first_with_key[key] = order["id"]
        lines.append(json.dumps(expected, ensure_ascii=False) + "\n")
    (HERE / "expected.jsonl").write_text("".join(lines), encoding="utf-8")
    print(f"expected.jsonl: {len(lines)} answers")


if __name__ == "__main__":
    main()
