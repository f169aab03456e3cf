"""Takes `/hook/<flow>[/suffix]` apart."""

from __future__ import annotations

import re

from headrace.model.names import NAME_PATTERN
from services.gateway.domain import refusals

_HOOK = re.compile(rf"/hook/({NAME_PATTERN})(/[\x21-\x7e]*)?")


def parse_hook_path(raw_path: str) -> tuple[str, str]:
    """Flow and suffix. The suffix keeps its leading slash and its percent-encoding, so that it can hold no
    control characters; it is empty when there is none. Refusal 404 for any other path."""
    match = _HOOK.fullmatch(raw_path)
    if match is None:
        raise refusals.not_found(raw_path)
    return match[1], match[2] or ""
