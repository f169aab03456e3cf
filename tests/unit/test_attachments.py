"""Attachments without a mesh: their names, forms as they come in pieces, and what a function sees in the harness."""

from __future__ import annotations

from collections.abc import AsyncIterator
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.model.attachments import MAX_NAME_BYTES, attachment_id, clean_name, clean_type, limit_of
from headrace.model.errors import InvalidInput
from headrace.model.limits import MAX_BODY_BYTES
from headrace.sdk.testing import ComponentHarness, FlowHarness
from services.gateway.domain.refusals import Refusal
from services.gateway.form_parts import Form, read_form
from tests.support.commands import ROOT

PORTER = ROOT / "tests" / "support" / "components" / "porter"


@given(st.text(max_size=400), st.sets(st.text(min_size=1, max_size=8), max_size=5))
def test_a_cleaned_name_is_safe_to_save_under_and_nobody_elses(given_name: str, taken: set[str]) -> None:
    name = clean_name(given_name, taken)
    assert 0 < len(name.encode()) <= MAX_NAME_BYTES
    assert name not in taken
    assert not set(name) & set("/\\\0\n\r\x1b\u202e")
    assert name.strip(".")
    assert clean_name(name) == name


@pytest.mark.parametrize(
    ("given_name", "cleaned"),
    [
        ("../../etc/passwd", "passwd"), ("C:\\dos\\x.txt", "x.txt"), ("..", "attachment-3"), ("", "attachment-3"),
        ("a\0b\u202egpj.exe", "abgpj.exe"), ("x" * 300 + ".pdf", "x" * 251 + ".pdf"), ("cat.jpg", "cat-2.jpg"),
    ],
)  # fmt: skip
def test_names_as_senders_give_them(given_name: str, cleaned: str) -> None:
    assert clean_name(given_name, {"cat.jpg"}, 3) == cleaned


def test_types_limits_and_ids() -> None:
    assert [clean_type(text) for text in ("image/png", "", "no type", "a/b\r\nx: y")][1:] == [
        "application/octet-stream"
    ] * 3
    assert (limit_of(""), limit_of("7")) == (100 * 1024 * 1024, 7 * 1024 * 1024)
    with pytest.raises(InvalidInput, match="HEADRACE_MAX_ATTACHMENT_MB"):
        limit_of("lots")
    same = attachment_id("m1", b"d" * 32, 5)
    assert same == attachment_id("m1", b"d" * 32, 5)
    assert len({same, attachment_id("m2", b"d" * 32, 5), attachment_id("m1", b"e" * 32, 5)}) == 3


class Bytes:
    """Stands for an upload."""

    def __init__(self) -> None:
        self.content = b""

    async def write(self, data: bytes) -> None:
        self.content += data

    async def end(self) -> None:
        self.content += b""


async def read(raw: bytes, sizes: list[int], content_type: str = "multipart/form-data; boundary=cut") -> Form:
    async def chunks() -> AsyncIterator[bytes]:
        begin = 0
        for size in [*sizes, len(raw)]:
            if begin < len(raw):
                yield raw[begin : begin + size]
                begin += size

    form = Form()
    await read_form(content_type, chunks(), form, Bytes)  # type: ignore[arg-type]
    return form


def part(head: str, content: bytes) -> bytes:
    return b"--cut\r\ncontent-disposition: form-data; " + head.encode() + b"\r\n\r\n" + content + b"\r\n"


@settings(max_examples=60)
@given(st.lists(st.integers(1, 40), max_size=60), st.binary(max_size=300))
async def test_a_form_is_the_same_however_it_is_cut(sizes: list[int], content: bytes) -> None:
    raw = part('name="a"', b"1") + part('name="f"; filename="x"', content) + part('name="a"', b"2") + b"--cut--\r\n"
    form = await read(raw, sizes)
    assert form.fields == {"a": ["1", "2"], "f": "x"}
    assert [(file.name, file.upload.content) for file in form.files] == [("x", content)]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b'--cut\r\ncontent-disposition: form-data; name="a"\r\n\r\nhalf', "MALFORMED_FORM"),
        (b"no form at all", "MALFORMED_FORM"),
        (b"", "MALFORMED_FORM"),
        (part('name="a"\r\ncontent-type: application/json', b"{") + b"--cut--", "MALFORMED_FORM"),
        (part('name="a"', b"\xff") + b"--cut--", "MALFORMED_FORM"),
        (part('name="a"; filename="a\0b"', b"") + b"--cut--", "MALFORMED_FORM"),
        (part('name="a"', b"v" * 300_000) + b"--cut--", "FIELDS_TOO_LARGE"),
        (b"".join(part('name="a"; filename="f"', b"") for _ in range(65)) + b"--cut--", "TOO_MANY_PARTS"),
        (b"".join(part('name="a"', b"") for _ in range(1_100)) + b"--cut--", "TOO_MANY_PARTS"),
        (b"--cut\r\n" + b"x: y\r\n" * 500 + b"\r\n\r\n--cut--", "TOO_MANY_PARTS"),
    ],
)
async def test_what_is_no_form_or_too_much_is_refused(raw: bytes, code: str) -> None:
    with pytest.raises(Refusal) as refused:
        await read(raw, [7, 1_000])
    assert refused.value.code == code


async def test_a_boundary_that_is_none_is_refused() -> None:
    for content_type in ("multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=é"):
        with pytest.raises(Refusal):
            await read(b"--x--", [1], content_type)


async def test_functions_in_the_harness_stream_attach_and_pass_on(tmp_path: Any) -> None:
    large = b"l" * (MAX_BODY_BYTES + 1)
    config = {"path": str(tmp_path / "out"), "size": 300_000, "body": MAX_BODY_BYTES + 5}
    async with ComponentHarness(PORTER, config=config) as harness:
        for function in ("weigh", "plain"):
            result = await harness.call(function, large, attachments={"a.png": b"png"})
            assert result.error is None
        assert result.outputs[0].attachments["plain.bin"].endswith(b"by a plain function")
        made = await harness.call("make", attachments={"a.png": b"png"})
        assert made.outputs[0].body == b"x" * (MAX_BODY_BYTES + 5)
        assert made.outputs[0].attachments == {"a.png": b"png", "made.bin": b"m" * 300_000}
        assert (await harness.call("loaded", large)).value == large
        reply = (await harness.call("answer", large)).reply
        assert reply is not None
        assert sha256(reply.body).digest() == sha256(large).digest()
        refused = (await harness.call("loaded", b"b" * (16 * 1024 * 1024 + 1))).error
        assert refused is not None
        assert (refused.code, refused.status) == ("BODY_TOO_LARGE", 413)


def test_attachments_go_through_a_flow_in_the_harness(tmp_path: Any) -> None:
    file = tmp_path / "flow.yaml"
    file.write_text(
        f"""
name: carry
reply_timeout: 5s
steps:
  receive: {{component: {ROOT / "components" / "webhook"}, function: receive, to: [make]}}
  make: {{component: {PORTER}, function: make, config: {{size: 10}}, to: [answer]}}
  answer: {{component: {PORTER}, function: answer}}
"""
    )
    with FlowHarness(file) as flow:
        result = flow.send(b"t" * (MAX_BODY_BYTES + 1), content_type="text/plain", attachments={"a": b"1"})
        assert result.outputs["make"][0].attachments == {"a": b"1", "made.bin": b"m" * 10}
        assert result.reply is not None
        assert result.reply.value == {"files": ["a", "made.bin"]}
