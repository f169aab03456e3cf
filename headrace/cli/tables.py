"""Tables and small values as text: aligned columns, no colour, so that a file or a pipe gets the same."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence


def table(headings: Sequence[str], rows: Sequence[Sequence[object]], *, indent: str = "") -> str:
    """Lines of aligned columns; a column of numbers is aligned to the right."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [
        max([display_width(heading), *(display_width(row[index]) for row in texts)])
        for index, heading in enumerate(headings)
    ]
    numeric = [all(_is_number(row[index]) for row in texts) for index in range(len(headings))]
    numeric = [found and any(row[index].strip("-") for row in texts) for index, found in enumerate(numeric)]

    def line(cells: Sequence[str]) -> str:
        padded = []
        for cell, width, right in zip(cells, widths, numeric, strict=True):
            space = " " * (width - display_width(cell))
            padded.append(space + cell if right else cell + space)
        return (indent + "  ".join(padded)).rstrip()

    return "\n".join([line(list(headings)), *(line(row) for row in texts)])


def display_width(text: str) -> int:
    """Columns on a terminal: wide characters take two, combining ones none."""
    return sum(
        0 if unicodedata.combining(sign) else 2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in text
    )


def byte_size(count: int) -> str:
    """`512 B`, `3.4 KiB`, `1.2 MiB`."""
    if count < 1024:
        return f"{count} B"
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1024:.1f} KiB"


def short_digest(digest: str) -> str:
    """First 12 hex digits."""
    return digest.removeprefix("sha256:")[:12]


def _is_number(text: str) -> bool:
    return not text or text == "-" or text.replace(".", "", 1).replace(",", "").lstrip("-").isdigit()
