"""Components that do their worst, one crime after the other, in one mesh: what happened is named, the sidecar stays as
it was and as small as it was, and whoever has nothing to do with it notices nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.robustness.hostile_mesh import FLOW, HostileMesh, beside, hostile_mesh, letters, own_memory_mb
from tests.support import soak
from tests.support.eventually import eventually

SIDECAR_GROWTH_MB = 120
"""Bodies held, frames of 16 MiB decoded, and what the allocator does not give back."""
SLOWER_AT_MOST = 6.0
SLACK_S = 0.03
"""Two processors are shared by a crime and the whole mesh."""


@dataclass(frozen=True)
class Crime:
    """What is expected of a message that makes the component do it: delivered, or dead-lettered with a reason and
    words; and the reason that the instance's status names meanwhile, where there is one. On a machine that is slow
    enough some take longer than the step's timeout, which is an end as well."""

    name: str
    letter: str = ""
    words: str = ""
    status: str = ""


CRIMES = [
    Crime("fill_memory", "COMPONENT_ERROR|COMPONENT_DIED", "MemoryError|MiB of memory"),
    Crime("fork_without_end", "COMPONENT_DIED", "more than 40 processes", "PROCESS_LIMIT"),
    Crime("spin_and_ignore_sigterm", "COMPONENT_DIED", "event loop was blocked", "NOT_RESPONDING"),
    Crime("block_the_loop", "COMPONENT_DIED", "event loop was blocked", "NOT_RESPONDING"),
    Crime("never_end", "TIMEOUT", "took longer than 1 s"),
    Crime("close_the_socket", "COMPONENT_DIED", ""),
    Crime("corrupt_the_socket", "|COMPONENT_DIED", ""),
    Crime("answer_unknown_calls"),
    Crime("answer_twice"),
    Crime("emit_millions", "OUTPUT_REFUSED|COMPONENT_DIED|TIMEOUT", ""),
    Crime("emit_after_end"),
    Crime("emit_100_mb", "ATTACHMENT_TOO_LARGE|TIMEOUT", "more than 104857600 bytes|took longer"),
    Crime("emit_100_mb_in_pieces", "OUTPUT_REFUSED|TIMEOUT", "more than 33554432 bytes|took longer"),
    Crime("emit_huge_headers", "OUTPUT_REFUSED", "bytes of headers"),
    Crime("flood_logs"),
    Crime("log_deep_json"),
    Crime("delete_own_directory", "COMPONENT_DIED", "exit status 7"),
    Crime("alter_own_code", "COMPONENT_DIED", "exit status 8"),
    Crime("return_deep_json"),
    Crime("segfault", "COMPONENT_DIED", "SIGSEGV"),
]
# Of the long form: other ways to what the list above does.
MORE = [
    Crime("leak_memory", "COMPONENT_DIED|TIMEOUT", "MiB of memory|took longer", "MEMORY_LIMIT"),
    Crime("emit_100_mb_raw", "COMPONENT_DIED", ""),
]
if soak.ASKED:
    CRIMES += MORE


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostileMesh]:
    with hostile_mesh(tmp_path_factory.mktemp("hostile")) as mesh:
        yield mesh


@pytest.mark.timeout(90)
@pytest.mark.parametrize("crime", CRIMES, ids=[crime.name for crime in CRIMES])
async def test_a_crime_is_contained(running: HostileMesh, crime: Crime, capsys: pytest.CaptureFixture[str]) -> None:
    sidecar = running.mesh.pid_of("sidecar", FLOW, "act")
    memory_mb = own_memory_mb(sidecar)
    async with beside(running) as bystander:
        before_s = bystander.median_s()
        bystander.latencies.clear()
        ending, peak_mb, reasons = await commit(running, crime, sidecar)
        await eventually(lambda: len(bystander.latencies) >= 10)
        meanwhile_s = bystander.median_s()
    with capsys.disabled():
        print(
            f"\n{crime.name}: {ending}; {' '.join(sorted(reasons)) or 'no cause'}; sidecar {memory_mb:.0f} → "
            f"{peak_mb:.0f} MB; bystander {before_s * 1000:.1f} → {meanwhile_s * 1000:.1f} ms"
        )
    assert bystander.statuses == {200}
    assert meanwhile_s <= SLOWER_AT_MOST * before_s + SLACK_S
    assert peak_mb <= memory_mb + SIDECAR_GROWTH_MB
    assert crime.status in reasons or not crime.status, reasons
    await running.handles(f"after {crime.name}".encode())
    assert running.mesh.pid_of("sidecar", FLOW, "act") == sidecar


async def commit(running: HostileMesh, crime: Crime, sidecar: int) -> tuple[str, float, set[str]]:
    """Until its message has ended: how; the sidecar's largest memory; the reasons its status gave."""
    body = f"{crime.name} {os.urandom(4).hex()}".encode()
    reasons: set[str] = set()
    peak_mb = [0.0]
    ended: list[str] = []
    async with letters(running) as dead:
        # The step beside answers, unless the other's failure is known even sooner.
        assert await running.post(FLOW, body, crime.name) in (200, 500)

        async def over() -> bool:
            peak_mb[0] = max(peak_mb[0], own_memory_mb(sidecar))
            instance = running.instance()
            reasons.update({instance.cause_reason} - {""})
            if (letter := await dead.of(body)) is not None:
                ended.append(f"{letter.reason}: {letter.attempts[-1].message[:150]}")
            elif body.decode() in running.kept_lines():
                ended.append("delivered")
            return bool(ended)

        await eventually(over, within_s=60, every_s=0.1)
    expected = crime.letter.split("|") if crime.letter else [""]
    reason = ended[0].partition(":")[0]
    assert ("" if reason == "delivered" else reason) in expected, ended
    if reason != "delivered":
        assert any(words in ended[0] for words in crime.words.split("|")), ended
    return ended[0], peak_mb[0], reasons


def test_nothing_of_it_is_left_behind(running: HostileMesh) -> None:
    """The last one: what was forked is gone, and an instance whose component ignores SIGTERM ends in time."""
    sleepers = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _command(pid) == b"sleep\x0061\0"]
    assert sleepers == []
    assert running.mesh.stop() == 0
    assert running.mesh.processes() == []
    log = "".join(file.read_text(errors="replace") for file in sorted(running.mesh.data.rglob("*.log")))
    assert "Traceback" not in log


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
