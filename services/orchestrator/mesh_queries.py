"""What gateways and sidecars answer on NATS when asked: addresses and histograms, gathered for a moment."""

from __future__ import annotations

import asyncio

from nats.aio.client import Client
from nats.aio.msg import Msg

from headrace.api.diagnosis.v1.diagnosis_pb2 import FlowTraffic
from headrace.api.hop.v1 import hop_pb2
from headrace.edge.structured_log import get_logger
from headrace.model import subjects
from headrace.model.errors import InvalidInput
from headrace.wire.hops import decode_snapshot

log = get_logger(__name__)

GATEWAY_WAIT_S = 0.1
# A gateway that is busy answers later than one that is gone.
TRAFFIC_WAIT_S = 0.4
LONGEST_TRAFFIC_WAIT_S = 3.0
# Where many work on few processors an answer may be that much later than the one before.
HOP_QUIET_S = 0.1
HOP_WAIT_S = 0.5
MAX_ANSWERS = 10_000


async def gather_answers(
    connection: Client, subject: str, payload: bytes, *, quiet_s: float, limit_s: float
) -> list[bytes]:
    """Asks all who listen; answers what came until nothing came for `quiet_s`, at most for `limit_s`."""
    inbox = connection.new_inbox()
    answers: asyncio.Queue[bytes | None] = asyncio.Queue(MAX_ANSWERS)

    async def note(message: Msg) -> None:
        nobody = message.headers is not None and message.headers.get("Status") == "503"
        if not answers.full():
            answers.put_nowait(None if nobody else message.data)

    subscription = await connection.subscribe(inbox, cb=note)
    found: list[bytes] = []
    try:
        await connection.publish(subject, payload, reply=inbox)
        async with asyncio.timeout(limit_s):
            wait_s = limit_s
            while True:
                async with asyncio.timeout(wait_s):
                    answer = await answers.get()
                if answer is None:
                    break
                found.append(answer)
                wait_s = quiet_s
    except TimeoutError:
        pass
    finally:
        await subscription.unsubscribe()
    return found


async def gateway_addresses(connection: Client, workspace: str) -> list[str]:
    """HTTP addresses of the gateways that answer, sorted."""
    subject = subjects.gateway_presence_subject(workspace)
    answers = await gather_answers(connection, subject, b"", quiet_s=GATEWAY_WAIT_S, limit_s=GATEWAY_WAIT_S)
    return sorted({answer.decode(errors="replace") for answer in answers if answer})


async def flow_traffic(connection: Client, workspace: str, flow: str, broker_ms: float) -> list[FlowTraffic]:
    """What gateways say of a flow's callers, one each of those that answer; a slow broker is waited for."""
    limit_s = min(LONGEST_TRAFFIC_WAIT_S, TRAFFIC_WAIT_S + 6 * broker_ms / 1000)
    subject = subjects.traffic_request_subject(workspace, flow)
    answers = await gather_answers(connection, subject, b"", quiet_s=GATEWAY_WAIT_S, limit_s=limit_s)
    return [FlowTraffic.FromString(answer) for answer in answers]


async def hop_snapshots(connection: Client, workspace: str, flow: str) -> list[hop_pb2.HopSnapshot]:
    """Raw histograms of the sidecars and gateways that answer."""
    subject = subjects.hop_request_subject(workspace, flow)
    answers = await gather_answers(connection, subject, b"", quiet_s=HOP_QUIET_S, limit_s=HOP_WAIT_S)
    return [snapshot for answer in answers if (snapshot := readable_snapshot(answer)) is not None]


def readable_snapshot(raw: bytes) -> hop_pb2.HopSnapshot | None:
    """None for what is no snapshot of an instance."""
    try:
        snapshot = decode_snapshot(raw)
    except InvalidInput as error:
        log.warning("an answer with hops cannot be read", error=error.message)
        return None
    return snapshot if snapshot.instance else None
