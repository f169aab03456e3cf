"""Code blocks of docs/components.md, so that tests run what the guide shows."""

from __future__ import annotations

import re
from pathlib import Path

GUIDE = Path(__file__).parents[2] / "docs" / "components.md"


def guide_block(containing: str) -> str:
    """The first code block that contains a text; the text ends at a line's end."""
    found: list[str] = re.findall(r"```\w+\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.S)
    return next(text for text in found if f"{containing}\n" in text)
