"""Flows under orchestrators, agents and sidecars that die, stop and hear late, in virtual time: the laws of
tests/simulation/laws.py hold in every run, and each run comes to rest once nothing breaks any more.

A failure names its seed and commit: `pytest tests/simulation -k seed --seed N` (or HEADRACE_SEED=N) runs it again.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from services.orchestrator.lease import Lease
from tests.simulation.flow_drafts import Trigger
from tests.simulation.script import run
from tests.support import soak
from tests.support.memory_bucket import MemoryBucket

ROOT = Path(__file__).resolve().parents[2]
WORKERS = 2
SEEDS = 1000
# For each round of a soak.
SEEDS_PER_ROUND = 10
# Seeds that once broke a law or told two stories, with what was wrong.
FOUND: dict[int, str] = {
    7: "the agent told its watchers in no certain order",
    1103: "a sidecar died while the leader changed",
    5429: "a pin that an earlier leader wrote came after its deployment was forgotten",
    3126: "suspended while an older deployment drained",
    3411: "suspended while an older deployment drained",
}


def commit() -> str:
    asked = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, timeout=20).stdout.strip()


def explain(seed: int, problems: list[str]) -> str:
    again = f"pytest tests/simulation -k seed --seed {seed}"
    return f"seed {seed} at commit {commit()} broke: " + "; ".join(problems[:5]) + f"\nrun it again: {again}"


def test_seed(seed: int) -> None:
    """One run, its story printed when it fails."""
    world = run(seed)
    print("\n".join(world.trace))
    assert not world.violations, explain(seed, world.violations)


def test_the_same_seed_tells_the_same_story() -> None:
    assert run(7).trace == run(7).trace


@pytest.mark.parametrize("seed", sorted(FOUND))
def test_what_was_found_stays_mended(seed: int) -> None:
    world = run(seed)
    assert not world.violations, explain(seed, world.violations)


def test_runs_do_something() -> None:
    """Laws that hold because nothing happens say nothing."""
    worlds = [run(seed) for seed in range(48)]
    for keyed in range(3):
        assert sum(len(world.laws.ledger.done) for world in worlds if world.keyed == keyed) > 0
    for trigger in Trigger:
        assert sum(len(world.laws.ledger.done) for world in worlds if world.triggers == trigger) > 0
    assert sum(len(world.laws.owners) for world in worlds) > 10


def test_a_mesh_without_compare_and_set_is_seen_to_break(monkeypatch: pytest.MonkeyPatch) -> None:
    """The laws can fail: with writes that ask for no revision they do."""
    monkeypatch.setattr(MemoryBucket, "_check", lambda self, key, revision: None)
    assert any(run(number).violations for number in range(40))


def test_two_leaders_at_once_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lease, "leading", property(lambda self: True))
    assert any("lead at once" in law for law in run(0).violations)


@pytest.mark.timeout(0)
def test_laws_hold_in_all_runs() -> None:
    each = max(soak.ASKED * SEEDS_PER_ROUND, SEEDS) // WORKERS
    began = time.monotonic()
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.simulation", str(first), str(each), str(WORKERS)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for first in range(WORKERS)
    ]
    failures = []
    for worker in workers:
        output, _ = worker.communicate()
        failures += [json.loads(line) for line in output.splitlines()]
        assert worker.returncode in (0, 1), f"a worker ended with {worker.returncode}"
    soak.TOTALS.simulated += each * WORKERS
    print(f"{each * WORKERS} runs in {time.monotonic() - began:.0f} s, {len(failures)} broke a law")
    told = [explain(failure["seed"], failure["problems"]) for failure in failures[:5]]
    assert not failures, f"{len(failures)} of {each * WORKERS} runs failed\n" + "\n".join(told)
