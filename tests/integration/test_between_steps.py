"""Between steps on a real mesh: conditions, mappings and passthrough of edges, and what steps keep between messages.

Who gets what, what fails, what a hostile expression costs; saved once per message whatever dies, kept across versions.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from headrace.client import AsyncClient
from headrace.model.errors import NotFound, WrongState
from tests.support.commands import ROOT
from tests.support.eventually import eventually
from tests.support.jsonl import read_lines
from tests.support.mesh import RunningMesh
from tests.support.small_mesh_flow import letters, post, run_flow

SCRIBE = ROOT / "tests" / "support" / "components" / "scribe"
WEBHOOK = ROOT / "components" / "webhook"
pytestmark = pytest.mark.timeout(90)


def bodies(file: Path, step: str) -> list[Any]:
    return [line["body"] for line in read_lines(file) if line["step"] == step]


async def counter(client: AsyncClient, flow: str, step: str, name: str) -> int:
    status = await client.get_status(flow)
    return sum(i.counters.get(name, 0) for s in status.steps if s.step == step for i in s.instances)


async def test_each_receiver_gets_what_its_edge_says(module_mesh: RunningMesh, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    write = f"component: {SCRIBE}, function: write, config: {{path: {out}}}"
    async with AsyncClient(module_mesh.api) as client:
        flow = await run_flow(
            client,
            tmp_path / "flow.yaml",
            f"""
name: routed
steps:
  receive:
    component: {WEBHOOK}
    function: receive
    to:
      - {{step: big, condition: body.total > 100}}
      - step: small
        condition: body.total <= 100
        mapping: |
          {{
            "sku": body.sku, "double": body.total * 2, "type": message.content_type
          }}
      - step: keyed
        condition: $exists(body.sku)
        mapping: "{{'sku': $uppercase(body.sku)}}"
  big: {{{write}}}
  small: {{{write}}}
  keyed: {{{write}, key: "body:/sku"}}
""",
        )
        for total in (50, 150):
            await post(module_mesh, flow, {"sku": "a1", "total": total})
        await post(module_mesh, flow, {"other": 1})
        await eventually(lambda: len(read_lines(out)) == 4)
        assert bodies(out, "big") == [{"sku": "a1", "total": 150}]
        assert bodies(out, "small") == [{"sku": "a1", "double": 100, "type": "application/json"}]
        assert bodies(out, "keyed") == [{"sku": "A1"}] * 2
        assert len({line["id"] for line in read_lines(out)}) == 4
        await eventually(lambda: _is(counter(client, flow, "receive", "unrouted"), 1))


async def test_earlier_outputs_are_there_for_expressions_and_components(
    module_mesh: RunningMesh, tmp_path: Path
) -> None:
    """Through a keyed step too; larger ones than a message may carry go by reference, and are read otherwise."""
    out = tmp_path / "out.jsonl"
    async with AsyncClient(module_mesh.api) as client:
        flow = await run_flow(
            client,
            tmp_path / "flow.yaml",
            f"""
name: passing
passthrough: true
steps:
  receive:
    component: {WEBHOOK}
    function: receive
    to: [{{step: price, mapping: "{{'sku': steps.receive.body.sku}}"}}]
  price:
    component: {SCRIBE}
    function: say
    key: body:/sku
    config: {{emits: [{{price: 5}}]}}
    to: [{{step: write, mapping: "{{'total': steps.receive.body.n * steps.price.body.price}}"}}, raw]
  raw: {{component: {SCRIBE}, function: write, config: {{path: {out}}}}}
  write: {{component: {SCRIBE}, function: write, config: {{path: {out}}}}}
