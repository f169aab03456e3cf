"""What a killed predecessor held is handed out again at once, instead of after the ack deadline.

Only the one replica of a step may do this, and only when it starts: the agent has ended the predecessor's
whole process group by then, so nobody else holds anything. The consumer is reset (server 2.14 or newer); an
acknowledgement of the predecessor that is still on its way is honoured by the broker all the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.edge.jetstream_assets import CONSUMER_NOT_FOUND, JetStreamApiError, JetStreamAssets
from headrace.edge.structured_log import get_logger
from headrace.model import subjects
from headrace.model.errors import Unavailable

if TYPE_CHECKING:
    from nats.aio.client import Client

    from services.sidecar.settings import Settings

log = get_logger(__name__)

TIMEOUT_S = 2.0


async def reclaim(connection: Client, settings: Settings) -> int:
    """Resets the step's consumer if it has unacknowledged messages; answers the highest stream sequence that
    was delivered before: what comes up to it, now or when the consumer is reset later, is a redelivery, though the
    broker counts anew. 0 where nothing was.

    Never raises: without it the broker redelivers after the ack deadline.
    """
    stream = subjects.flow_stream(settings.workspace, settings.flow)
    consumer = subjects.step_consumer(settings.deployment, settings.step)
    return await begin_anew(connection, stream, consumer, only_held=True)


async def begin_anew(connection: Client, stream: str, consumer: str, *, only_held: bool = False) -> int:
    """Resets a durable that has delivered something (with `only_held`: only one with something unacknowledged).
    Answers and never raises, as `reclaim`; of a durable that is not there it answers 0."""
    assets = JetStreamAssets(connection, timeout_s=TIMEOUT_S)
    try:
        info = await assets.request(f"CONSUMER.INFO.{stream}.{consumer}")
        held = int(info["num_ack_pending"])
        delivered = int(info["delivered"]["stream_seq"])
        if int(info["delivered"]["consumer_seq"]) == 0:
            return 0
        if only_held and held == 0:
            return delivered
        await assets.request(f"CONSUMER.RESET.{stream}.{consumer}")
    except (JetStreamApiError, Unavailable) as error:
        if not isinstance(error, JetStreamApiError) or error.code != CONSUMER_NOT_FOUND:
            log.warning("not reclaimed; redelivery comes after the ack deadline", error=str(error))
        return 0
    log.info("reclaimed what the predecessor held", messages=held, consumer=consumer)
    return delivered
