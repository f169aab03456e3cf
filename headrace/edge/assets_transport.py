"""The way to the ingress for a process that has no lane: over its JetStream API calls, with their guard."""

from __future__ import annotations

from headrace.edge.jetstream_assets import JetStreamApiError, JetStreamAssets, NoResponders
from headrace.model.errors import Unavailable
from headrace.ports import Fence, Kept, PublishRefused, PublishUnknown, ReadFailed, Stored
from headrace.wire.jetstream import REPEATABLE, fence_headers


class AssetsTransport:
    """`headrace.edge.ingress_publisher.IngressTransport`. The limits of time are those of the assets."""

    def __init__(self, assets: JetStreamAssets) -> None:
        self._assets = assets

    async def publish(
        self,
        subject: str,
        payload: bytes,
        *,
        message_id: str,
        traceparent: str = "",
        fence: Fence | None = None,
        timeout_s: float = 5.0,
    ) -> Stored:
        """PublishRefused, PublishUnknown, Unavailable (no answer in time), and what the assets' guard raises."""
        headers = {"Nats-Msg-Id": message_id}
        if traceparent:
            headers["traceparent"] = traceparent
        if fence is not None:
            headers |= fence_headers(fence)
        try:
            answer = await self._assets.publish(subject, payload, headers)
        except NoResponders as error:
            raise PublishUnknown(f"nobody takes {subject}", no_responders=True) from error
        except JetStreamApiError as error:
            if error.code in REPEATABLE:
                raise PublishUnknown(str(error)) from error
            raise PublishRefused(error.code, error.description) from error
        return Stored(int(answer["seq"]), bool(answer.get("duplicate")))

    async def last_message(self, stream: str, subject: str, *, timeout_s: float = 2.0) -> Kept | None:
        """ReadFailed where the broker does not answer."""
        try:
            message = await self._assets.last_message(stream, subject)
        except (Unavailable, JetStreamApiError) as error:
            raise ReadFailed(str(error)) from error
        return Kept(message.sequence, message.data) if message is not None else None