""",
        )
        await post(module_mesh, flow, {"sku": "a", "n": 3})
        await eventually(lambda: len(read_lines(out)) == 2)
        assert bodies(out, "write") == [{"total": 15}]
        assert bodies(out, "raw") == [{"price": 5}]
        for line in read_lines(out):
            assert line["steps"] == {"receive": {"sku": "a", "n": 3}, "price": {"price": 5}}
        await post(module_mesh, flow, {"sku": "b", "n": 1, "x": "y" * 262_144})
        found = await eventually(lambda: letters(client, flow, 2))
        assert {(letter.reason, letter.step) for letter in found} == {
            ("BODY_NOT_LOADED", "raw"),
            ("BODY_NOT_LOADED", "write"),
        }
        assert "the output of receive goes by reference" in found[0].attempts[0].message
        await client.discard_dead_letters(flow, all_letters=True)


async def test_a_failing_expression_costs_its_message_only(module_mesh: RunningMesh, tmp_path: Path) -> None:
    """It loops, recurses, fills the memory, yields nothing; others of the same step go on, and so does the sidecar."""
    out = tmp_path / "out.jsonl"
    async with AsyncClient(module_mesh.api) as client:
        flow = await run_flow(
            client,
            tmp_path / "flow.yaml",
            f"""
name: hostile
steps:
  receive:
    component: {WEBHOOK}
    function: receive
    to:
      - step: write
        mapping: |
          (
            $loop := function($n) {{ $loop($n + 1) }};
            $deep := function($n) {{ 1 + $deep($n + 1) }};
            body = "loop" ? $loop(1) :
            body = "deep" ? $deep(1) :
            body = "large" ? $pad("x", 100000000) :
            body = "regex" ? $contains("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!", /^(a|aa)+$/) :
            body = "type" ? body + 1 :
            body = "nothing" ? body.nothing : body
          )
  write: {{component: {SCRIBE}, function: write, config: {{path: {out}}}}}
""",
        )
        bad = {"loop": 0, "deep": 3, "large": 6, "regex": 7, "type": 8, "nothing": 0}
        began = time.monotonic()
        for number, word in enumerate(bad):
            await post(module_mesh, flow, word)
            await post(module_mesh, flow, number)
        await eventually(lambda: sorted(bodies(out, "write")) == list(range(len(bad))), within_s=60)
        assert time.monotonic() - began < 50
        given_up = await eventually(lambda: letters(client, flow, len(bad)), within_s=15)
        told = {json.loads(letter.body): letter for letter in given_up}
        for word, line in bad.items():
            assert told[word].reason == "EXPRESSION_FAILED"
            [attempt] = told[word].attempts
            assert "the mapping of the edge to 'write' failed: `( $loop := " in attempt.message, attempt.message
            if line:  # a loop is found wherever its time is over
                assert f"(at line {line}, " in attempt.message, attempt.message
        for word, why in {
            "loop": "more than 1 s of processor time",
            "deep": "recurses too deeply",
            "type": "must evaluate to a number",
            "nothing": "yields no value",
        }.items():
            assert why in told[word].attempts[0].message
        await client.discard_dead_letters(flow, all_letters=True)


async def test_an_evaluator_that_dies_is_replaced_and_nothing_is_lost(module_mesh: RunningMesh, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    async with AsyncClient(module_mesh.api) as client:
        flow = await run_flow(
            client,
            tmp_path / "flow.yaml",
            f"""
name: mortal
steps:
  receive:
    component: {WEBHOOK}
    function: receive
    to: [{{step: write, mapping: "{{'n': body}}"}}]
  write: {{component: {SCRIBE}, function: write, config: {{path: {out}}}}}
""",
        )
        [sidecar] = module_mesh.pids_of("sidecar", flow, "receive")
        for number in range(60):
            await post(module_mesh, flow, number)
            if number % 20 == 10:
                os.kill(evaluator_of(sidecar), signal.SIGKILL)
                await eventually(lambda: evaluator_of(sidecar) != 0)
        await eventually(lambda: len(read_lines(out)) == 60, within_s=30)
        assert sorted(body["n"] for body in bodies(out, "write")) == list(range(60))
        assert module_mesh.pids_of("sidecar", flow, "receive") == [sidecar]
        os.kill(sidecar, signal.SIGKILL)
        await eventually(lambda: module_mesh.pids_of("sidecar", flow, "receive") not in ([], [sidecar]), within_s=20)
        await post(module_mesh, flow, 60)
        await eventually(lambda: len(read_lines(out)) == 61, within_s=30)
        await client.stop(flow)
        await eventually(lambda: not module_mesh.pids_of("sidecar", flow, "receive"))
    assert not [p for p in psutil.process_iter(["cmdline"]) if _evaluates(p) and p.ppid() == 1]


def counting(name: str, out: Path, settings: str) -> str:
    return f"""
