"""What the services' door turns into a status, the client turns back into the same error."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.client.errors import error_of_status
from headrace.edge.error_interceptor import status_of
from headrace.model import errors
from headrace.model.errors import FieldViolation, HeadraceError

KINDS = [
    errors.InvalidInput,
    errors.NotFound,
    errors.AlreadyExists,
    errors.WrongState,
    errors.Conflict,
    errors.Exhausted,
    errors.DeadlineExceeded,
    errors.Unavailable,
]
text = st.text(st.characters(blacklist_categories=["Cs"]), max_size=30)
words = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=30)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@given(
    message=words,
    next_step=text,
    reason=st.from_regex(r"[A-Z][A-Z_]{0,20}", fullmatch=True),
    violations=st.lists(st.builds(FieldViolation, words, words), max_size=3),
    metadata=st.dictionaries(words.filter(lambda key: key != "next_step"), text, max_size=3),
)
def test_an_error_survives_the_wire(
    kind: type[HeadraceError],
    message: str,
    next_step: str,
    reason: str,
    violations: list[FieldViolation],
    metadata: dict[str, str],
) -> None:
    sent = kind(message, reason=reason, next_step=next_step, violations=violations, metadata=metadata)
    got = error_of_status(status_of(sent))
    assert type(got) is kind
    assert (got.reason, got.next_step, got.metadata) == (reason, next_step, metadata)
    assert got.violations == tuple(violations)
    if not message.endswith(f". {next_step}"):
        assert got.message == message


def test_a_masked_error_stays_a_headrace_error() -> None:
    got = error_of_status(status_of(HeadraceError("internal error, incident 1")))
    assert type(got) is HeadraceError
    assert got.reason == "INTERNAL"
