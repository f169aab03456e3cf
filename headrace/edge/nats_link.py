"""The data plane's connection to NATS: synchronous reads and gathered writes, on our own protocol core.

Through nats-py's public API a message costs 25 to 30 µs each way (an asyncio queue, a task wake-up and a header
parser per message; a future and a flusher turn per publish). Here everything one read of the socket brought is handed
to synchronous handlers at once, and everything written in one turn of the loop leaves in one write. The control plane
(KV, object store, requests) stays with nats-py.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
from collections.abc import Callable

from headrace.edge.broker_address import AddressBook, BrokerAddress
from headrace.edge.gathered_writes import GatheredWrites
from headrace.edge.nats_session import NatsSession, SessionRefused, said
from headrace.edge.structured_log import get_logger
from headrace.model.broker_url import without_password
from headrace.model.errors import Unavailable
from headrace.wire.nats_protocol import PONG, Frame, ProtocolError, read_info

log = get_logger(__name__)

# All messages of one subscription that came in a row with one read of the socket.
Handler = Callable[[list[Frame]], None]

DIAL_LIMIT_S = 2.0
FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 1.0
# A server that is silent for so many pings is given up. Where there are others, that shall not take half a minute.
PING_S = 10.0
PING_IN_A_CLUSTER_S = 2.0
SILENT_PINGS = 3
DEFAULT_MAX_PAYLOAD = 1024 * 1024
CLOSE_LIMIT_S = 1.0
FAILURES = (OSError, TimeoutError, ProtocolError, SessionRefused)


class NatsLink:
    """Connects with `connect`; then reconnects for ever, to whichever server answers, until `close`.

    Whoever uses it attaches: `on_down` when the connection breaks, `on_up` when it stands again (subscriptions
    restored), `on_closed` when it never will. All are called synchronously on the loop.
    """

    def __init__(self, urls: str, name: str, *, ping_s: float | None = None) -> None:
        self._name = name
        self._addresses = AddressBook(urls)
        self._ping_s = ping_s or (PING_IN_A_CLUSTER_S if len(self._addresses.in_order()) > 1 else PING_S)
        self._loop = asyncio.get_running_loop()
        self._session: NatsSession | None = None
        self._address: BrokerAddress | None = None
        self._subscriptions: dict[int, tuple[str, Handler]] = {}
        self._withdrawn: set[int] = set()
        self._sid = 0
        self._reading = False
        self._heard = False
        self._after_read: list[Callable[[], None]] = []
        self._writes = GatheredWrites()
        self.write = self._writes.write
        """Queues whole commands; all of one turn of the loop leave in one write. Lost if the connection breaks."""
        self.write_all = self._writes.write_all
        self.write_now = self._writes.write_now
        self.write_at_end = self._writes.write_at_end
        self._came_up: asyncio.Future[None] | None = None
        self._heart: asyncio.TimerHandle | None = None
        self._redial: asyncio.Task[None] | None = None
        self._on_up: Callable[[], None] = _nothing
        self._on_down: Callable[[], None] = _nothing
        self._on_closed: Callable[[], None] = _nothing
        self._closed = False
        self.up = False
        self.max_payload = DEFAULT_MAX_PAYLOAD

    @classmethod
    async def connect(cls, urls: str, name: str, *, timeout_s: float = 10.0, ping_s: float | None = None) -> NatsLink:
        """Tries the servers of a comma-separated list within the limit; Unavailable says what they answered."""
        link = cls(urls, name, ping_s=ping_s)
        problems: dict[BrokerAddress, str] = {}
        try:
            async with asyncio.timeout(timeout_s):
                await link._dial_until_up(problems)
        except TimeoutError as error:
            await link.close()
            told = "; ".join(f"{address}: {problem}" for address, problem in problems.items())
            raise Unavailable(
                f"no NATS server answers at {without_password(urls)}: {told or 'no answer'}",
                reason="BROKER_UNREACHABLE",
                next_step="Check --nats and that the server runs",
            ) from error
        return link

    def attach(self, *, on_up: Callable[[], None], on_down: Callable[[], None], on_closed: Callable[[], None]) -> None:
        """One user at a time."""
        self._on_up, self._on_down, self._on_closed = on_up, on_down, on_closed

    async def close(self, timeout_s: float = CLOSE_LIMIT_S) -> None:
        """Writes what waits, within the limit, then ends. Never raises."""
        if self._closed:
            return
        if self.up and self._writes.waiting:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await asyncio.shield(self.ping())
        self._closed = True
        if self._redial is not None:
            self._redial.cancel()
        session, self._session = self._session, None
        self._mark_down()
        if session is not None:
            session.abort()
        self._on_closed()
        self._wake()

    def new_inbox(self) -> str:
        """A subject of this connection's own."""
        return f"_INBOX.{secrets.token_hex(11)}"

    @property
    def server(self) -> str:
        """The server of the present or last connection, without credentials; empty before the first."""
        return repr(self._address) if self._address is not None else ""

    @property
    def clustered(self) -> bool:
        """Whether the server is one of several, or passes on to others what is meant for JetStream."""
        info = self._session.info if self._session is not None else {}
        return bool(info.get("cluster")) or not info.get("jetstream")

    @property
    def write_backlog(self) -> int:
        """Bytes the operating system has not taken yet."""
        return self._writes.backlog

    def subscribe(self, subject: str, handler: Handler) -> int:
        """Written in order with what else is written; restored after a reconnect. `handler` gets the messages of one
        read; what it raises is logged, and the rest of its list is not handled."""
        self._sid += 1
        self._subscriptions[self._sid] = (subject, handler)
        if self.up:
            self.write(b"SUB %b %d\r\n" % (subject.encode(), self._sid))
        return self._sid

    def unsubscribe(self, sid: int) -> None:
        """Withdraws interest; what is on its way is still handed over until `forget`."""
        if sid in self._subscriptions and sid not in self._withdrawn:
            self._withdrawn.add(sid)
            if self.up:
                self.write(b"UNSUB %d\r\n" % sid)

    def forget(self, sid: int) -> None:
        self.unsubscribe(sid)
        self._subscriptions.pop(sid, None)
        self._withdrawn.discard(sid)

    def ping(self) -> asyncio.Future[bool]:
        """Resolves when the server has read everything written up to the end of this turn of the loop (which
        all callers of this turn share); ConnectionError if the connection breaks first. Shield it."""
        return self._writes.ping()

    async def wait_up(self) -> None:
        """Returns when the connection stands; ConnectionError if it is closed for good."""
        while not self.up:
            if self._closed:
                raise ConnectionError("the connection to the broker is closed")
            if self._came_up is None:
                self._came_up = self._loop.create_future()
            await asyncio.shield(self._came_up)

    def _wake(self) -> None:
        waiter, self._came_up = self._came_up, None
        if waiter is not None:
            waiter.set_result(None)

    def after_read(self, callback: Callable[[], None]) -> None:
        """Calls back when all that the present read of the socket brought is handled, in the same turn; where no read
        is under way, in the next one."""
        if self._reading:
            self._after_read.append(callback)
        else:
            self._loop.call_soon(callback)

    def _on_frames(self, frames: list[Frame]) -> None:
        self._reading = self._heard = True
        self._handle(frames)
        self._reading = False
        while self._after_read:
            callbacks, self._after_read = self._after_read, []
            for callback in callbacks:
                try:
                    callback()
                except Exception:
                    log.exception("messages could not be handled")

    def _handle(self, frames: list[Frame]) -> None:
        subscriptions = self._subscriptions
        at, count = 0, len(frames)
        while at < count:
            first, sid = at, frames[at][0]
            at += 1
            if not sid:
                self._on_control(frames[first][1], frames[first][3])
                continue
            while at < count and frames[at][0] == sid:
                at += 1
            found = subscriptions.get(sid)
            if found is not None:
                try:
                    found[1](frames if at - first == count else frames[first:at])
                except Exception:
                    subject = frames[first][1].decode("utf-8", "replace")
                    log.exception("messages could not be handled", subject=subject, count=at - first)

    def _on_control(self, verb: bytes, text: bytes) -> None:
        if verb == b"PING":
            self.write(PONG)
        elif verb == b"PONG":
            self._writes.ponged()
        elif verb == b"INFO":
            self._learn(text)
        elif verb == b"-ERR":
            # The server closes the connection after all but a refused permission; that it did is told by its end.
            log.warning("broker", error=said(text), connection=self._name)

    def _learn(self, text: bytes) -> None:
        session, address = self._session, self._address
        if session is None or address is None:
            return
        try:
            info = read_info(text)
        except ProtocolError as error:
            log.warning("broker", error=str(error), connection=self._name)
            return
        session.info |= info
        self.max_payload = int(session.info.get("max_payload", DEFAULT_MAX_PAYLOAD))
        self._addresses.told(address, session.info.get("connect_urls") or ())
        if info.get("ldm"):
            # It will close its connections one after the other; until then it serves. Then others are tried first.
            self._addresses.failed(address)
            log.info("broker is about to stop", connection=self._name, server=repr(address))

    def _on_end(self, session: NatsSession, cause: BaseException | None) -> None:
        if session is not self._session or self._closed:
            return
        self._session = None
        if self._address is not None:
            self._addresses.failed(self._address)
        log.warning("broker disconnected", connection=self._name, error=without_password(repr(cause)))
        self._mark_down()
        self._redial = self._loop.create_task(self._dial_again(), name=f"connection {self._name}")

    def _mark_down(self) -> None:
        if self._heart is not None:
            self._heart.cancel()
            self._heart = None
        was_up, self.up = self.up, False
        self._writes.close()
        if was_up:
            self._on_down()

    async def _dial_again(self) -> None:
        await self._dial_until_up({})
        log.info("broker reconnected", connection=self._name)

    async def _dial_until_up(self, problems: dict[BrokerAddress, str]) -> None:
        wait_s = FIRST_WAIT_S
        while True:
            for address in self._addresses.in_order():
                try:
                    async with asyncio.timeout(DIAL_LIMIT_S):
                        session = await NatsSession.open(address, self._name, self._on_frames, self._on_end)
                except FAILURES as error:
                    self._addresses.failed(address)
                    problems[address] = str(error) or type(error).__name__
                    log.debug("broker not reached", server=repr(address), error=problems[address])
                    continue
                self._stand(address, session)
                return
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311
            wait_s = min(LONGEST_WAIT_S, wait_s * 1.5)

    def _stand(self, address: BrokerAddress, session: NatsSession) -> None:
        """The connection is usable: subscriptions first, in one write, then whoever is attached."""
        self._session, self._address = session, address
        self.max_payload = int(session.info.get("max_payload", DEFAULT_MAX_PAYLOAD))
        self._addresses.told(address, session.info.get("connect_urls") or ())
        for sid in self._withdrawn:
            self._subscriptions.pop(sid, None)
        self._withdrawn.clear()
        self._writes.open(session.transport)
        for sid, (subject, _) in self._subscriptions.items():
            self.write(b"SUB %b %d\r\n" % (subject.encode(), sid))
        self.up = True
        self.write_now()
        self._heart = self._loop.call_later(self._ping_s, self._beat)
        self._wake()
        self._on_up()

    def _beat(self) -> None:
        session = self._session
        if session is None:
            return
        # One that talks (a pull's heartbeats, at rest) is alive without being asked. Where there are others it is asked
        # all the same: that tells a moment earlier.
        heard, self._heard = self._heard, False
        if (not heard or self.clustered) and self._writes.beat() > SILENT_PINGS:
            log.warning("broker is silent", connection=self._name)
            session.abort()
            return
        self._heart = self._loop.call_later(self._ping_s, self._beat)


def _nothing() -> None:
    """Nobody is attached."""
