"""Flame graphs of a sidecar and of its component under load, and the ledger of a message: `make profile SCENARIO=…`.

py-spy samples both processes of the middle step 200 times a second while the flow is saturated (`latency`: at 200
messages a second); the pictures are SVGs. The ledger (benchmarks/ledger.py) is measured afterwards, without a sampler.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
from pathlib import Path

from benchmarks.blast import Blast
from benchmarks.flows_at_work import OPAQUE_BODY, OPAQUE_TYPE, chain, last_of, saturated
from benchmarks.mesh_bench import BenchMesh, bench_mesh
from benchmarks.throughput import SHAPES, body_for
from headrace.model.flow_spec import FlowSpec
from headrace.model.mesh_trigger import entry_of

TARGET = Path("build/profile")
SAMPLES_PER_S = 200
LATENCY, LATENCY_RATE = "latency", 200.0


def told(line: str) -> None:
    print(f"  {line}", flush=True)


async def profile(scenario: str, profile_name: str, seconds: float) -> list[Path]:
    """The files it wrote."""
    spec = chain(3) if scenario == LATENCY else SHAPES[scenario]
    async with bench_mesh(profile_name, told) as bench:
        await bench.prepare("opaque")  # pushes the component
        name = await bench.begin("profiled", spec)
        body = OPAQUE_BODY if scenario == LATENCY else body_for(scenario)
        content_type = "application/json" if callable(body) else OPAQUE_TYPE
        async with bench.blast(name, body, content_type, trigger=entry_of(spec, "start").name) as load:
            return await _sampled(bench, name, spec, load, scenario, seconds)


async def _sampled(
    bench: BenchMesh, name: str, spec: FlowSpec, load: Blast, scenario: str, seconds: float
) -> list[Path]:
    warm = await saturated(bench, name, last_of(spec), load, 1.0)
    told(f"{scenario}: {warm['messages_per_s']} messages/s, {warm['cpu_us_per_message']} us of processor a message")
    step = spec.steps[min(1, len(spec.steps) - 1)].name  # never a trigger without a process
    status = await bench.client.get_status(name)
    instance = next(found.instances[0] for found in status.steps if found.step == step)
    TARGET.mkdir(parents=True, exist_ok=True)
    kinds = {"sidecar": instance.sidecar_pid, "component": instance.component_pid}
    files = [TARGET / f"{scenario}-{kind}.svg" for kind in kinds]
    samplers = [await _sampler(pid, file, seconds) for pid, file in zip(kinds.values(), files, strict=True)]
    until = asyncio.get_running_loop().time() + seconds + 1
    if scenario == LATENCY:
        paced = await bench.load(name, OPAQUE_BODY, OPAQUE_TYPE)
        await paced.paced(LATENCY_RATE, seconds + 1)
        paced.close()
    while asyncio.get_running_loop().time() < until:
        await load.prepare(warm["messages_per_s"])
        await load.send()
    for sampler in samplers:
        _, said = await sampler.communicate()
        if sampler.returncode:
            raise SystemExit(f"py-spy: {said.decode(errors='replace').strip()}")
    return files


async def _sampler(pid: int, file: Path, seconds: float) -> asyncio.subprocess.Process:
    beside = Path(sys.executable).with_name("py-spy")
    binary = str(beside) if beside.exists() else shutil.which("py-spy")
    if not binary:
        raise SystemExit("py-spy is not installed; it comes with `make setup`")
    options = ["--rate", str(SAMPLES_PER_S), "--duration", f"{seconds:g}", "--output", str(file), "--pid", str(pid)]
    return await asyncio.create_subprocess_exec(
        binary,
        "record",
        "--nonblocking",
        *options,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="make profile", description=__doc__)
    names = [LATENCY, *SHAPES]
    parser.add_argument("--scenario", default="trigger+2", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--profile", default="fast", choices=("fast", "durable"))
    parser.add_argument("--seconds", type=float, default=8.0, help="how long it is sampled (default 8)")
    given = parser.parse_args()
    import uvloop

    for path in uvloop.run(profile(given.scenario, given.profile, given.seconds)):
        print(path)


if __name__ == "__main__":
    main()
