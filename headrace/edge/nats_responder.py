"""What a process answers to those who ask on NATS."""

from __future__ import annotations

from collections.abc import Iterable

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription


class NatsResponder:
    """From `start` to `stop` each request on the subject gets what `answers` says; one without a reply subject none."""

    def __init__(self, connection: Client, subject: str) -> None:
        self._connection = connection
        self._subject = subject
        self._subscription: Subscription | None = None

    async def start(self) -> None:
        self._subscription = await self._connection.subscribe(self._subject, cb=self._answer)

    async def stop(self) -> None:
        """Does nothing when the connection is gone already."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None and self._connection.is_connected:
            await subscription.unsubscribe()

    def answers(self, asked: str) -> Iterable[bytes]:
        """The messages of one answer, in order; `asked` is the last token of the request's subject."""
        raise NotImplementedError

    async def _answer(self, message: Msg) -> None:
        if message.reply:
            for payload in self.answers(message.subject.rpartition(".")[2]):
                await self._connection.publish(message.reply, payload)
