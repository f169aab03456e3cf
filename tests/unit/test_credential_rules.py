"""Values of credentials: what can be kept, what is masked of them, and that a refusal shows nothing."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.model.credential import MAX_VALUE_BYTES, CredentialRef, check_value, inexact_field, leaf_texts
from headrace.model.deployment import DeploymentPhase, DeploymentState, PinPlan, StepPlan
from headrace.model.errors import InvalidInput
from headrace.model.flow_spec import RetryPolicy
from headrace.model.secret_mask import SHORTEST, SecretMask

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
SECRETS = st.text(min_size=SHORTEST + 2, max_size=40).filter(lambda text: "*" not in text and text.isprintable())


@given(secret=SECRETS, before=st.text(max_size=20), after=st.text(max_size=20))
def test_a_value_is_masked_in_every_form_that_it_is_written_in(secret: str, before: str, after: str) -> None:
    mask = SecretMask()
    mask.learn_all({"deep": [{"password": secret}]})
    raw = secret.encode()
    for form in (
        secret,
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        quote(secret, safe=""),
        quote_plus(secret),
        repr(secret)[1:-1],
    ):
        assert form not in mask.known(f"|{form}|")
    for length in range(6):
        text = b64encode(b"u" * length + raw + after.encode()).decode()
        assert "***" in mask.known(text)


@given(value=VALUES)
def test_every_text_and_number_of_a_value_is_known(value: Any) -> None:
    texts = leaf_texts(value)
    found = json.dumps(value)
    assert all(json.dumps(text)[1:-1] in found for text in texts)


@pytest.mark.parametrize(
    ("value", "why", "reason"),
    [
        ({}, "has no field", "BAD_CREDENTIAL"),
        ({"a b": "hidden-one"}, "a field whose name is none", "BAD_CREDENTIAL"),
        ({f"f{number}": "hidden-one" for number in range(101)}, "has 101 fields", "BAD_CREDENTIAL"),
        ({"f": "hidden-one" * 10_000}, f"more than {MAX_VALUE_BYTES}", "VALUE_TOO_LARGE"),
        ({"f": [[[[[[[[[[["hidden-one"]]]]]]]]]]]}, "nested deeper", "BAD_CREDENTIAL"),
    ],
)
def test_what_cannot_be_kept_is_refused_without_being_shown(value: dict[str, Any], why: str, reason: str) -> None:
    with pytest.raises(InvalidInput, match=why) as refused:
        check_value(value)
    assert (refused.value.reason, refused.value.field) == (reason, "credential.value")
    assert "hidden-one" not in f"{refused.value!r}{refused.value}{refused.value.metadata}{refused.value.violations}"


def test_a_deployment_uses_what_its_plan_says_unless_it_was_refreshed() -> None:
    pin = PinPlan("c", 1, "sha256:0", "python", "1", "1")
    step = StepPlan("login", "action", "f", pin, {}, (), 1, 1.0, RetryPolicy(), credential=CredentialRef("shop", 3))
    state = DeploymentState(DeploymentPhase.ACTIVE, 1, {})
    assert state.credential_of(step) == CredentialRef("shop", 3)
    refreshed = DeploymentState(DeploymentPhase.ACTIVE, 1, {}, credentials={"login": 5, "other": 9})
    assert refreshed.credential_of(step) == CredentialRef("shop", 5)
    bare = StepPlan("login", "action", "f", pin, {}, (), 1, 1.0, RetryPolicy())
    assert refreshed.credential_of(bare) is None


def test_a_number_that_would_change_on_its_way_is_named() -> None:
    assert inexact_field({"a": [1, {"b": 2**53}]}) == "a[1].b"
    assert inexact_field({"a": 2**53 - 1, "b": "9" * 30, "c": True}) == ""
