"""What a killed predecessor held is handed out again at once, instead of after the ack deadline.

Only the one replica of a step may do this, and only when it starts: the agent has ended the predecessor's
whole process group by then, so nobody else holds anything. The consumer is reset (server 2.14 or newer); an
acknowledgement of the predecessor that is still on its way is honoured by the broker all the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.edge.jetstream_assets import JetStreamApiError, JetStreamAssets
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
    was delivered before (what comes again up to it is a redelivery, though the broker counts anew), else 0.

    Never raises: without it the broker redelivers after the ack deadline.
    """
    assets = JetStreamAssets(connection, timeout_s=TIMEOUT_S)
    stream = subjects.flow_stream(settings.workspace, settings.flow)
    consumer = subjects.step_consumer(settings.deployment, settings.step)
    try:
        info = await assets.request(f"CONSUMER.INFO.{stream}.{consumer}")
        held = int(info["num_ack_pending"])
        if held == 0:
            return 0
        await assets.request(f"CONSUMER.RESET.{stream}.{consumer}")
    except (JetStreamApiError, Unavailable) as error:
        log.warning("not reclaimed; redelivery comes after the ack deadline", error=str(error))
        return 0
    log.info("reclaimed what the predecessor held", messages=held, consumer=consumer)
    return int(info["delivered"]["stream_seq"])
