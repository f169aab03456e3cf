"""The whole table."""

from __future__ import annotations

from tests.bad_inputs import components, credentials, flows, http, mesh, state
from tests.bad_inputs.row import Row, Section

SECTIONS: tuple[Section, ...] = (
    flows.SECTION,
    components.SECTION,
    state.SECTION,
    credentials.SECTION,
    mesh.SECTION,
    http.SECTION,
)


def rows_of(section: Section) -> list[Row]:
    """The rows that are tried against the shared mesh."""
    return [row for row in section.rows if not row.shown_by]
