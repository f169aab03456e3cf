"""What one message costs the sidecar, stage by stage: `python -m benchmarks.ledger [messages] [rounds]`, JSON.

One process drives the delivery path of one plain step (pull, calls, outputs, acknowledgements, hop records) against a
real broker. The component is a loopback: its frames are encoded and decoded as they are in a sidecar, but go over no
socket. Processor time is that of this process; a sampler on that very clock (ITIMER_PROF) divides it among stages by
the innermost function of ours, C code counting for its caller. Schema of the answer:

    {"schema": 1, "messages": N, "rounds": [us per message, loopback included], "us_per_message": median without it,
     "samples": n, "stages_us": {stage: us per message}, "functions_us": {the dearest functions: us per message}}

Stages: `read` (the socket's bytes cut into frames), `pull` (deliveries, credit), `decode` (envelope to held input),
`dispatch` (held inputs to calls), `stream write` and `stream read` (frames of the component stream), `outcome` (events
to what becomes of the input), `encode` (ids and envelopes of outputs), `publish`, `ack`, `hop record`, `socket write`,
`loop` (uvloop itself), `component` (the loopback; no part of the sum), `other`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any, cast

import uvloop

from headrace.edge.broker_process import BrokerProcess
from headrace.edge.component_frames import ComponentFrames
from headrace.edge.hop_recorder import HopRecorder
from headrace.edge.jetstream_assets import JetStreamAssets
from headrace.edge.jetstream_lane import NatsLane
from headrace.edge.nats_connection import close_nats, connect_nats
from headrace.edge.nats_link import NatsLink
from headrace.edge.span_log import SpanLog
from headrace.edge.trace_keeper import TraceKeeper
from headrace.model import subjects
from headrace.model.deployment import DeploymentPlan, PinPlan, StepPlan
from headrace.model.flow_spec import RetryPolicy
from headrace.model.flow_stream import flow_stream_config
from headrace.model.message_ids import execution_id, output_message_id, stimulus_id
from headrace.ports import ComponentInput, LaneFull
from headrace.sdk.lot_frame import LotFrame
from headrace.wire.envelope import encode_shared, seal
from services.sidecar.__main__ import COLLECT_AFTER
from services.sidecar.careful_start import CarefulStart
from services.sidecar.data_plane import DataPlane

WORKSPACE, FLOW, STEP = "default", "ledger", "one"
PREFETCH = 256
BODY = b"x" * 256
TICK_S = 0.001
ROOT = str(Path(__file__).parent.parent)

STAGES = {
    "headrace/edge/nats_session.py": "read",
    "headrace/wire/nats_protocol.py": "read",
    "headrace/edge/nats_link.py": "read",
    "headrace/edge/pull_consumption.py": "pull",
    "headrace/edge/open_pulls.py": "pull",
    "headrace/wire/jetstream.py": "pull",
    "headrace/wire/jetstream.py:parse_pub_ack": "publish",
    "headrace/wire/jetstream.py:publish_headers": "publish",
    "services/sidecar/input_path.py": "decode",
    "services/sidecar/held_input.py": "decode",
    "headrace/wire/envelope.py:decode_envelope": "decode",
    "headrace/wire/envelope.py": "encode",
    "headrace/wire/spliced_envelope.py": "encode",
    "services/sidecar/call_dispatch.py": "dispatch",
    "headrace/edge/component_frames.py:_take": "stream read",
    "headrace/edge/component_frames.py:_take_ended": "stream read",
    "headrace/edge/component_frames.py:ended_lot": "stream read",
    "headrace/edge/component_frames.py": "stream write",
    "services/sidecar/call_events.py": "outcome",
    "services/sidecar/delivery_loop.py": "outcome",
    "services/sidecar/careful_start.py": "outcome",
    "services/sidecar/event_reader.py": "outcome",
    "services/sidecar/late_emits.py": "outcome",
    "services/sidecar/liveness.py": "outcome",
    "services/sidecar/domain/delivery.py": "outcome",
    "services/sidecar/domain/ended_calls.py": "outcome",
    "services/sidecar/domain/sender_memory.py": "ack",
    "services/sidecar/outputs.py": "encode",
    "headrace/model/message_ids.py": "encode",
    "services/sidecar/settlement.py": "publish",
    "services/sidecar/plain_rows.py": "encode",
    "services/sidecar/plain_rows.py:_stored": "ack",
    "services/sidecar/row_edge.py": "publish",
    "services/sidecar/outbox.py": "publish",
    "services/sidecar/domain/edge_window.py": "publish",
    "headrace/edge/lane_publishes.py": "publish",
    "headrace/edge/jetstream_lane.py": "publish",
    "headrace/edge/jetstream_lane.py:acknowledge": "ack",
    "headrace/edge/lane_acks.py": "ack",
    "services/sidecar/closing.py": "ack",
    "services/sidecar/hop_phases.py": "hop record",
    "services/sidecar/hop_tally.py": "hop record",
    "headrace/edge/hop_recorder.py": "hop record",
    "headrace/model/record_lot.py": "hop record",
    "headrace/model/histogram.py": "hop record",
    "headrace/model/trace_context.py": "hop record",
    "headrace/edge/span_log.py": "hop record",
    "headrace/edge/trace_keeper.py": "hop record",
    "headrace/model/recent_executions.py": "hop record",
    "headrace/model/sampling.py": "hop record",
    "headrace/edge/clock_pair.py": "hop record",
    "headrace/edge/gathered_writes.py": "socket write",
    "benchmarks/ledger.py": "component",
}
"""Stage of a file, or of one function of it."""


class LoopbackStream(ComponentFrames):
    """Frames as in a sidecar; each is answered a turn later by what a component that passes its input on would send."""

    def __init__(self, on_events: Any) -> None:
        super().__init__(on_events=on_events, on_closed=lambda cause: None)
        self._loop = asyncio.get_running_loop()
        self._started = self.component_takes_lots = True
        self._scheduled = False
        self._given: list[ComponentInput] = []

    def send(self, inputs: Sequence[ComponentInput]) -> None:
        super().send(inputs)
        self._given += inputs

    async def close(self, timeout_s: float = 2.0) -> None:
        """See the port."""

    def _wake(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._go)

    def _go(self) -> None:
        self._scheduled = False
        while self._waiting:
            self._next_frame()
        given, self._given = self._given, []
        if given:
            self._take(_answer(given))


def _answer(given: list[ComponentInput]) -> bytes:
    """All are bare, and of one media type."""
    frame = LotFrame()
    for item in given:
        now = time.monotonic_ns()
        frame.done(item.call, item.body, item.content_type, now - 20_000, now)
    return frame.finished().SerializeToString()


class Sampler:
    """Counts where the processor is, every `TICK_S` of this process's own time."""

    def __init__(self) -> None:
        self.stages: Counter[str] = Counter()
        self.functions: Counter[str] = Counter()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        before = signal.signal(signal.SIGPROF, self._note)
        signal.setitimer(signal.ITIMER_PROF, TICK_S, TICK_S)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, before)

    def _note(self, _number: int, frame: FrameType | None) -> None:
        while frame is not None:
            name = frame.f_code.co_filename
            if name.startswith(ROOT) and "/.venv/" not in name:
                break
            frame = frame.f_back
        if frame is None:
            self.stages["loop"] += 1
            return
        path, function = frame.f_code.co_filename[len(ROOT) + 1 :], frame.f_code.co_name
        stage = STAGES.get(f"{path}:{function}") or STAGES.get(path, "other")
        # The loopback and whatever drives the loop are no part of the sidecar's cost.
        self.stages["loop" if function in ("measure", "<module>", "main") else stage] += 1
        self.functions[f"{path}:{frame.f_code.co_qualname}"] += 1


