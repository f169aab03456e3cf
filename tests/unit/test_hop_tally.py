"""Histograms filled from lots beside the same filled sample by sample, and what is told of inputs that are held."""

from __future__ import annotations

import time
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.edge.hop_recorder import HopRecorder
from headrace.edge.span_log import SpanLog
from headrace.model.deployment import DeploymentPlan, PinPlan, StepPlan
from headrace.model.flow_spec import RetryPolicy
from headrace.model.histogram import Histogram
from headrace.model.hop_record import HopOutcome, HopRecord, Site
from headrace.model.record_lot import RecordLot
from headrace.ports import Delivery
from headrace.wire.envelope import decode_envelope, encode_shared, seal
from services.sidecar.domain.delivery import Problem
from services.sidecar.held_input import HeldInput
from services.sidecar.hop_phases import HopPhases
from services.sidecar.hop_tally import ARRIVAL, CALL, END, WAY_OUT, HopTally
from services.sidecar.outbox import Outgoing
from tests.support.records import START, execution, hop

PIN = PinPlan("relay", 1, "sha256:" + "0" * 64, "", "", "")
STEPS = tuple(
    StepPlan(name, kind, "relay", PIN, {}, to, 64, 60.0, RetryPolicy())
    for name, kind, to in (("start", "trigger", ("price",)), ("price", "action", ("store",)), ("store", "action", ()))
)
PLAN = DeploymentPlan("default", "orders", "realtime", 1, 1, "start", STEPS, 1_000, 0.0, parking_epoch=0)
SENDERS = (Site("headrace-gateway", "default", "orders"), Site("relay", "default", "orders", step="start"))
US = 1_000

kinds = st.sampled_from([0, ARRIVAL, CALL, ARRIVAL | CALL | WAY_OUT, ARRIVAL | CALL | WAY_OUT | END])
spans = st.integers(-50 * US, 10**9)


@st.composite
def records(draw: st.DrawFn) -> HopRecord:
    stored, mono = START + draw(st.integers(0, 10**9)), 5_000_000_000
    read, entered, left = stored + draw(spans), mono + draw(spans), mono + draw(spans)
    return hop(draw(st.integers(0, 9)), sender=draw(st.sampled_from(SENDERS)), sampled=draw(st.booleans()))._replace(
        samples=draw(kinds),
        sent_at_unix_ns=draw(st.sampled_from([0, stored - 30 * US])),
        input_stored_at_unix_ns=draw(st.sampled_from([0, stored - 700 * US, stored + 3])),
        stored_at_unix_ns=stored, received_at_unix_ns=read, received_at_mono_ns=mono, entered_at_mono_ns=entered,
        left_at_mono_ns=left, written_at_mono_ns=left + draw(spans), ended_at_mono_ns=left + draw(spans),
        confirmed_at_unix_ns=stored + draw(spans),
    )  # fmt: skip


def one_by_one(lot: list[HopRecord]) -> dict[tuple[str, str, str], Histogram]:
    found: dict[tuple[str, str, str], Histogram] = {}

    def count(step: str, phase: str, receiver: str, ns: int) -> None:
        found.setdefault((step, phase, receiver), Histogram()).record(ns)

    for record in lot:
        if record.samples & ARRIVAL:
            sender = record.sender.step if record.sender is not None else ""
            count("price", "queue", "", record.received_at_unix_ns - record.stored_at_unix_ns)
            if record.sent_at_unix_ns:
                count(sender or "gateway", "publish", "price", record.stored_at_unix_ns - record.sent_at_unix_ns)
            if record.input_stored_at_unix_ns:
                count(sender, "hop", "price", record.stored_at_unix_ns - record.input_stored_at_unix_ns)
        if record.samples & CALL:
            count("price", "sidecar-in", "", record.entered_at_mono_ns - record.received_at_mono_ns)
            count("price", "component", "", record.left_at_mono_ns - record.entered_at_mono_ns)
        if record.samples & WAY_OUT:
            count("price", "sidecar-out", "", record.written_at_mono_ns - record.left_at_mono_ns)
        if record.samples & END:
            count("price", "publish", "", record.ended_at_mono_ns - record.written_at_mono_ns)
            count("price", "hop", "", record.confirmed_at_unix_ns - record.stored_at_unix_ns)
    return found


