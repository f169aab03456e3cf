"""Writes docs/errors.md from the table of bad inputs that tests go by; `--check` only says whether it is up to date."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.bad_inputs.row import Row, Section
from tests.bad_inputs.table import SECTIONS
from tools.generated_files import keep

PLACE = Path(__file__).parents[1] / "docs" / "errors.md"
HEADS = ("input", "enters by", "code", "reason", "field", "says", "next step")
INTRODUCTION = """\
# Bad input, and what is answered

<!-- Made by tools/errors_doc.py from the table in tests/bad_inputs; do not edit by hand. -->

Each row is tried by a test: most of them against one running mesh (`tests/e2e/test_bad_inputs.py`), the others where
the last column says. Every error has a gRPC status code, an `ErrorInfo` with a reason (and the next step in its
metadata), a `BadRequest` with path and value where a field is wrong, and a message that names them. After a refusal
nothing half-made stays, no log has a stack trace, and no answer or log has a password. A refusal of much at once
tells as many problems as fit into 8 KiB. The commands print the message and the next step, and end with status 1 (3
where no mesh answers; `--json` gives `{"error": {...}}`).
"""


def render() -> str:
    """The whole document."""
    parts = [INTRODUCTION]
    for section in SECTIONS:
        parts += [f"## {section.title}\n", f"{section.note}\n", *_table(section), ""]
    return "\n".join(parts)


def _table(section: Section) -> list[str]:
    heads = [*HEADS, "tried by"] if any(row.shown_by for row in section.rows) else list(HEADS)
    return [_line(heads), _line(["---"] * len(heads)), *(_line(_cells(row)[: len(heads)]) for row in section.rows)]


def _cells(row: Row) -> list[str]:
    place, _, name = row.shown_by.partition("::")
    return [
        row.what,
        row.door,
        row.code,
        _code(row.reason),
        _code(row.field),
        " … ".join(row.says),
        row.next_step,
        f"[{name.removeprefix('test_').replace('_', ' ')}](../{place})" if name else "",
    ]


def _code(text: str) -> str:
    shown = text if len(text) < 40 else f"{text[:20]}…"
    return f"`{shown}`" if text and text != "-" else text


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    sys.exit(keep(__doc__, "python -m tools.errors_doc", lambda: {PLACE: render()}))
