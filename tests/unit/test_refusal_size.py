"""A refusal fits into the trailers of its call, however much is wrong."""

from __future__ import annotations

from urllib.parse import quote

from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from headrace.client.errors import error_of_status
from headrace.edge.error_interceptor import status_of
from headrace.edge.status_size import fitting
from headrace.model.errors import FieldViolation, InvalidInput

TRAILERS = 8 * 1024


def size(status: status_pb2.Status) -> int:
    return len(quote(status.message)) + status.ByteSize() * 4 // 3


def test_what_fits_goes_as_it_is() -> None:
    status = status_of(InvalidInput.at("name", "Orders!", "is not a name", next_step="Use lower case"))
    assert fitting(status) is status


@given(
    st.text(max_size=3_000),
    st.text(max_size=3_000),
    st.lists(st.tuples(st.text(max_size=500), st.text(max_size=500)), max_size=300),
)
def test_everything_is_made_to_fit(message: str, value: str, wrong: list[tuple[str, str]]) -> None:
    violations = [FieldViolation(field, text) for field, text in wrong]
    error = InvalidInput(message, reason="MUCH", next_step=value, violations=violations, metadata={"file": value})
    small = fitting(status_of(error))
    assert size(small) < TRAILERS
    read = error_of_status(small)
    assert (read.code, read.reason) == ("INVALID_ARGUMENT", "MUCH")
    if violations:
        assert read.violations
        assert violations[0].field.startswith(read.violations[0].field.removesuffix(" ..."))


def test_a_thousand_violations_tell_the_first_ones() -> None:
    violations = [FieldViolation(f"steps[{n}].name", f"'S{n}' is not a name") for n in range(1000)]
    small = fitting(status_of(InvalidInput("steps[0].name: 'S0' is not a name (and 999 more)", violations=violations)))
    request = error_details_pb2.BadRequest()
    (detail,) = [item for item in small.details if item.Is(request.DESCRIPTOR)]
    detail.Unpack(request)
    assert 10 < len(request.field_violations) < 1000
    assert size(small) < TRAILERS
