"""Pages of a list (AIP-158): sizes and opaque tokens."""

from __future__ import annotations

import base64
import binascii

from headrace.model.errors import InvalidInput

DEFAULT_PAGE = 100
MAX_PAGE = 1000


def page_limit(page_size: int) -> int:
    """0 means the default, more than the maximum means the maximum; InvalidInput below 0."""
    if page_size < 0:
        raise InvalidInput.at("page_size", page_size, "is negative", next_step=f"Use 0 to {MAX_PAGE}")
    return min(page_size or DEFAULT_PAGE, MAX_PAGE)


def encode_token(kind: str, last: str) -> str:
    """A token that goes on behind `last`."""
    return base64.urlsafe_b64encode(f"{kind}:{last}".encode()).decode().rstrip("=")


def decode_token(kind: str, token: str) -> str:
    """What `encode_token` was given, empty for an empty token; InvalidInput for a foreign one."""
    if not token:
        return ""
    try:
        padded = token + "=" * (-len(token) % 4)
        found, _, last = base64.b64decode(padded, altchars=b"-_", validate=True).decode().partition(":")
    except (ValueError, binascii.Error):
        found, last = "", ""
    if found != kind or not last:
        raise InvalidInput.at(
            "page_token", token, "is not a token of this list", next_step="Pass next_page_token on unchanged"
        )
    return last
