"""Reasons of dead letters that steps write, as a metric may tell of them: ours by name, components' own as one."""

from __future__ import annotations

from headrace.model.retry_codes import OUTSIDE_THE_POLICY

OWN_REASONS = frozenset(
    {
        *OUTSIDE_THE_POLICY,
        "COMPONENT_ERROR",
        "DEPLOYMENT_RETIRED",
        "SNAPSHOT_CONFLICT",
        "SNAPSHOT_REFUSED",
        "TIMEOUT",
        # What outputs with attachments fail for.
        "ATTACHMENT_DAMAGED",
        "ATTACHMENT_GONE",
        "ATTACHMENT_TOO_LARGE",
        "UPLOAD_TOO_SLOW",
    }
)
"""What the mesh itself gives messages up with. A component that raises one of these codes counts under it."""

OTHER_REASONS = "component"
"""Every code that a component made up: there may be any number of them. Lower case, so that no code is the same."""

COUNTED_AS = "dead_lettered."
"""What the counter of a reason begins with."""


def reason_label(reason: str) -> str:
    """The reason as a value of a metric's label: one of a fixed few."""
    return reason if reason in OWN_REASONS else OTHER_REASONS


def reason_counter(reason: str) -> str:
    """The counter of an instance that counts letters with this reason."""
    return COUNTED_AS + reason_label(reason)
