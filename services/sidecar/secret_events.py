"""What a component says of a failure, and its own spans, without the values of its credential.

Only instances whose step names a credential pay for it. Bodies and headers of messages are the component's own affair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from headrace.model.secret_mask import SecretMask

TakeAll = Callable[[Sequence[Any]], None]


def masked_events(mask: SecretMask, take: TakeAll) -> TakeAll:
    """Takes events of `component/v1`: words of errors and rebounds are masked before anybody sees them."""

    def taken(events: Sequence[Any]) -> None:
        for event in events:
            kind = event.WhichOneof("kind")
            if kind == "error":
                event.error.message = mask.known(event.error.message)
            elif kind == "rebound":
                event.rebound.reason = mask.known(event.rebound.reason)
        take(events)

    return taken


def masked_spans(mask: SecretMask, take: TakeAll) -> TakeAll:
    """Takes spans of `component/v1`: every text in them is masked."""

    def taken(spans: Sequence[Any]) -> None:
        for span in spans:
            _mask_texts(mask, span)
        take(spans)

    return taken


def _mask_texts(mask: SecretMask, message: Any) -> None:
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if field.is_repeated else (value,):
                _mask_texts(mask, inner)
        elif field.type == field.TYPE_STRING and not field.is_repeated:
            masked = mask.known(value)
            if masked != value:
                setattr(message, field.name, masked)
