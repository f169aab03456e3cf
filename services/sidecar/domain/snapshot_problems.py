"""What a save that is refused does to its call: a conflict may be mended by another attempt, anything else not."""

from __future__ import annotations

from headrace.model.step_snapshot import MAX_SAVES, SnapshotError
from services.sidecar.domain.delivery import Problem

CONFLICT = "SNAPSHOT_CONFLICT"
REFUSED = "SNAPSHOT_REFUSED"
TOO_MANY = Problem(REFUSED, f"more than {MAX_SAVES} saves of the snapshot in one call")
NEEDS_KEY = Problem(
    REFUSED,
    "a step with `exactly_once` and no `key` counts every message as a key of its own, so it has no snapshot to keep; "
    "give it a `key`, or take `exactly_once` out",
)


def problem_of(error: SnapshotError) -> Problem:
    """How its call fails."""
    return Problem(CONFLICT if error.conflict else REFUSED, str(error))
