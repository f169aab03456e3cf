"""Dead letters as their stream keeps them: one, pages newest first, and the next ones oldest first."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from nats.aio.client import Client

from headrace.api.message.v1.message_pb2 import DeadLetter
from headrace.edge.direct_get import read_batch
from headrace.edge.jetstream_assets import JetStreamAssets, StoredMessage
from headrace.edge.structured_log import get_logger
from headrace.model import subjects
from headrace.model.pages import Page
from headrace.wire.envelope import Envelope, MalformedMessage, decode_dead_letter
from services.orchestrator.asked_messages import came_within, has_text
from services.orchestrator.newest_first import newest_first, stream_bounds

log = get_logger(__name__)

DEFAULT_PAGE = 50
MAX_PAGE = 500
READ_AT_ONCE = 100
MALFORMED = "MALFORMED_LETTER"


@dataclass(frozen=True, slots=True)
class Letter:
    """A letter and its number within its flow: the sequence of the letters' stream."""

    number: int
    content: DeadLetter


@dataclass(frozen=True, slots=True)
class LetterFilter:
    """Empty fields fit all."""

    step: str = ""
    reason: str = ""
    since_ns: int = 0
    until_ns: int = 0
    text: str = ""

    def fits(self, letter: Letter) -> bool:
        """Whether all but the step fits; the broker looks at the step."""
        content = letter.content
        return (
            (not self.reason or content.reason == self.reason)
            and came_within(content.at_unix_ns, self.since_ns, self.until_ns)
            and (not self.text or _has_text(content, self.text))
        )

    def words(self) -> str:
        """For the history."""
        parts = [f"step {self.step}"] if self.step else []
        parts += [f"reason {self.reason}"] if self.reason else []
        parts += [f"since {_moment(self.since_ns)}"] if self.since_ns else []
        parts += [f"until {_moment(self.until_ns)}"] if self.until_ns else []
        parts += [f"text {self.text!r}"] if self.text else []
        return " and ".join(parts) or "all"


EVERY_LETTER = LetterFilter()


@dataclass
class LetterStore:
    """Letters of the flows of one workspace."""

    connection: Client
    assets: JetStreamAssets
    workspace: str

    async def letter(self, flow: str, number: int) -> Letter | None:
        """None when it is gone, or never was."""
        pattern = subjects.dead_letter_filter(self.workspace, flow)
        found = await self.assets.next_message(subjects.dead_letter_stream(self.workspace, flow), pattern, number)
        return _letter(found) if found is not None and found.sequence == number else None

    async def bounds(self, flow: str) -> tuple[int, int]:
        """Numbers of the oldest letter kept and of the newest ever; (1, 0) where there was none."""
        return await stream_bounds(self.assets, subjects.dead_letter_stream(self.workspace, flow))

    async def after(self, flow: str, wanted: LetterFilter, number: int, count: int) -> tuple[list[Letter], int, int]:
        """Up to `count` letters that follow `number`, oldest first; the number looked at last, and how many
        letters of the step come after that."""
        stream = subjects.dead_letter_stream(self.workspace, flow)
        pattern = subjects.dead_letter_filter(self.workspace, flow, wanted.step)
        messages, pending = await read_batch(self.connection, stream, pattern, number + 1, count=count)
        letters = [_letter(message) for message in messages]
        last = letters[-1].number if letters else number
        return [letter for letter in letters if wanted.fits(letter)], last, pending

    async def page(self, flow: str, wanted: LetterFilter, size: int, token: str) -> tuple[list[Letter], str]:
        """Up to `size` letters older than the token, newest first, and the token of the next page (empty at the
        end). A page of a filter may be shorter than asked for although a next one follows."""
        kind = f"the dead letters of {flow}: {wanted.words()}"
        page = Page.asked(kind, size, token, default=DEFAULT_PAGE, most=MAX_PAGE)
        stream = subjects.dead_letter_stream(self.workspace, flow)
        pattern = subjects.dead_letter_filter(self.workspace, flow, wanted.step)

        def fitting(message: StoredMessage) -> Letter | None:
            letter = _letter(message)
            return letter if wanted.fits(letter) else None

        return await newest_first(self.connection, stream, pattern, page, await self.bounds(flow), fitting)


def _has_text(content: DeadLetter, text: str) -> bool:
    tried = any(text in item.message or text in item.code for item in content.attempts)
    return tried or has_text(content.original, text)


def _moment(unix_ns: int) -> str:
    return datetime.fromtimestamp(unix_ns / 1e9, UTC).isoformat(timespec="seconds")


def _letter(message: StoredMessage) -> Letter:
    try:
        return Letter(message.sequence, decode_dead_letter(message.data))
    except MalformedMessage as error:  # written by nobody of ours; shown all the same
        log.warning("a dead letter cannot be read", subject=message.subject, sequence=message.sequence)
        *_, flow, step = message.subject.split(".")
        original = Envelope(id=message.headers.get("Nats-Msg-Id", ""), body=message.data)
        content = DeadLetter(original=original, flow=flow, step=step, reason=MALFORMED, unreadable=True)
        content.attempts.add(code=MALFORMED, message=error.message)
        return Letter(message.sequence, content)
