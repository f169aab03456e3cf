"""What is secret does not get into a log line, and what is not stays as it is."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.model.secret_mask import MASK, SecretMask, is_secret_name, secret_values

SECRET = "s3cr3t-Value.9"


@pytest.mark.parametrize(
    "line",
    [
        f"Authorization: Bearer {SECRET}",
        f"authorization: Basic {SECRET}==",
        f"headers={{'Authorization': 'Bearer {SECRET}'}}",
        f'{{"authorization": "Bearer {SECRET}"}}',
        f"proxy-authorization={SECRET}",
        f"sent with bearer {SECRET}",
        f"password={SECRET}",
        f"password = '{SECRET}'",
        f'"db_password": "{SECRET}"',
        f'{{\\"api_key\\": \\"{SECRET}\\"}}',
        f"PGPASSWORD={SECRET} psql",
        f"connect(user='x', passwd='{SECRET}')",
        f"client-secret: {SECRET}",
        f"access_token={SECRET}&state=1",
        f"postgres://me:{SECRET}@db:5432/orders",
        f"Cookie: {SECRET}",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.s3cr3t-Value_9",
    ],
)
def test_what_looks_like_a_secret_is_masked(line: str) -> None:
    masked = SecretMask().text(line)
    assert SECRET not in masked
    assert "s3cr3t" not in masked
    assert MASK in masked


@pytest.mark.parametrize(
    "line",
    [
        "priced 12 orders in 0.3 s",
        "the password was changed",
        "http://127.0.0.1:8080/hook/orders?key=17",
        "3 tokens left of 10",
        "retrying: authorization failed",
        "monkey business, keyboard, tokenizer",
    ],
)
def test_other_lines_stay_as_they_are(line: str) -> None:
    assert SecretMask().text(line) == line


def test_secrets_of_the_configuration_are_masked_wherever_they_stand() -> None:
    mask = SecretMask()
    mask.learn(
        {"url": f"amqp://me:{SECRET}@mq", "auth": {"api_key": "abcd1234", "user": "ada"}, "password": "no", "pin": 7}
    )
    assert mask.text(f"login of ada with {SECRET} and abcd1234") == f"login of ada with {MASK} and {MASK}"
    assert mask.text("no, 7") == "no, 7"  # too short to be told from a word
    assert mask.fields({"user": "ada", "secret": 12345, "deep": [{"note": "key abcd1234"}], "token": None}) == {
        "user": "ada",
        "secret": MASK,
        "deep": [{"note": f"key {MASK}"}],
        "token": None,
    }


@given(
    st.recursive(
        st.text(max_size=8) | st.integers() | st.none(), lambda inner: st.lists(inner, max_size=3), max_leaves=8
    )
)
def test_plain_data_without_secrets_stays_as_it_is(value: object) -> None:
    assert SecretMask().fields(value) == value or "://" in str(value)


def test_names_of_secrets() -> None:
    assert all(
        map(is_secret_name, ("password", "db-password", "API_KEY", "x-api-key", "Authorization", "clientSecret"))
    )
    assert not any(map(is_secret_name, ("user", "key", "passing", "tokenizer", "secretary")))
    assert list(secret_values({"passwords": ["a", {"b": 2}], "user": "u"})) == ["a", "2"]


def test_a_hostile_line_takes_no_time() -> None:
    mask = SecretMask()
    lines = [
        "a-" * 4_000 + "token",
        "password" * 1_000,
        "://" + "x:" * 4_000,
        'secret="' + "\\" * 8_000,
        "bearer " * 1_200,
    ]
    began = time.perf_counter()
    for line in lines:
        mask.text(line)
    assert time.perf_counter() - began < 0.5
