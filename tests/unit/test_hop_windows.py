"""Windows of hops against the samples themselves, whatever instances do meanwhile."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.model.histogram import Histogram
from headrace.model.histogram_part import HistogramPart, gained
from headrace.model.hop_windows import SPANS_S, HopWindows, Look, PhaseKey

HOP: PhaseKey = ("price", "hop", "check", "r1")
QUEUE: PhaseKey = ("price", "queue", "", "r1")
values = st.lists(st.integers(min_value=-1_000, max_value=10**11), max_size=20)


def part_of(samples: list[int]) -> HistogramPart:
    histogram = Histogram()
    for sample in samples:
        histogram.record(sample)
    return HistogramPart(histogram.sparse(), histogram.sum_ns, histogram.max_ns, histogram.skewed)


@given(values, values)
def test_what_was_gained_and_what_was_there_are_what_is_there(first: list[int], second: list[int]) -> None:
    before, after = part_of(first), part_of(first + second)
    between = gained(before, after)
    assert between is not None
    assert between.buckets == part_of(second).buckets
    assert (between.sum_ns, between.skewed) == (sum(second), sum(value < 0 for value in second))
    assert between.max_ns == pytest.approx(max([0, *second]), rel=0.05, abs=1)
    assert gained(after, before) is None or not second
    before.add(between)
    assert (before.buckets, before.sum_ns, before.skewed) == (after.buckets, after.sum_ns, after.skewed)
    before.remove(between)
    assert (before.buckets, before.sum_ns) == (part_of(first).buckets, sum(first))


@dataclass
class Instance:
    """One that counts, answers or not, and is started anew."""

    name: str
    incarnation: int = 1
    began_s: float = 0.0
    samples: dict[PhaseKey, list[int]] = field(default_factory=lambda: defaultdict(list))
    failed: int = 0
    unseen: dict[PhaseKey, list[int]] = field(default_factory=lambda: defaultdict(list))
    unseen_failed: int = 0

    def work(self, key: PhaseKey, samples: list[int], failed: int) -> None:
        for of in (self.samples, self.unseen):
            of[key].extend(samples)
        self.failed += failed
        self.unseen_failed += failed

    def start_anew(self, now_s: float) -> None:
        """What it measured since it was looked at last is lost with it."""
        self.incarnation += 1
        self.began_s, self.failed, self.unseen_failed = now_s, 0, 0
        self.samples.clear()
        self.unseen.clear()

    def look(self, now_s: float) -> Look:
        return Look(
            self.name, "price", "r1", self.incarnation, now_s - self.began_s,
            {key: part_of(samples) for key, samples in self.samples.items() if samples}, {"failed": self.failed},
        )  # fmt: skip


seconds = st.tuples(
    st.sampled_from(["a", "b", "c"]), st.sampled_from([HOP, QUEUE]), values, st.integers(0, 3),
    st.sampled_from(["work", "work", "work", "restart", "silent"]),
)  # fmt: skip


@settings(max_examples=60)
@given(st.lists(st.lists(seconds, max_size=3), min_size=1, max_size=14))
def test_windows_hold_exactly_what_was_gained(history: list[list[tuple[str, PhaseKey, list[int], int, str]]]) -> None:
    windows = HopWindows()
    instances = {name: Instance(name) for name in "ab"}
    windows.tick(0.0, [instance.look(0.0) for instance in instances.values()])
    ticks: list[tuple[dict[PhaseKey, list[int]], int]] = []
    for number, second in enumerate(history, start=1):
        silent = set()
        for name, key, samples, failed, what in second:
            if name not in instances:  # comes while we watch: it counts whole
                instances[name] = Instance(name, began_s=number - 0.5)
            if what == "restart":
                instances[name].start_anew(number - 0.5)
            if what == "silent":
                silent.add(name)
            instances[name].work(key, samples, failed)
        gain: dict[PhaseKey, list[int]] = defaultdict(list)
        errors = 0
        answering = [instance for instance in instances.values() if instance.name not in silent]
        for instance in answering:
            for key, fresh in instance.unseen.items():
                gain[key].extend(fresh)
            errors += instance.unseen_failed
            instance.unseen.clear()
            instance.unseen_failed = 0
        windows.tick(float(number), [instance.look(float(number)) for instance in answering])
        ticks.append((gain, errors))
        for span in SPANS_S:
            compare(windows, span, ticks[-span:])


def compare(windows: HopWindows, span: int, ticks: list[tuple[dict[PhaseKey, list[int]], int]]) -> None:
    window = windows.window(span)
    assert window.duration_s == pytest.approx(len(ticks))
    assert sum(counts.get("failed", 0) for counts in window.counters.values()) == sum(errors for _, errors in ticks)
    for key in (HOP, QUEUE):
        samples = sorted(sample for gain, _ in ticks for sample in gain[key])
        part = window.phases.get(key, HistogramPart())
        assert part.buckets == part_of(samples).buckets
        assert (part.sum_ns, part.skewed) == (sum(samples), sum(sample < 0 for sample in samples))
        assert part.max_ns == pytest.approx(max([0, *samples]), rel=0.05, abs=1)
        for fraction, found in zip((0.5, 0.95, 0.99), part.quantiles((0.5, 0.95, 0.99)), strict=True):
            if samples:
                exact = samples[max(1, math.ceil(fraction * len(samples))) - 1]
                assert found == pytest.approx(max(0, exact), rel=0.05, abs=1)


def test_what_was_there_before_the_watch_is_not_counted_however_late_it_answers() -> None:
    old, late = Instance("old", began_s=-100.0), Instance("late", began_s=-50.0)
    for instance in (old, late):
        instance.work(HOP, [1_000] * 500, 7)
    windows = HopWindows()
    windows.tick(0.0, [old.look(0.0)])
    windows.tick(1.0, [old.look(1.0), late.look(1.0)])
    assert windows.window(60).phases == {}
    late.work(HOP, [2_000], 1)
    windows.tick(2.0, [old.look(2.0), late.look(2.0)])
    assert windows.window(60).phases[HOP].count == 1
    assert windows.window(60).counters["price", "r1"]["failed"] == 1


def test_counts_that_go_back_are_counted_from_zero_also_without_another_incarnation() -> None:
    before, after = Instance("a"), Instance("a")
    before.work(HOP, [5_000] * 10, 4)
    after.work(HOP, [7_000] * 3, 2)
    windows = HopWindows()
    windows.tick(0.0, [before.look(0.0)])
    windows.tick(1.0, [after.look(1.0)])
    assert windows.window(1).phases[HOP].count == 3
    assert windows.window(1).counters["price", "r1"]["failed"] == 2


def test_revisions_stand_side_by_side_and_what_is_gone_leaves_its_window() -> None:
    new: PhaseKey = ("price", "hop", "check", "r2")
    old_one, new_one = Instance("d1.price.0"), Instance("d2.price.0", began_s=2.5)
    windows = HopWindows()
    windows.tick(0.0, [old_one.look(0.0)])
    old_one.work(HOP, [1_000] * 5, 0)
    windows.tick(1.0, [old_one.look(1.0)])
    windows.tick(2.0, [old_one.look(2.0)])
    new_one.work(new, [2_000] * 4, 0)
    windows.tick(3.0, [new_one.look(3.0)])
    assert {key: part.count for key, part in windows.window(10).phases.items()} == {HOP: 5, new: 4}
    assert {key: part.count for key, part in windows.window(1).phases.items()} == {new: 4}
    for second in range(4, 80):
        windows.tick(float(second), [new_one.look(float(second))])
    assert windows.window(60).phases == {}
    assert windows.window(60).duration_s == pytest.approx(60)


def test_exemplars_are_few_the_slowest_first_and_of_the_window_only() -> None:
    histogram = Histogram()
    histogram.mark(100, 10, "fast")
    histogram.mark(9_000, 10, "slow")

    def look(now_s: float) -> Look:
        phases = {HOP: HistogramPart(histogram.sparse(), histogram.sum_ns, histogram.max_ns)}
        return Look("a", "price", "r1", 1, now_s, phases, exemplars={HOP: [*histogram.exemplars.values()]})

    windows = HopWindows()
    windows.tick(0.0, [look(0.0)])
    for number, (ns, name) in enumerate([(100, "a"), (3_000, "b"), (9_100, "c"), (70_000, "d")]):
        histogram.record(ns)
        histogram.mark(ns, 10**9 * (number + 1), name, b"t" * 16 if name == "d" else b"")
    windows.tick(1.0, [look(1.0)])
    found = windows.window(10).exemplars[HOP]
    assert [exemplar.execution_id for exemplar in found] == ["d", "c", "b"]
    assert found[0].trace_id == b"t" * 16
    windows.tick(2.0, [look(2.0)])
    assert windows.window(1).exemplars == {}
    assert len(windows.window(10).exemplars[HOP]) == 3


def test_an_exemplar_makes_room_after_half_a_second_or_for_one_with_a_trace() -> None:
    histogram = Histogram()
    histogram.mark(1_000, 0, "first")
    histogram.mark(1_001, 400_000_000, "too soon")
    assert [found.execution_id for found in histogram.exemplars.values()] == ["first"]
    histogram.mark(1_001, 400_000_000, "traced", b"t" * 16)
    assert [found.execution_id for found in histogram.exemplars.values()] == ["traced"]
    histogram.mark(1_002, 900_000_000, "later")
    assert [found.execution_id for found in histogram.exemplars.values()] == ["later"]
