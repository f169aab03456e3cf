"""A body that is nested deeper than a parser goes is the sender's mistake, by whatever way it comes."""

from __future__ import annotations

import pytest

from headrace.model.errors import InvalidInput
from headrace.model.json_values import check_json_body
from services.gateway.domain.refusals import Refusal
from services.gateway.domain.request_headers import RequestHeaders
from services.gateway.request_body import check_json

DEEP = b"[" * 100_000 + b"]" * 100_000


def test_injected() -> None:
    with pytest.raises(InvalidInput) as caught:
        check_json_body("body", "application/json", DEEP)
    assert (caught.value.reason, caught.value.field) == ("MALFORMED_JSON", "body")


def test_posted() -> None:
    with pytest.raises(Refusal) as caught:
        check_json(RequestHeaders({}, "application/json"), DEEP)
    assert (caught.value.status, caught.value.code) == (400, "MALFORMED_JSON")
