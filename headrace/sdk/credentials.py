"""Credentials as the contract hands them over."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from headrace.sdk.context import NO_CREDENTIALS
from headrace.sdk.errors import DefinitionError


def read_credentials(text: str) -> Mapping[str, Any]:
    """The fields of a `credentials_json`, read-only; DefinitionError, which shows none of it, where it is none."""
    if not text:
        return NO_CREDENTIALS
    try:
        return MappingProxyType(msgspec.json.decode(text, type=dict[str, Any]))
    except msgspec.MsgspecError:
        raise DefinitionError("credentials_json is not a JSON object") from None
