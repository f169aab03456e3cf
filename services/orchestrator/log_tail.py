"""Reads component logs back from their stream: the last lines first, then what comes, when asked to follow."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

import nats.errors
from google.protobuf.message import DecodeError
from nats.aio.client import Client
from nats.aio.msg import Msg
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


async def tail(
    connection: Client, workspace: str, flow: str, step: str, lines: int, *, follow: bool, stopping: asyncio.Event
) -> AsyncIterator[list[flow_pb2.LogLine]]:
    """The last `lines` lines of a flow (or step), oldest first; then, with `follow`, each new one."""
    wanted = min(lines or DEFAULT_LINES, MAX_LINES)
    stream = connection.jetstream(timeout=5.0)
    reader = await stream.subscribe(
        subjects.log_filter(workspace, flow, step),
        stream=subjects.log_stream(workspace),
        ordered_consumer=True,
        config=ConsumerConfig(deliver_policy=DeliverPolicy.ALL),
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
                _take(last, message)
        if last:
            yield list(last)
        while follow and not stopping.is_set():
            try:
                message = await reader.next_msg(timeout=POLL_S)
            except nats.errors.TimeoutError:
                continue
            batch: deque[flow_pb2.LogLine] = deque(maxlen=BATCH)
            _take(batch, message)
            while reader.pending_msgs and len(batch) < BATCH:
                _take(batch, await reader.next_msg(timeout=POLL_S))
            if batch:
                yield list(batch)
    finally:
        await reader.unsubscribe()


def _take(lines: deque[flow_pb2.LogLine], message: Msg) -> None:
    try:
        lines.append(flow_pb2.LogLine.FromString(message.data))
    except DecodeError:
        log.warning("a log line cannot be read", subject=message.subject)
