"""JSONata expressions of edges: their bounds, and whether they can be parsed.

Nothing is evaluated here: that is done beside the sidecar, in a process of its own (`services/sidecar/evaluator`).
jsonata-python is imported when there is an expression to look at.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Any

MAX_EXPRESSION_CHARACTERS = 8 * 1024
MAX_FLOW_EXPRESSIONS = 64 * 1024
"""Characters of all expressions of a flow together."""
CODE = "EXPRESSION_FAILED"
"""What a message is given up with when an expression fails on it."""
_SHOWN = 160


def load_jsonata() -> Any:
    """The class `Jsonata`. Its module raises the recursion limit of the whole process: that is taken back."""
    limit = sys.getrecursionlimit()
    try:
        from jsonata import Jsonata
    finally:
        sys.setrecursionlimit(limit)
    return Jsonata


@lru_cache(maxsize=512)
def syntax_problem(source: str) -> str:
    """What is wrong with an expression, with the place in it; empty when it can be parsed."""
    if not source.strip():
        return "is empty"
    if len(source) > MAX_EXPRESSION_CHARACTERS:
        return f"has {len(source)} characters, more than {MAX_EXPRESSION_CHARACTERS}"
    jsonata = load_jsonata()
    try:
        jsonata(source)
    except RecursionError:
        return f"{shown(source)} is nested too deeply"
    except Exception as error:  # whatever a parser meets in what a person wrote
        text, position = reason_of(error)
        return f"{shown(source)} is no JSONata: {text}{place_words(source, position)}"
    return ""


def reason_of(error: BaseException) -> tuple[str, int]:
    """What the library says, and at which character of the expression (from 1; 0: it does not say)."""
    text = " ".join(str(error).split()) or type(error).__name__
    if type(error).__name__ != "JException":
        text = f"{type(error).__name__}: {text}"
    position = getattr(error, "location", 0)
    return text[:500], position if isinstance(position, int) and position > 0 else 0


def place_words(source: str, position: int) -> str:
    """` (at character 12)`, or with several lines ` (at line 2, character 5)`; empty for position 0."""
    if position <= 0:
        return ""
    before = source[: position - 1]
    line = before.count("\n") + 1
    if "\n" not in source.strip():
        return f" (at character {position})"
    return f" (at line {line}, character {len(before) - (before.rfind(chr(10)) + 1) + 1})"


def shown(source: str) -> str:
    """The expression as errors quote it: one line, shortened."""
    text = " ".join(source.split())
    return f"`{text if len(text) <= _SHOWN else text[: _SHOWN - 3] + '...'}`"
