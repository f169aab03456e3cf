"""The message that an error step gets: always JSON, never over the limit, and the input in it as far as it fits."""

from __future__ import annotations

import json
from base64 import b64decode
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from headrace.model.limits import MAX_BODY_BYTES
from headrace.wire.dead_letter import failed_attempt, kept_attempts
from headrace.wire.error_message import FailedInput, error_body


def failed(body: bytes, content_type: str = "", attempts: int = 1) -> FailedInput:
    tried = kept_attempts([failed_attempt(n + 1, "BUSY", "\0" * 3_000, 1) for n in range(attempts)])
    return FailedInput(body, content_type, "m", "e", "price", "price", "sha256:1", tried)


@given(st.binary(max_size=200), st.sampled_from(["", "application/json", "text/plain", "image/png"]))
def test_any_input_is_shown(body: bytes, content_type: str) -> None:
    raw, whole = error_body(failed(body, content_type), "BUSY", "no", 503)
    shown = json.loads(raw)
    assert whole
    given_input = shown["input"]
    if isinstance(given_input, dict) and {*given_input} == {"base64"}:
        assert b64decode(given_input["base64"]) == body
    elif isinstance(given_input, str) and content_type.startswith("text/"):
        assert given_input.encode() == body
    assert shown["error"] == {"code": "BUSY", "message": "no", "status": 503}


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=8))
def test_json_stays_what_it_is(value: object) -> None:
    raw, _ = error_body(failed(json.dumps(value).encode()), "BUSY", "no", 500)
    assert json.loads(raw)["input"] == value


def test_what_does_not_fit_is_left_out_and_the_rest_always_fits() -> None:
    for body in (b'"' + b"x" * (MAX_BODY_BYTES - 2) + b'"', b"\0" * 200_000, b"\xff" * 450_000, b"[" * 400_000):
        raw, whole = error_body(failed(body, attempts=100), "BUSY", "\0" * 100_000, 500)
        assert len(raw) <= MAX_BODY_BYTES
        shown = json.loads(raw)
        assert (whole, shown["input_omitted"], shown["input_size"]) == (False, True, len(body))
        assert len(shown["attempts"]) == 20


def test_a_body_in_the_store_of_attachments_is_left_out() -> None:
    raw, whole = error_body(replace(failed(b""), elsewhere=9_000_000), "BUSY", "no", 500)
    shown = json.loads(raw)
    assert (whole, shown["input"], shown["input_omitted"], shown["input_size"]) == (False, None, True, 9_000_000)