name: {name}
steps:
  receive: {{component: {WEBHOOK}, function: receive, to: [count]}}
  count: {{component: {SCRIBE}, function: count, to: [write], {settings}}}
  write: {{component: {SCRIBE}, function: write, config: {{path: {out}}}}}
"""


async def kept(client: AsyncClient, flow: str) -> dict[str, Any]:
    found = await client.list_snapshots(flow)
    return {item.key: json.loads(item.json) for item in found.snapshots}


STEPS = {
    "plain": "prefetch: 1",
    "careful": "prefetch: 16, retry: {attempts: 100, backoff: 1ms}, config: {careful: true}",
    "keyed": "key: body:/key, slots: 4",
}


async def test_every_message_is_counted_once_through_kills(module_mesh: RunningMesh, tmp_path: Path) -> None:
    """A plain step one message after the other, one that saves only over what it read, and one with a key."""
    keys, each = ["a", "b", "c"], 18
    async with AsyncClient(module_mesh.api) as client:
        flows = [
            await run_flow(client, tmp_path / f"{name}.yaml", counting(f"count-{name}", tmp_path / name, settings))
            for name, settings in STEPS.items()
        ]
        for number in range(each):
            for flow in flows:
                await post(module_mesh, flow, {"key": keys[number % 3], "n": number})
                if number in (4, 12):
                    await eventually(partial(module_mesh.kill, "sidecar", flow, "count"))
                if number == 8:
                    await eventually(partial(module_mesh.kill, "component", flow, "count"))
        for flow, name in zip(flows, STEPS, strict=True):
            wanted = {"": {"n": each}} if name != "keyed" else {key: {"n": each // 3} for key in keys}
            await eventually(partial(is_kept, client, flow, wanted), within_s=20)
            await eventually(lambda name=name: len(read_lines(tmp_path / name)) >= each)
            bodies = [line["body"] for line in read_lines(tmp_path / name)]
            emitted = Counter((body["key"] if name == "keyed" else "", body["n"]) for body in bodies)
            assert emitted == Counter((key, n + 1) for key, value in wanted.items() for n in range(value["n"])), name


async def test_it_is_kept_across_versions_and_reset_while_stopped(module_mesh: RunningMesh, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    async with AsyncClient(module_mesh.api) as client:
        file = tmp_path / "flow.yaml"
        flow = await run_flow(client, file, counting("versions", out, "prefetch: 1"))
        await post(module_mesh, flow, {"key": "a"})
        await eventually(lambda: is_kept(client, flow, {"": {"n": 1}}))
        file.write_text(counting("versions", out, "prefetch: 2"))
        await client.apply(file)
        await client.publish(flow)
        await post(module_mesh, flow, {"key": "a"})
        await eventually(lambda: is_kept(client, flow, {"": {"n": 2}}))
        [item] = (await client.list_snapshots(flow, "count")).snapshots
        assert (item.revision, item.version, item.step) == (2, 2, "count")
        with pytest.raises(WrongState, match="is RUNNING: its steps go by the snapshots they know"):
            await client.reset_snapshots(flow, "count")
        await client.stop(flow)
        with pytest.raises(NotFound, match="keeps no snapshot"):
            await client.reset_snapshots(flow, "write")
        assert await client.reset_snapshots(flow, "count") == 1
        await client.start(flow)
        await post(module_mesh, flow, {"key": "a"})
        await eventually(lambda: is_kept(client, flow, {"": {"n": 1}}))
        await client.stop(flow)
        await client.delete_flow(flow)


@pytest.mark.parametrize(("name", "settings"), [("plain", "prefetch: 4"), ("keyed", "key: body:/key")])
async def test_what_may_not_be_saved_fails_its_message(
    module_mesh: RunningMesh, tmp_path: Path, name: str, settings: str
) -> None:
    out = tmp_path / "out.jsonl"
    async with AsyncClient(module_mesh.api) as client:
        flow = await run_flow(client, tmp_path / "flow.yaml", counting(f"refused-{name}", out, settings))
        await post(module_mesh, flow, {"key": "a", "save": [1]})
        await eventually(lambda: is_kept(client, flow, {"a" if name == "keyed" else "": [1]}))
        await post(module_mesh, flow, {"key": "a", "save": "x" * 65_535})
        [letter] = await eventually(lambda: letters(client, flow, 1))
        assert (letter.reason, letter.attempt_count) == ("SNAPSHOT_REFUSED", 1)
        assert "a snapshot of 65537 bytes, more than 65536" in letter.error
        await client.discard_dead_letters(flow, all_letters=True)
        module_mesh.kill("sidecar", flow, "count")
        await post(module_mesh, flow, {"key": "a", "save": {"n": 7}})
        await post(module_mesh, flow, {"key": "a"})
        await eventually(lambda: is_kept(client, flow, {"a" if name == "keyed" else "": {"n": 8}}))


async def is_kept(client: AsyncClient, flow: str, wanted: dict[str, Any]) -> bool:
    assert await kept(client, flow) == wanted
    return True


async def test_a_batch_ends_message_by_message(module_mesh: RunningMesh, tmp_path: Path) -> None:
    """Without a key and with one: what fails, fails alone, though nothing is tried twice; of a
    key there is one message in a batch."""
    out = tmp_path / "out.jsonl"
    gather = f"component: {SCRIBE}, function: gather, to: [write], config: {{path: {out}}}"
    bad = {5: "poison", 6: "refuse"}
    async with AsyncClient(module_mesh.api) as client:
        flow = await run_flow(
            client,
            tmp_path / "flow.yaml",
            f"""
