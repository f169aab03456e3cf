"""`headrace demo` from outside: right, caught when wrong, gone when interrupted."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.edge.data_directory import MESH_VARIABLE
from headrace.edge.process_table import processes_with
from tests.support.commands import COMMAND, ROOT, Done, headrace

STOP_LIMIT_S = 5.0


def left_over(data: Path | str) -> list[int]:
    return processes_with(MESH_VARIABLE, str(data))


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """A copy of the example that a test may spoil."""
    for part in ("examples/orders", "components/webhook"):
        shutil.copytree(ROOT / part, tmp_path / part)
    return tmp_path / "examples" / "orders"


@pytest.fixture(scope="module")
def whole_demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """One run from beginning to end, and where its data was."""
    data = tmp_path_factory.mktemp("demo") / "data"
    return data, headrace("demo", "--once", "--json", "--profile", "fast", data=data)


def test_every_order_is_answered_as_expected_and_every_hop_is_measured(whole_demo: tuple[Path, Done]) -> None:
    data, done = whole_demo
    result = done.json()
    assert len(done.out.splitlines()) == 1
    assert result["ok"], result["differing"][:5]
    expected = (ROOT / "examples" / "orders" / "expected.jsonl").read_text().count("\n")
    assert result["orders"] == result["correct"] == expected >= 200
    assert result["profile"] == "fast"
    assert result["start_s"]["total"] >= result["start_s"]["flow"] > 0
    assert [(step["step"], step["state"], step["instances"]) for step in result["steps"]] == [
        (name, "RUNNING", 1) for name in ("order", "price", "check", "notify")
    ]
    assert all(step["digest"].startswith("sha256:") for step in result["steps"])
    measured = {(row["step"], row["phase"]): row for row in result["hops"]}
    for step in ("order", "price", "check", "notify"):
        for phase in ("queue", "sidecar-in", "component", "sidecar-out", "publish"):
            row = measured[step, phase]
            assert row["count"] > 0
            assert 0 <= row["p50_us"] <= row["p95_us"] <= row["p99_us"]
    letters = result["letters"]
    assert (letters["ok"], letters["effects"], letters["left"]) == (True, 1, 0)
    assert letters["total_cents"] == letters["expected_cents"] > 0
    pinning = result["pinning"]
    assert pinning["publishes"] == 2
    assert set(pinning["answered_by_revision"]) == {"price-r1", "price-r2"}
    assert min(pinning["answered_by_revision"].values()) >= 50
    assert [pinning[name] for name in ("unanswered", "lost", "duplicated", "unpinned")] == [0, 0, 0, 0]
    assert pinning["max_gap_ms"] > 0
    caller = result["caller"]
    assert 0 < caller["p50_us"] <= caller["p99_us"]
    assert left_over(data) == []


def test_the_phases_add_up_to_the_callers_clock(whole_demo: tuple[Path, Done]) -> None:
    """Law 7, over all requests of a run: 2 % or 0.3 ms.

    Three runs, of which one must hold it. What no phase covers are the two ends of each crossing (from the stamp
    before a write to the kernel's, a few µs) as long as nobody takes the processor away in between; where other
    tests run beside this one, the kernel sometimes does, for milliseconds, and 0.3 ms on average are spent by a
    handful of such cases.
    """
    seen = []
    for run in range(3):
        done = headrace("demo", "--once", "--json", "--profile", "fast") if run else whole_demo[1]
        result = done.json()
        caller = result["caller"]
        assert {(row["step"], row["phase"]) for row in result["hops"]} >= {
            ("gateway", "queue"),
            ("gateway", "gateway-in"),
            ("gateway", "gateway-out"),
            ("caller", "queue"),
        }
        gap_us = caller["mean_us"] - caller["phases_mean_us"]
        seen.append((gap_us, caller))
        if abs(gap_us) <= max(0.02 * caller["mean_us"], 300):
            return
    raise AssertionError(f"the phases do not add up: {seen}")


def test_one_cent_in_price_and_a_missing_effect_fail_the_demo(example: Path) -> None:
    spoil(example / "price" / "catalogue.py", '"SEAL-KIT": Article(3_333,', '"SEAL-KIT": Article(3_334,')
    missing = '    if order.order_id == "O-0111":\n        return\n    line = {'
    spoil(example / "notify" / "component.py", "    line = {", missing)
    done = headrace("demo", "--once", "--json", "--profile", "fast", "--example", example)
    assert done.status == 1, done.error
    result = json.loads(done.out)
    differing = {(item["order"], item["what"]): item for item in result["differing"]}
    cents = [item for (_, what), item in differing.items() if what == "total_cents"]
    assert cents
    off = [int(item["got"]) - int(item["expected"]) for item in cents]  # a cent an article, before discounts and tax
    assert 0 < min(off) < 10
    assert ("O-0111", "effect missing") in differing
    assert not result["ok"]
    assert result["orders"] - result["correct"] == len({order for order, _ in differing})


def spoil(file: Path, right: str, wrong: str) -> None:
    text = file.read_text()
    assert right in text
    file.write_text(text.replace(right, wrong))


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("mine")
    assert "empty folder" in headrace("demo", "--once", data=tmp_path).refused()
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_an_example_that_is_none_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert "orders.jsonl" in headrace("demo", "--once", "--example", tmp_path, data=data).error
    assert left_over(data) == []


@pytest.fixture
def staying() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*COMMAND, "demo", "--profile", "fast"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    yield process
    process.kill()
    process.communicate(timeout=10)


def read_until(process: subprocess.Popen[str], wanted: str) -> str:
    """What it printed up to the line with `wanted`; the test's own limit ends a wait in vain."""
    assert process.stdout is not None
    text = ""
    while wanted not in text:
        line = process.stdout.readline()
        assert line, f"ended early:\n{text}"
        text += line
    return text


def interrupt(process: subprocess.Popen[str], data: str) -> int:
    began = time.monotonic()
    process.send_signal(2)
    process.communicate(timeout=10)
    assert time.monotonic() - began < STOP_LIMIT_S
    assert left_over(data) == []
    assert not Path(data).exists()
    return process.returncode


@pytest.mark.needs("curl")
def test_what_to_try_next_works_and_ctrl_c_ends_it_all(staying: subprocess.Popen[str]) -> None:
    text = read_until(staying, "Ctrl-C ends the demo")
    data = re.search(r"data (/\S+)", text)
    assert data is not None
    commands = re.findall(r"^  \.venv/bin/headrace (.*)$", text, re.M)
    assert "flow status orders --data " + data[1] in commands
    for command in commands:
        if " -f " not in command:
            headrace(*command.split()).ok()
    curl = re.search(r"^  (curl .*)$", text, re.M)
    assert curl is not None
    answer = subprocess.run(["bash", "-c", curl[1]], capture_output=True, text=True, timeout=20)
    assert "200" in answer.stdout.splitlines()[0]
    assert "headrace-deployment: 3" in answer.stdout.lower()
    assert interrupt(staying, data[1]) == 0


def test_ctrl_c_while_the_flow_starts(staying: subprocess.Popen[str]) -> None:
    text = read_until(staying, "pushed revision")
    data = re.search(r"data (/\S+)", text)
    assert data is not None
    assert interrupt(staying, data[1]) == 130
