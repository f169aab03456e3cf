"""URLs of the broker as they may be shown."""

from __future__ import annotations

import re


def without_password(urls: str) -> str:
    """The URLs without credentials: `nats://***@host:4222`. Also of text that holds such URLs."""
    return re.sub(r"//[^/@,\s]*@", "//***@", urls)
