"""How the broker keeps a flow's messages: the one home of what every such stream has in common (DESIGN section 4)."""

from __future__ import annotations

from collections.abc import Iterable

from headrace.model import subjects

DUPLICATE_WINDOW_S = 120
NANOS = 1_000_000_000


def flow_stream_config(
    name: str,
    listed: Iterable[str],
    *,
    max_waiting: int,
    copies: int = 1,
    duplicate_window_s: float = DUPLICATE_WINDOW_S,
) -> dict[str, object]:
    """Config of a work queue that holds the `listed` subjects: each a bounded queue of `max_waiting` messages, beyond
    which a publish is refused; ids are known for `duplicate_window_s`."""
    return {
        "name": name,
        "subjects": tuple(listed),
        "retention": "workqueue",
        "storage": "file",
        "discard": "new",
        "discard_new_per_subject": True,
        # Owners of slots store outputs with a cursor that replaces the one before, in one batch.
        "allow_atomic": True,
        "allow_rollup_hdrs": True,
        "max_msgs_per_subject": max_waiting,
        "duplicate_window": int(duplicate_window_s * NANOS),
        "num_replicas": copies,
    }


def ingress_transform(workspace: str, flow: str, owner: str) -> dict[str, str]:
    """The stream's `subject_transform` by which the broker gives what comes in to its owner, as it stores it."""
    return {
        "src": subjects.ingress_filter(workspace, flow),
        "dest": subjects.transform_destination(workspace, flow, owner),
    }
