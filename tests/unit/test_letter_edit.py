"""Edits of dead letters: what a step could not get is refused before anything is kept."""

from __future__ import annotations

import pytest

from headrace.api.deadletter.v1.dead_letter_pb2 import EditDeadLetterRequest
from headrace.api.message.v1.message_pb2 import DeadLetter, Envelope
from headrace.model.errors import InvalidInput
from services.orchestrator.domain.letter_edit import LetterEdit, changed_headers, check_message
from services.orchestrator.letter_edits import edited
from services.orchestrator.letter_store import Letter, LetterFilter

ORIGINAL = Envelope(id="m1", body=b'{"total": "x"}', content_type="application/json", headers={"shop": "east"})
LETTER = Letter(3, DeadLetter(original=ORIGINAL, at_unix_ns=5_000_000_000, reason="TIMEOUT"))


def made(before: LetterEdit | None = None, **fields: object) -> LetterEdit | None:
    return edited(EditDeadLetterRequest(name="flows/f/deadLetters/3", **fields), LETTER, before, "ann", 9.0)


def test_what_is_not_given_stays() -> None:
    first = made(body=b'{"total": 1}')
    assert first == LetterEdit("m1", 5_000_000_000, b'{"total": 1}', "application/json", {"shop": "east"}, "ann", 9.0)
    second = made(first, headers={"Shop": "", "till": "4"})
    assert second is not None
    assert (second.body, second.headers) == (b'{"total": 1}', {"till": "4"})
    assert made(second, revert=True) is None


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "nothing is changed"),
        ({"revert": True, "body": b"{}"}, "forget the edit and to change it"),
        ({"body": b'{"total": }'}, "is not JSON, as its content type says"),
        ({"content_type": "text/plain\n"}, "is not a media type"),
        ({"body": b"x" * (512 * 1024 + 1), "content_type": "text/plain"}, "is more than"),
        ({"headers": {"a b": "c"}}, "is not the name of a header"),
        ({"headers": {"a": "c\r\nd: e"}}, "has a line end"),
        ({"headers": {"a": "x" * 70_000}}, "are more than"),
    ],
)
def test_what_no_step_could_get_is_refused(fields: dict[str, object], says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        made(**fields)


def test_other_bodies_need_not_be_json() -> None:
    check_message(b"{", "text/plain", changed_headers({}, {"A": "b"}))


def test_an_edit_of_an_earlier_flow_of_that_name_is_another_letters() -> None:
    edit = made(body=b"{}")
    assert edit is not None
    assert edit.belongs_to("m1", 5_000_000_000)
    assert not edit.belongs_to("m1", 6_000_000_000)


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        (LetterFilter(), True),
        (LetterFilter(reason="OTHER"), False),
        (LetterFilter(since_ns=5_000_000_000), True),
        (LetterFilter(since_ns=5_000_000_001), False),
        (LetterFilter(until_ns=5_000_000_000), False),
        (LetterFilter(text="total"), True),
        (LetterFilter(text="east"), True),
        (LetterFilter(text="west"), False),
    ],
)
def test_filters(wanted: LetterFilter, fits: bool) -> None:
    assert wanted.fits(LETTER) == fits