def told(recorder: HopRecorder) -> dict[tuple[str, str, str], tuple[Any, ...]]:
    return {
        (one.step, one.phase, one.receiver): (dict(one.buckets), one.sum_ns, one.max_ns, one.skewed)
        for one in recorder.snapshot().histograms
    }


@settings(max_examples=60)
@given(st.lists(st.lists(records(), max_size=20), max_size=4))
def test_lots_give_what_single_samples_give(lots: list[list[HopRecord]]) -> None:
    recorder = HopRecorder("price.0", 1, "price")
    tally = HopTally(PLAN, PLAN.step("price"), recorder)
    for lot in lots:
        tally.take(RecordLot(lot))
    expected = one_by_one([record for lot in lots for record in lot])
    assert told(recorder) == {
        key: (one.sparse(), one.sum_ns, one.max_ns, one.skewed) for key, one in expected.items() if one.count
    }


def test_a_hop_that_has_a_trace_is_shown_rather_than_one_that_has_none() -> None:
    recorder = HopRecorder("price.0", 1, "price")
    tally = HopTally(PLAN, PLAN.step("price"), recorder)
    took: dict[str, Any] = {"samples": ARRIVAL, "input_stored_at_unix_ns": START - 900 * US, "sender": SENDERS[1]}
    lot = [hop(number)._replace(**took) for number in range(5)]
    tally.take(RecordLot(lot))
    hops = recorder.phase("start", "hop", "price", PIN.digest)
    assert [shown.trace_id for shown in hops.exemplars.values()] == [b""]
    tally.take(RecordLot([*lot, hop(7, sampled=True)._replace(**took)]))
    (shown,) = hops.exemplars.values()
    assert (shown.execution_id, shown.trace_id.hex(), shown.ns) == (execution(7), execution(7), 900 * US)


