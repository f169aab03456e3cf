"""Changing one place of a JSON document, named by a JSON pointer (RFC 6901). Pure."""

from __future__ import annotations

import re
from typing import Any

from headrace.model.errors import InvalidInput

_INDEX = re.compile("0|[1-9][0-9]*")


def set_at(document: Any, pointer: str, value: Any) -> Any:
    """The document with `value` at `pointer`: a member that is there or is made, an item that is there, or `-` for one
    more at the end of a list. InvalidInput where the way to it is not there."""
    if pointer == "":
        return value
    if not pointer.startswith("/"):
        raise _bad(pointer, "is not a JSON pointer", "Begin with a slash: /order/total")
    *way, last = [token.replace("~1", "/").replace("~0", "~") for token in pointer[1:].split("/")]
    place = document
    for token in way:
        place = _step(place, token, pointer)
    if isinstance(place, dict):
        place[last] = value
    elif isinstance(place, list) and last == "-":
        place.append(value)
    elif isinstance(place, list) and _INDEX.fullmatch(last) and int(last) < len(place):
        place[int(last)] = value
    else:
        raise _bad(pointer, f"leads nowhere at {last!r}")
    return document


def _step(place: Any, token: str, pointer: str) -> Any:
    if isinstance(place, dict) and token in place:
        return place[token]
    if isinstance(place, list) and _INDEX.fullmatch(token) and int(token) < len(place):
        return place[int(token)]
    raise _bad(pointer, f"leads nowhere at {token!r}")


def _bad(pointer: str, problem: str, next_step: str = "Look at the body: headrace dead-letters show") -> InvalidInput:
    return InvalidInput.at("set", pointer, problem, next_step=next_step, reason="BAD_POINTER")
