"""Fuzzing of the whole API: every method of every service that the mesh tells of by reflection.

Held: no INTERNAL and no UNKNOWN, every refusal has an ErrorInfo, no trace of a stack in an answer or a log, every
process stays the same one, and at the end a flow that nobody named works on and can be deployed anew. How many requests
each method got is printed, with the seed (`HEADRACE_SEED` repeats a run); a soak multiplies them.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from headrace.client import AsyncClient
from headrace.edge.process_table import resident_bytes
from tests.support import soak
from tests.support.mesh import RunningMesh
from tests.support.rpc_fuzz import Caller, RequestMaker, methods_of
from tests.support.small_flow import SmallFlow, replying

ROUNDS = soak.rounds(one_in=200, short=1)
SEED = int(os.environ.get("HEADRACE_SEED") or random.SystemRandom().randrange(2**31))
REQUESTS = 30
"""Of each method at each address, in the short form."""
ROLES = ("broker", "registry", "orchestrator", "agent", "gateway")
GROWTH_MB = 80
NOT_CALLED = {
    # Obeyed, they end what the mesh lives on; test_fuzz.py calls them where they may.
    "headrace.api.agent.v1.AgentService/StartInstance",
    "headrace.api.agent.v1.AgentService/StopInstance",
}
UNEXPECTED = ("Traceback", "unexpected", "never retrieved", "Exception in callback")


@pytest.mark.timeout(180 * ROUNDS)
async def test_every_method_of_every_service(
    module_mesh: RunningMesh, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(SEED)
    kept = SmallFlow.write(module_mesh, tmp_path / "kept", replying("here"))
    kept.run()
    async with AsyncClient(module_mesh.api) as client:
        await client.push_component(Path(__file__).parents[2] / "benchmarks" / "components" / "opaque")
    before = {role: module_mesh.pid_of(role) for role in ROLES}
    memory = {role: resident_bytes(pid) for role, pid in before.items()}
    maker = RequestMaker(rng, spared=kept.name)
    ends = module_mesh.endpoints
    wrong: dict[str, str] = {}
    try:
        for address in (ends.api, ends.registry, ends.agent):
            caller = Caller(address, maker)
            methods = [
                method for method in methods_of(address)
                if f"{method.containing_service.full_name}/{method.name}" not in NOT_CALLED
                and (address == ends.api or not method.containing_service.full_name.startswith("grpc."))
            ]  # fmt: skip
            await caller.call_all(methods, REQUESTS * ROUNDS)
            with capsys.disabled():
                print(f"\nfuzzed {sum(caller.tried.values())} requests at {address}, seed {SEED}")
                for name, codes in sorted(caller.ends.items()):
                    print(f"  {caller.tried[name]:6} {name.removeprefix('headrace.api.')}: {dict(codes)}")
            wrong |= caller.wrong
    finally:
        assert {role: module_mesh.pid_of(role) for role in ROLES} == before, f"seed {SEED}"
    assert not wrong, f"seed {SEED}, wrong answers:\n" + "\n".join(wrong.values())
    for role in ROLES:
        log = module_mesh.log(role)
        for word in UNEXPECTED:
            at = log.find(word)
            assert at < 0, f"seed {SEED}, log of {role}: {log[max(0, at - 1500) : at + 2500]}"
        grown = (resident_bytes(before[role]) - memory[role]) / 2**20
        assert grown < GROWTH_MB, f"{role} grew by {grown:.0f} MB"
    assert (await kept.post()).json() == {"said": "here"}
    async with AsyncClient(module_mesh.api) as client:
        await client.restart(kept.name)
    answer = await kept.post()
    assert (answer.json(), answer.headers["headrace-deployment"]) == ({"said": "here"}, "2")
