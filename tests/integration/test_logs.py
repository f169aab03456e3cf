"""Log lines joined to their calls, from a component on a real mesh: filtered, masked, exported."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from headrace.client import AsyncClient, InvalidInput
from tests.support.commands import headrace
from tests.support.eventually import eventually
from tests.support.mesh import RunningMesh, start_mesh
from tests.support.otlp_collector import Collector, otlp_collector
from tests.support.small_flow import HEAD, SmallFlow

CODE = (
    HEAD
    + """
import logging

@component.action
async def act(order: dict, ctx: Context) -> None:
    ctx.log.warning("priced", sku=order["sku"], api_key="abcdefgh")
    print("printed", order["sku"])
    print("in two", end=" ")
    logging.getLogger("own").error("logged, password=abcdefgh")
    print("pieces")
    await ctx.reply({"sku": order["sku"]})
"""
)


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with otlp_collector() as running:
        yield running


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[RunningMesh]:
    with start_mesh(tmp_path_factory.mktemp("mesh"), "fast", "--otlp", collector.url) as running:
        yield running


@pytest.fixture(scope="module")
def flow(mesh: RunningMesh, tmp_path_factory: pytest.TempPathFactory) -> SmallFlow:
    made = SmallFlow.write(mesh, tmp_path_factory.mktemp("flow"), CODE, act="config: {token: t0p-secret}")
    made.run()
    return made


async def test_each_line_says_its_call_and_is_found_by_it(
    mesh: RunningMesh, flow: SmallFlow, collector: Collector, tmp_path: Path
) -> None:
    before = datetime.now(UTC)
    one = (await flow.post(b'{"sku": "A-t0p-secret"}')).headers["headrace-execution"]
    two = (await flow.post(b'{"sku": "B"}')).headers["headrace-execution"]
    async with AsyncClient(mesh.api) as client:

        async def lines() -> list[tuple[str, str]]:
            found = [(line.level, line.message) async for line in client.tail_logs(flow.name, execution=one)]
            assert len(found) == 4
            return found

        assert sorted(await eventually(lines)) == [
            ("error", "logged, password=***"),
            ("info", "in two pieces"),
            ("info", "printed A-***"),
            ("warning", "priced"),
        ]
        line, *_ = [line async for line in client.tail_logs(flow.name, execution=one, level="warning")]
        assert (line.step, line.revision, line.version) == ("act", f"{flow.name}@1", 1)
        assert (len(line.trace_id), len(line.span_id), line.digest[:7]) == (32, 16, "sha256:")
        assert json.loads(line.fields_json) == {"sku": "A-***", "api_key": "***"}
        assert {item.execution_id async for item in client.tail_logs(flow.name, level="error")} == {one, two}
        assert len([item async for item in client.tail_logs(flow.name, since=before)]) >= 8
        later = datetime.now(UTC) + timedelta(seconds=5)
        assert [item async for item in client.tail_logs(flow.name, since=later)] == []
        with pytest.raises(InvalidInput, match="debug, info, warning, error"):
            assert [item async for item in client.tail_logs(flow.name, level="loud")] == []
        await _exported(collector, one, line.trace_id)


async def _exported(collector: Collector, execution: str, trace_id: str) -> None:
    def all_of_them() -> bool:
        records = [item for item in collector.records if item.attributes.get("headrace.execution") == execution]
        assert len(records) == 4
        assert {item.trace_id for item in records} == {trace_id}
        assert trace_id in {span.trace_id for span in collector.spans}
        assert "abcdefgh" not in str(records)
        return True

    await eventually(all_of_them)


def test_the_command_filters_too(mesh: RunningMesh, flow: SmallFlow) -> None:
    out = headrace("logs", flow.name, "--level", "warning", "--since", "10m", "--step", "act", data=mesh.data).ok()
    assert {row.split()[2] for row in out.splitlines()} == {"warning", "error"}
    assert "execution=" in out
    assert headrace("logs", flow.name, "--since", "yesterday", data=mesh.data).status == 2
