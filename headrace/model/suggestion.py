"""What a person probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from typing import Any


def did_you_mean(word: str, known: Collection[Any]) -> str:
    """A question that names the known word nearest to the one given; empty where none is near."""
    close = difflib.get_close_matches(word, [str(name) for name in known], n=1, cutoff=0.6)
    return f"Did you mean `{close[0]}`?" if close else ""
