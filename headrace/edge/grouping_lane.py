"""A JetStream lane that stores the messages of one stream together while many wait (headrace.edge.group_commit).

For brokers that sync every write. Everything else, and what goes to other streams, passes through as it is.
"""

from __future__ import annotations

import asyncio
from typing import Any

from headrace.edge.group_commit import GroupCommit
from headrace.ports import Fence, Stored


class GroupingLane:
    """Has every method of the lane inside. `prefix` is what the subjects of the one stream begin with."""

    def __init__(self, inside: Any, prefix: str) -> None:
        self._inside = inside
        self._prefix = prefix
        self._group = GroupCommit(inside)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inside, name)

    @property
    def outstanding(self) -> int:
        """See the port."""
        return int(self._inside.outstanding) + self._group.waiting

    def publish(
        self,
        subject: str,
        payload: bytes,
        *,
        message_id: str,
        traceparent: str = "",
        fence: Fence | None = None,
        timeout_s: float = 5.0,
    ) -> asyncio.Future[Stored]:
        """See the port. Together with others where the stream is the one, and no fence is asked for."""
        if fence is None and message_id and subject.startswith(self._prefix):
            return self._group.publish_soon(subject, payload, message_id=message_id, traceparent=traceparent)
        answer: asyncio.Future[Stored] = self._inside.publish(
            subject, payload, message_id=message_id, traceparent=traceparent, fence=fence, timeout_s=timeout_s
        )
        return answer