name: batches
steps:
  receive: {{component: {WEBHOOK}, function: receive, to: [plain, keyed]}}
  plain: {{{gather}, retry: {{attempts: 1}}}}
  keyed: {{{gather}, key: "body:/key", retry: {{attempts: 1}}}}
  write: {{component: {SCRIBE}, function: write, config: {{path: {out}}}}}
""",
        )
        sent = [{"n": n, "key": f"k{n % 4}", **({"does": bad[n]} if n in bad else {})} for n in range(24)]
        for first in (0, 12):
            await asyncio.gather(*(post(module_mesh, flow, body) for body in sent[first : first + 12]))
        found = await eventually(lambda: letters(client, flow, 4), within_s=20)
        assert sorted((letter.step, letter.reason, json.loads(letter.body)["n"]) for letter in found) == [
            (step, reason, n) for step in ("keyed", "plain") for reason, n in (("COMPONENT_ERROR", 5), ("REFUSED", 6))
        ]
        good = Counter(n for n in range(24) if n not in bad)
        await eventually(lambda: len(read_lines(out)) >= 2 * len(good), within_s=20)
        written = read_lines(out)
        assert Counter(line["body"]["n"] for line in written) == good + good
        assert len({line["id"] for line in written}) == len(written)
        batches = read_lines(tmp_path / "out.jsonl.batches")
        assert max(len(line["bodies"]) for line in batches) > 2
        keys = [[body["key"] for body in line["bodies"]] for line in batches if line["step"] == "keyed"]
        assert all(len(set(names)) == len(names) for names in keys)
        await client.discard_dead_letters(flow, all_letters=True)


def evaluator_of(sidecar: int) -> int:
    return next((p.pid for p in psutil.Process(sidecar).children() if _evaluates(p)), 0)


def _evaluates(process: psutil.Process) -> bool:
    try:
        return "services.sidecar.expression_worker" in process.cmdline()
    except psutil.Error:
        return False


async def _is(found: Any, wanted: int) -> bool:
    return bool(await found == wanted)
