"""The orders example: the components and the independent expectation agree, to the cent and in every effect."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from headrace.sdk.testing import ComponentHarness, FlowHarness

REPOSITORY = Path(__file__).parents[2]
EXAMPLE = REPOSITORY / "examples" / "orders"
WEBHOOK = REPOSITORY / "components" / "webhook"
OWN_FIELDS = {"execution_id", "message_id", "attempt"}


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


async def differing(example: Path, effects: Path) -> list[str]:
    """Ids of the orders whose answer or effects are not what expected.jsonl says."""
    found = []
    orders, expected = read_lines(example / "orders.jsonl"), read_lines(example / "expected.jsonl")
    assert [order["id"] for order in orders] == [line["id"] for line in expected]
    components = {"order": WEBHOOK}
    async with FlowHarness(example, components=components, config={"notify": {"path": str(effects)}}) as flow:
        for order, line in zip(orders, expected, strict=True):
            if "repeats" in line:
                continue  # the gateway answers these; no component sees them
            already = len(read_lines(effects))
            result = await flow.send(order["body"], headers=order["headers"])
            assert result.reply is not None, order["id"]
            answer = result.reply.value
            if "error" in answer and "error" in line["answer"]:
                assert answer["error"].pop("execution") == result.execution_id
                answer["error"] = {key: answer["error"].get(key) for key in line["answer"]["error"]}
            made = read_lines(effects)[already:]
            assert all(effect["execution_id"] == result.execution_id for effect in made)
            plain = [{key: effect[key] for key in effect if key not in OWN_FIELDS} for effect in made]
            if (result.reply.status, answer, plain) != (line["status"], line["answer"], line["effects"]):
                found.append(order["id"])
    return found


async def test_every_order_is_answered_as_expected(tmp_path: Path) -> None:
    assert await differing(EXAMPLE, tmp_path / "effects.jsonl") == []


@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [
        ("price/catalogue.py", '"BOLT-M6": Article(12, 14,', '"BOLT-M6": Article(13, 14,'),
        ("price/component.py", "+ 5_000) // 10_000", "+ 4_999) // 10_000"),
        ("check/component.py", '"TURBINE-S": 3', '"TURBINE-S": 2'),
    ],
)
async def test_a_cent_a_rounding_or_a_piece_is_noticed(file: str, right: str, wrong: str, tmp_path: Path) -> None:
    changed = tmp_path / "orders"
    shutil.copytree(EXAMPLE, changed)
    (changed / "flow.yaml").write_text(
        (changed / "flow.yaml").read_text(encoding="utf-8").replace("../../components/webhook", str(WEBHOOK))
    )
    source = (changed / file).read_text(encoding="utf-8")
    assert right in source
    (changed / file).write_text(source.replace(right, wrong), encoding="utf-8")
    assert await differing(changed, tmp_path / "effects.jsonl") != []


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"orders_{name}", EXAMPLE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("script", "made", "kept"),
    [("generate_orders", "orders.jsonl", []), ("make_expected", "expected.jsonl", ["orders.jsonl"])],
)
def test_the_files_are_what_their_scripts_make(script: str, made: str, kept: list[str], tmp_path: Path) -> None:
    for name in [f"{script}.py", *kept]:
        shutil.copy(EXAMPLE / name, tmp_path / name)
    module = load_script(script)
    module.__dict__.update(__file__=str(tmp_path / f"{script}.py"), HERE=tmp_path)
    module.main()
    assert (tmp_path / made).read_bytes() == (EXAMPLE / made).read_bytes()


def test_the_second_opinion_imports_nothing_of_ours() -> None:
    source = (EXAMPLE / "make_expected.py").read_text(encoding="utf-8")
    assert "import headrace" not in source
    assert "from headrace" not in source
    assert "catalogue" not in source.replace("not in the catalogue", "")


def test_the_orders_have_what_real_orders_bring() -> None:
    orders, expected = read_lines(EXAMPLE / "orders.jsonl"), read_lines(EXAMPLE / "expected.jsonl")
    assert len(orders) >= 220
    assert len({order["id"] for order in orders}) == len(orders)
    codes = Counter(line["answer"]["error"]["code"] for line in expected if "error" in line["answer"])
    assert {"UNKNOWN_SKU", "BAD_QUANTITY", "BAD_INPUT"} <= set(codes)
    decisions = Counter(line["answer"].get("decision") for line in expected)
    assert decisions["accepted"] > 50
    assert decisions["declined"] > 50
    sizes = [len(json.dumps(order["body"], ensure_ascii=False).encode()) for order in orders]
    assert 290_000 < max(sizes) < 400_000
    currencies = {order["body"].get("currency") for order in orders if isinstance(order["body"], dict)}
    assert {"EUR", "USD"} <= currencies
    assert any(not order["body"]["customer"]["name"].isascii() for order in orders if isinstance(order["body"], dict))
    assert [line["id"] for line in expected if "repeats" in line] == ["R-again", "R-once-more", "R-refused-again"]


async def test_the_webhook_passes_on_what_came() -> None:
    async with ComponentHarness(WEBHOOK) as harness:
        headers = {"x-a": "b", "headrace-path": "/p"}
        result = await harness.call("receive", b"\x00\xff", headers=headers, content_type="image/png")
    output = result.outputs[0]
    assert (output.body, output.headers, output.content_type) == (b"\x00\xff", headers, "image/png")
