"""Rows one by one, for lanes that have something to do for each message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headrace.ports import LaneFull, Row


def publish_each(lane: Any, subject: str, rows: Sequence[Row], tell: Any, **options: Any) -> int:
    """What `publish_rows` of the port promises, by `publish_told` of the lane; each row's answer goes to `tell`."""
    for number, (payload, message_id, traceparent, about) in enumerate(rows):
        try:
            lane.publish_told(subject, payload, tell, about, message_id=message_id, traceparent=traceparent, **options)
        except (LaneFull, ValueError):
            return number
    return len(rows)
