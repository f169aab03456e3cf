"""What the services' door turns into a status, the client turns back into the same error."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.rpc import error_details_pb2
from hypothesis import given
from hypothesis import strategies as st

import headrace.client.errors
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
    errors.OutOfRange,
    errors.Cancelled,
    errors.Damaged,
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


def test_field_and_value_of_one_wrong_field_come_through() -> None:
    got = error_of_status(status_of(errors.InvalidInput.at("steps[1].to[0]", "prise", "is no step")))
    assert (got.field, got.value) == ("steps[1].to[0]", "'prise'")
    assert (errors.NotFound("none").field, errors.NotFound("none").value) == ("", "")


def test_a_state_and_a_bound_come_with_the_standard_details_too() -> None:
    state = status_of(errors.WrongState("it runs", reason="WRONG_STATE", metadata={"flow": "orders"}))
    bound = status_of(errors.Exhausted("too many"))
    precondition, quota = error_details_pb2.PreconditionFailure(), error_details_pb2.QuotaFailure()
    assert state.details[1].Unpack(precondition)
    assert bound.details[1].Unpack(quota)
    (violation,) = precondition.violations
    assert (violation.type, violation.subject, violation.description) == ("WRONG_STATE", "orders", "it runs")
    assert quota.violations[0].description == "too many"


def test_the_public_names_are_stable() -> None:
    assert set(headrace.client.__all__) >= {"AsyncClient", "Client", "HeadraceError", "InvalidInput", "WrongState"}
    assert all(getattr(headrace.client, name) for name in headrace.client.__all__)
    assert set(headrace.client.errors.__all__) >= {kind.__name__ for kind in KINDS}
    assert (Path(headrace.__file__).parent / "py.typed").is_file()
