"""What is sold, and for how much: cents per currency, and the tax class."""

from typing import NamedTuple


class Article(NamedTuple):
    eur_cents: int
    usd_cents: int
    tax_class: str


ARTICLES = {
    "BOLT-M6": Article(12, 14, "standard"),
    "BOLT-M8": Article(19, 22, "standard"),
    "NUT-M6": Article(7, 9, "standard"),
    "GEAR-20T": Article(1_849, 1_999, "standard"),
    "PUMP-HX2": Article(128_995, 139_900, "standard"),
    "VALVE-3/4": Article(4_215, 4_575, "standard"),
    "SEAL-KIT": Article(3_333, 3_666, "standard"),
    "TURBINE-S": Article(1_249_900, 1_349_900, "standard"),
    "MANUAL-DE": Article(2_490, 2_790, "reduced"),
    "MANUAL-日本": Article(2_995, 3_295, "reduced"),
    "HONEY-500G": Article(795, 895, "reduced"),
    "GIFT-CARD": Article(5_000, 5_000, "none"),
}

# Tax in hundredths of a percent, by country of delivery and tax class.
TAX_RATES = {
    "DE": {"standard": 1_900, "reduced": 700, "none": 0},
    "AT": {"standard": 2_000, "reduced": 1_000, "none": 0},
    "FR": {"standard": 2_000, "reduced": 550, "none": 0},
    "SE": {"standard": 2_500, "reduced": 600, "none": 0},
    "US": {"standard": 0, "reduced": 0, "none": 0},
}

# From this quantity on, this discount on the line, in hundredths of a percent; highest first.
QUANTITY_DISCOUNTS = ((500, 1_500), (100, 1_000), (10, 500))

# Discount on what a line costs after its quantity discount, in hundredths of a percent.
COUPONS = {"WELCOME10": 1_000, "SPRING": 333}

FREE_SHIPPING_FROM_CENTS = 10_000
SHIPPING_CENTS = {"EUR": 490, "USD": 790}
