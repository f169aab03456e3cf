"""What gateways and sidecars answer on NATS when asked: addresses and histograms, gathered for a moment."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from nats.aio.client import Client
from nats.aio.msg import Msg

from headrace.api.hop.v1 import hop_pb2
from headrace.model import subjects
from headrace.model.histogram import Histogram

GATEWAY_WAIT_S = 0.1
HOP_QUIET_S = 0.05
HOP_WAIT_S = 0.3
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


async def hop_snapshots(connection: Client, workspace: str, flow: str) -> list[hop_pb2.HopSnapshot]:
    """Raw histograms of the sidecars and gateways that answer."""
    subject = subjects.hop_request_subject(workspace, flow)
    answers = await gather_answers(connection, subject, b"", quiet_s=HOP_QUIET_S, limit_s=HOP_WAIT_S)
    return [hop_pb2.HopSnapshot.FromString(answer) for answer in answers]


def merge_hops(snapshots: Iterable[hop_pb2.HopSnapshot], deployment: int) -> hop_pb2.GetHopsResponse:
    """Percentiles per (step, phase, receiver, revision). Gateways belong to every deployment (theirs is 0)."""
    merged: dict[tuple[str, str, str, str], Histogram] = {}
    instances: set[str] = set()
    for snapshot in snapshots:
        if deployment and snapshot.deployment not in (0, deployment):
            continue
        instances.add(snapshot.instance)
        for item in snapshot.histograms:
            key = (item.step, item.phase, item.receiver, item.revision)
            histogram = Histogram.from_sparse(item.buckets, sum_ns=item.sum_ns, max_ns=item.max_ns, skewed=item.skewed)
            merged.setdefault(key, Histogram()).merge(histogram)
    answer = hop_pb2.GetHopsResponse(instances=sorted(instances))
    for (step, phase, receiver, revision), histogram in sorted(merged.items()):
        p50, p95, p99 = histogram.quantiles([0.5, 0.95, 0.99])
        answer.phases.add(
            step=step,
            phase=phase,
            receiver=receiver,
            count=histogram.count,
            mean_us=histogram.mean_ns / 1000,
            p50_us=p50 / 1000,
            p95_us=p95 / 1000,
            p99_us=p99 / 1000,
            max_us=histogram.max_ns / 1000,
            skewed=histogram.skewed,
            revision=revision,
        )
    return answer
