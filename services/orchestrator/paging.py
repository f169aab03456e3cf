"""Pages of a sorted list (AIP-158): the token is opaque to callers and holds the last key shown."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import TypeVar

from headrace.model.errors import InvalidInput

DEFAULT_PAGE = 100
MAX_PAGE = 1000
T = TypeVar("T")


def page_of(items: Sequence[T], key: Callable[[T], str], page_size: int, page_token: str) -> tuple[list[T], str]:
    """The page after the token and the next token (empty at the end); items sorted by `key`."""
    if page_size < 0:
        raise InvalidInput.at("page_size", page_size, "is negative")
    size = min(page_size or DEFAULT_PAGE, MAX_PAGE)
    after = _decode(page_token)
    rest = [item for item in sorted(items, key=key) if not page_token or key(item) > after]
    page = rest[:size]
    more = len(rest) > size
    return page, base64.urlsafe_b64encode(key(page[-1]).encode()).decode() if more else ""


def _decode(token: str) -> str:
    try:
        return base64.urlsafe_b64decode(token.encode()).decode()
    except (binascii.Error, ValueError) as error:
        raise InvalidInput.at("page_token", token, "is not a page token", next_step="Begin without one") from error