def _plan() -> DeploymentPlan:
    pin = PinPlan("relay", 1, "sha256:" + "0" * 64, "", "", "")
    steps = tuple(
        StepPlan(name, "action" if index else "trigger", "relay", pin, {}, to, PREFETCH, 60.0, RetryPolicy())
        for index, (name, to) in enumerate((("start", (STEP,)), (STEP, ("two",)), ("two", ())))
    )
    return DeploymentPlan(WORKSPACE, FLOW, "realtime", 1, 1, "start", steps, 1_000_000, 0.0, parking_epoch=0)


async def _fill(lane: NatsLane, count: int) -> None:
    """Messages as the sidecar of `start` sends them."""
    subject = subjects.data_subject(WORKSPACE, FLOW, subjects.deployment_owner(1), STEP)
    last = None
    for number in range(count):
        stimulus = stimulus_id(FLOW, "webhook", str(number))
        execution, parent = execution_id(stimulus), output_message_id(stimulus, "", "", "start")
        message = output_message_id(parent, "start", "0", STEP)
        now = time.time_ns()
        shared = encode_shared(
            execution_id=execution,
            parent_id=parent,
            body=BODY,
            content_type="application/octet-stream",
            sender="start",
            input_stored_at_unix_ns=now - 1_000_000,
        )
        traceparent = f"00-{execution}-{parent[16:]}-01"
        while True:
            try:
                last = lane.publish(
                    subject, seal(shared, message, now), message_id=message, traceparent=traceparent, timeout_s=60
                )
                break
            except LaneFull:
                await lane.room()
        if number % 64 == 0:
            await asyncio.sleep(0)
    if last is not None:
        await last


