"""Pages of a list (AIP-158): sizes, tokens, and how much one answer may hold.

A token says behind which item the list goes on, so that items which come and go between two pages move no others: each
that was there all the time is listed exactly once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from headrace.model.errors import InvalidInput
from headrace.model.names import is_number
from headrace.model.opaque_tokens import make_token, read_token

DEFAULT_PAGE = 100
MAX_PAGE = 1000
MAX_ANSWER_BYTES = 3 * 1024 * 1024
"""A page ends early rather than become larger: gRPC clients take 4 MiB unless they were told otherwise."""


class Sized(Protocol):
    """A protobuf message."""

    def ByteSize(self) -> int: ...


T = TypeVar("T")
M = TypeVar("M", bound=Sized)


@dataclass(frozen=True, slots=True)
class Page:
    """What a caller asked for: at most `size` items behind the key `after` (empty: from the beginning)."""

    kind: str
    size: int
    after: str

    @classmethod
    def asked(
        cls, kind: str, page_size: int, page_token: str, *, default: int = DEFAULT_PAGE, most: int = MAX_PAGE
    ) -> Page:
        """`kind` names the list with its parent and filters. A size of 0 is the default, one above the most is the
        most; InvalidInput below 0, and for a token of another list."""
        if page_size < 0:
            raise InvalidInput.at("page_size", page_size, "is negative", next_step=f"Use 0 to {most}")
        after = read_token("page_token", kind, page_token, 1)[0] if page_token else ""
        return cls(kind, min(page_size or default, most), after)

    @property
    def number(self) -> int:
        """`after` of a list whose keys are numbers; 0 at the beginning."""
        if self.after and not is_number(self.after):
            raise InvalidInput.at("page_token", self.after, "is not a number", reason="BAD_TOKEN")
        return int(self.after or 0)

    def token(self, last: str | int) -> str:
        """The token of the page behind the item with this key."""
        return make_token(self.kind, str(last))

    def take(self, items: Sequence[T], key: Callable[[T], str], message: Callable[[T], M]) -> tuple[list[M], str]:
        """The messages of this page, and the token of the next one (empty at the end); the list is ordered by key."""
        rest = sorted((item for item in items if not self.after or key(item) > self.after), key=key)
        messages = bounded(message(item) for item in rest[: self.size])
        return messages, self.token(key(rest[len(messages) - 1])) if len(messages) < len(rest) else ""


def bounded(messages: Iterable[M]) -> list[M]:
    """As many as fit into one answer, at least one."""
    taken: list[M] = []
    size = 0
    for message in messages:
        size += message.ByteSize()
        if taken and size > MAX_ANSWER_BYTES:
            break
        taken.append(message)
    return taken
