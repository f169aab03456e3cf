"""What one row of the table of bad inputs says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """An input, the door at which it enters, and the answer. `docs/errors.md` is made from all of them.

    `give` is the input itself: text of a file, bytes, a function that makes it, or an async function that does the
    deed; each door knows its own. Where trying it takes more than the shared mesh (a broker of its own, a component
    that does its worst), `shown_by` names the test that does: `tests/...py::test_name`.
    """

    id: str
    what: str
    door: str
    code: str
    reason: str
    field: str = ""
    says: tuple[str, ...] = ()
    """Parts of the message."""
    next_step: str = ""
    """Part of the next step."""
    give: Any = None
    shown_by: str = ""


@dataclass(frozen=True)
class Section:
    title: str
    note: str
    rows: tuple[Row, ...]