async def _world(url: str) -> Any:
    connection = await connect_nats(url, "ledger")
    assets = JetStreamAssets(connection)
    owner = subjects.deployment_owner(1)
    stream = subjects.flow_stream(WORKSPACE, FLOW)
    listed = [subjects.owner_filter(WORKSPACE, FLOW, owner)]
    await assets.create_stream(flow_stream_config(stream, listed, max_waiting=1_000_000))
    await assets.ensure_consumer(
        stream,
        {
            "durable_name": subjects.step_consumer(1, STEP),
            "filter_subject": subjects.data_subject(WORKSPACE, FLOW, owner, STEP),
            "ack_policy": "explicit",
            "ack_wait": 30_000_000_000,
            "max_deliver": -1,
            "max_ack_pending": 1000,
        },
    )
    return connection


async def measure(count: int, rounds: int) -> dict[str, Any]:
    """Fills, then runs; the first round, in which everything is warmed up, does not count."""
    sampler = Sampler()
    with tempfile.TemporaryDirectory(prefix="hr-ledger-") as folder:
        broker = BrokerProcess(Path(folder) / "broker")
        await broker.start()
        try:
            connection = await _world(broker.url)
            filler = NatsLane(await NatsLink.connect(broker.url, "filler"))
            await filler.start()
            async with asyncio.TaskGroup() as tasks:
                spent = await _rounds(broker.url, Path(folder), filler, tasks, sampler, count, rounds)
            await filler.close()
            await close_nats(connection)
        finally:
            await broker.stop()
    samples = sum(sampler.stages.values())
    median = statistics.median(spent)
    share = median / max(1, samples)
    stages = {stage: round(number * share, 1) for stage, number in sampler.stages.most_common()}
    own = samples - sampler.stages["component"]
    return {
        "schema": 1,
        "messages": count,
        "rounds": [round(us, 1) for us in spent],
        "us_per_message": round(own * share, 1),
        "samples": samples,
        "stages_us": stages,
        "functions_us": {name: round(number * share, 2) for name, number in sampler.functions.most_common(40)},
    }


async def _rounds(
    url: str,
    folder: Path,
    filler: NatsLane,
    tasks: asyncio.TaskGroup,
    sampler: Sampler,
    count: int,
    rounds: int,
) -> list[float]:
    plan = _plan()
    lane = NatsLane(await NatsLink.connect(url, "ledger"))
    await lane.start()
    span_log = SpanLog()
    TraceKeeper(span_log, WORKSPACE, FLOW, "ledger")
    plans: Any = SimpleNamespace(retired=False, state=None, ask_again=lambda: None)
    plane = DataPlane(
        plan,
        plan.step(STEP),
        lane,
        plans,
        tasks,
        recorder=HopRecorder("ledger", 1, STEP),
        span_log=span_log,
        instance="ledger",
        restart_consumer=cast(Any, None),
        attachments=cast(Any, None),
        broker_since=lambda: 0.0,
        answers=lambda: None,
        on_finished=lambda: None,
        on_occupancy=lambda: None,
        end_component=lambda reason, cause: None,
        answer_limit_s=3.0,
        careful=CarefulStart(folder / "deaths"),
        on_leases=lambda: None,
    )
    process: Any = SimpleNamespace(carries_bytes=False)
    plane.component_ready(process, LoopbackStream(plane.loop.on_events))
    await _fill(filler, count * (rounds + 1))
    spent = []
    plane.activate()
    with contextlib.ExitStack() as stack:
        for number in range(rounds + 1):
            began, before = time.process_time(), plane.counters["processed"]
            while plane.counters["processed"] < count * (number + 1):
                await asyncio.sleep(0.01)
            if number:
                spent.append(1e6 * (time.process_time() - began) / (plane.counters["processed"] - before))
            else:
                stack.enter_context(sampler.running())
    await plane.finish(1.0)
    await lane.close()
    return spent


def main() -> None:
    gc.set_threshold(*COLLECT_AFTER)
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(measure(count, rounds)), indent=1))


if __name__ == "__main__":
    main()
