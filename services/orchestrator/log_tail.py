"""Reads component logs back from their stream: the last lines first, then what comes, when asked to follow."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime

import nats.errors
from google.protobuf.message import DecodeError
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, DeliverPolicy

from headrace.api.flow.v1 import flow_pb2
from headrace.edge.jetstream_assets import JetStreamAssets
from headrace.edge.structured_log import get_logger
from headrace.model import subjects

log = get_logger(__name__)

LOG_BYTES = 64 * 1024 * 1024
DEFAULT_LINES = 50
MAX_LINES = 1000
# Records of messages in doubt that are kept of one step, and for how long.
MAX_DOUBTS = 1000
DOUBT_AGE_S = 30 * 24 * 3600.0
BATCH = 200
LEVELS = {"debug": 0, "info": 1, "warning": 2, "error": 3}
POLL_S = 0.5
READ_LIMIT_S = 10.0


async def ensure_shared_streams(assets: JetStreamAssets, workspace: str) -> None:
    """The log stream, and that of messages in doubt. Bounded; the oldest lines go, and the oldest records of a step."""
    logs = {
        "name": subjects.log_stream(workspace),
        "subjects": [subjects.log_filter(workspace)],
        "retention": "limits",
        "storage": "file",
        "discard": "old",
        "max_bytes": LOG_BYTES,
        "num_replicas": assets.copies,
    }
    doubts = {
        "name": subjects.doubt_stream(workspace),
        "subjects": [subjects.doubt_filter(workspace)],
        "retention": "limits",
        "storage": "file",
        "discard": "old",
        "max_msgs_per_subject": MAX_DOUBTS,
        "max_age": int(DOUBT_AGE_S * 1e9),
        "allow_direct": True,
        "num_replicas": assets.copies,
    }
    await asyncio.gather(assets.ensure_stream(logs), assets.ensure_stream(doubts))


@dataclass(frozen=True, slots=True)
class LogFilter:
    """Which lines of a flow: empty fields fit all. `since` is Unix seconds."""

    step: str = ""
    execution: str = ""
    level: str = ""
    since: float = 0.0

    def fits(self, line: flow_pb2.LogLine) -> bool:
        """Whether execution, level and time fit; the broker looks at the step."""
        if self.execution and line.execution_id != self.execution:
            return False
        if self.level and LEVELS.get(line.level, 1) < LEVELS[self.level]:
            return False
        return not self.since or line.time.ToNanoseconds() >= self.since * 1e9


async def tail(
    connection: Client,
    workspace: str,
    flow: str,
    wanted_lines: LogFilter,
    lines: int,
    *,
    follow: bool,
    stopping: asyncio.Event,
) -> AsyncIterator[flow_pb2.TailLogsResponse]:
    """The last `lines` lines that fit, oldest first; then, with `follow`, each new one."""
    wanted = min(lines or DEFAULT_LINES, MAX_LINES)
    since = wanted_lines.since
    stream = connection.jetstream(timeout=5.0)
    reader = await stream.subscribe(
        subjects.log_filter(workspace, flow, wanted_lines.step),
        stream=subjects.log_stream(workspace),
        ordered_consumer=True,
        config=_from(since),
        pending_msgs_limit=100_000,
    )
    try:
        last: deque[flow_pb2.LogLine] = deque(maxlen=wanted)
        left = (await reader.consumer_info()).num_pending or 0
        left += reader.pending_msgs
        async with asyncio.timeout(READ_LIMIT_S):
            while left > 0:
                try:
                    message = await reader.next_msg(timeout=POLL_S)
                except nats.errors.TimeoutError:
                    break
                left = message.metadata.num_pending
                _take(last, message, wanted_lines)
        gone = bool(since) and await _older_are_gone(stream, workspace, since)
        if last or gone:
            yield flow_pb2.TailLogsResponse(lines=last, older_lines_are_gone=gone)
        while follow and not stopping.is_set():
            try:
                message = await reader.next_msg(timeout=POLL_S)
            except nats.errors.TimeoutError:
                continue
            batch: deque[flow_pb2.LogLine] = deque(maxlen=BATCH)
            _take(batch, message, wanted_lines)
            while reader.pending_msgs and len(batch) < BATCH:
                _take(batch, await reader.next_msg(timeout=POLL_S), wanted_lines)
            if batch:
                yield flow_pb2.TailLogsResponse(lines=batch)
    finally:
        await reader.unsubscribe()


def _from(since: float) -> ConsumerConfig:
    if not since:
        return ConsumerConfig(deliver_policy=DeliverPolicy.ALL)
    # A line is stored a moment after it was written.
    begin = datetime.fromtimestamp(since, tz=UTC).isoformat().replace("+00:00", "Z")
    return ConsumerConfig(deliver_policy=DeliverPolicy.BY_START_TIME, opt_start_time=begin)  # type: ignore[arg-type]


async def _older_are_gone(stream: JetStreamContext, workspace: str, since: float) -> bool:
    """Whether the oldest line that is kept, of any flow, is younger, and older ones were pushed out."""
    info = await stream.stream_info(subjects.log_stream(workspace))
    if info.state.first_seq <= 1 or not info.state.messages:
        return False
    oldest = await stream.get_msg(subjects.log_stream(workspace), info.state.first_seq)
    stored = oldest.time
    return stored is not None and stored.timestamp() > since


def _take(lines: deque[flow_pb2.LogLine], message: Msg, wanted: LogFilter) -> None:
    try:
        line = flow_pb2.LogLine.FromString(message.data)
    except DecodeError:
        log.warning("a log line cannot be read", subject=message.subject)
        return
    if wanted.fits(line):
        lines.append(line)