class Mesh:
    """The hop records of one sidecar, whose path is put in by hand."""

    def __init__(self, step: str = "price", *, traced: bool = True) -> None:
        self.held: list[HeldInput] = []
        self.recorder = HopRecorder(f"{step}.0", 1, step)
        self.log = SpanLog()
        self.records: list[HopRecord] = []
        if traced:
            self.log.taps.append(lambda lot: self.records.extend(lot.hops))
        inputs = {"inputs": lambda: self.held}
        self.hops = HopPhases(PLAN, PLAN.step(step), self.recorder, span_log=self.log, **inputs)  # type: ignore[arg-type]

    def read(self, *, attempt: int = 1) -> HeldInput:
        message, now, mono = execution(1), time.time_ns(), time.monotonic_ns()
        stored = now - 300 * US
        shared = encode_shared(
            execution_id=execution(2), parent_id=execution(3), body=b"x", sender="start",
            input_stored_at_unix_ns=stored - 900 * US,
        )  # fmt: skip
        payload = seal(shared, message, stored - 200 * US)
        traceparent = f"00-{execution(2)}-{execution(3)[:16]}-01"
        delivery = Delivery("s", payload, message, traceparent, 1, attempt, stored, now, mono, b"")
        held = HeldInput(delivery, decode_envelope(payload), message, 0.0)
        self.held.append(held)
        return held

    def call(self, held: HeldInput) -> None:
        held.start_attempt()
        self.hops.began(held)
        held.entered_at_mono_ns = held.delivery.received_at_mono_ns + 100 * US
        held.left_at_mono_ns = held.entered_at_mono_ns + 50 * US

    def write(self, held: HeldInput, *after_us: int) -> None:
        held.outputs = list(after_us)
        for us in after_us:
            outgoing = Outgoing("s", "id", b"", "", cast(Any, None), cast(Any, None))
            outgoing.written_at_mono_ns = held.left_at_mono_ns + us * US
            self.hops.output_written(held, outgoing)

    def close(self, held: HeldInput, *, confirmed: bool = True) -> None:
        held.acknowledged_at_mono_ns = time.monotonic_ns()
        self.hops.closed(held, confirmed)
        self.held.remove(held)

    def sums(self) -> dict[tuple[str, str], tuple[int, int]]:
        return {
            (one.step, one.phase): (one.count, one.sum_ns // US)
            for one in self.recorder.snapshot().histograms
            if one.phase != "queue"
        }


ARRIVED = {("start", "publish"): (1, 200), ("start", "hop"): (1, 900)}
CALLED = {("price", "sidecar-in"): (1, 100), ("price", "component"): (1, 50)}


async def test_a_hop_gives_each_sample_once() -> None:
    for traced in (True, False):
        mesh = Mesh(traced=traced)
        held = mesh.read()
        mesh.call(held)
        mesh.write(held, 30)
        mesh.close(held)
        assert mesh.sums() == ARRIVED | CALLED | {("price", "sidecar-out"): (1, 30)}
        assert [record.outcome for record in mesh.records] == [HopOutcome.PROCESSED] * traced
        assert mesh.sums() == ARRIVED | CALLED | {("price", "sidecar-out"): (1, 30)}


async def test_whoever_asks_is_told_of_what_is_held_and_not_twice() -> None:
    mesh = Mesh()
    held = mesh.read()
    assert mesh.sums() == ARRIVED
    mesh.call(held)
    assert mesh.sums() == ARRIVED
    mesh.write(held, 30)
    mesh.close(held)
    assert mesh.sums() == ARRIVED | CALLED | {("price", "sidecar-out"): (1, 30)}


async def test_each_output_and_a_reply_has_its_way_out() -> None:
    mesh = Mesh()
    held = mesh.read()
    mesh.call(held)
    mesh.write(held, 30, 70, 50)
    mesh.close(held)
    assert mesh.sums()["price", "sidecar-out"] == (3, 150)
    assert mesh.records[0].written_at_mono_ns == held.left_at_mono_ns + 70 * US
    held = mesh.read()
    mesh.call(held)
    mesh.write(held, 30)
    mesh.hops.reply_written(held)
    mesh.close(held)
    assert mesh.sums()["price", "sidecar-out"][0] == 5


async def test_the_last_step_ends_with_a_confirmed_acknowledgement() -> None:
    mesh = Mesh("store")
    for confirmed in (True, False):
        held = mesh.read()
        mesh.call(held)
        mesh.close(held, confirmed=confirmed)
    counts = {key: count for key, (count, _) in mesh.sums().items()}
    assert counts == {
        ("start", "publish"): 2, ("start", "hop"): 2, ("store", "sidecar-in"): 2, ("store", "component"): 2,
        ("store", "sidecar-out"): 1, ("store", "publish"): 1, ("store", "hop"): 1,
    }  # fmt: skip


async def test_repeated_attempts_and_deliveries_give_no_samples_of_theirs() -> None:
    mesh = Mesh()
    held = mesh.read()
    mesh.call(held)
    mesh.hops.failed(held, Problem("NO_PRICE", "none"), retry_after_s=0.1)
    held.failures = 1
    mesh.call(held)
    mesh.write(held, 30)
    mesh.close(held)
    again = mesh.read(attempt=2)
    mesh.call(again)
    mesh.write(again, 30)
    mesh.close(again)
    assert mesh.sums() == ARRIVED
    assert [(record.outcome, record.attempt, record.opens) for record in mesh.records] == [
        (HopOutcome.RETRIED, 1, True), (HopOutcome.PROCESSED, 2, False), (HopOutcome.PROCESSED, 2, True),
    ]  # fmt: skip
