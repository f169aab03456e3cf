"""What an instance is to the agent, and the fence: which calls count and which come too late."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from enum import StrEnum

from headrace.model.errors import AlreadyExists, Exhausted, InvalidInput, WrongState
from headrace.model.names import check_name, instance_name

DEFAULT_INSTANCE_LIMIT = 500
REMEMBERED_GENERATIONS = 20_000


class InstanceState(StrEnum):
    STARTING = "STARTING"
    UP = "UP"
    BACKING_OFF = "BACKING_OFF"
    STOPPING = "STOPPING"
    GONE = "GONE"


@dataclass(frozen=True, slots=True)
class InstanceSpec:
    """What to run: one replica of one step of one deployment."""

    name: str
    workspace: str
    flow: str
    deployment: int
    step: str
    replica: int
    plan_digest: str


@dataclass(frozen=True, slots=True)
class InstanceView:
    """What the agent says of an instance at one moment."""

    spec: InstanceSpec
    generation: int
    state: InstanceState
    address: str = ""
    pid: int = 0
    starts: int = 0
    last_exit: str = ""
    started_at_unix_s: float = 0.0


def check_spec(spec: InstanceSpec) -> InstanceSpec:
    """The spec, if its parts are names and its own name follows from them; InvalidInput else."""
    check_name("spec.workspace", spec.workspace)
    check_name("spec.flow", spec.flow)
    check_name("spec.step", spec.step)
    if spec.deployment < 1:
        raise InvalidInput.at("spec.deployment", spec.deployment, "is not a deployment number; they start at 1")
    if not spec.plan_digest:
        raise InvalidInput.at("spec.plan_digest", spec.plan_digest, "is missing", next_step="Give the plan's digest")
    expected = instance_name(spec.workspace, spec.flow, spec.deployment, spec.step, spec.replica)
    if spec.name != expected:
        raise InvalidInput.at("spec.name", spec.name, "does not fit the rest", next_step=f"Use {expected}")
    return spec


def check_same_spec(present: InstanceSpec, asked: InstanceSpec) -> None:
    """An instance never changes what it runs."""
    if present != asked:
        raise AlreadyExists(
            f"instance {asked.name} runs with another spec (plan {present.plan_digest}, asked {asked.plan_digest})",
            reason="SPEC_DIFFERS",
            next_step="Stop it first",
        )


def check_room(count: int, limit: int) -> None:
    if count >= limit:
        raise Exhausted(
            f"{count} instances run on this machine, which is the limit",
            reason="INSTANCE_LIMIT",
            next_step="Stop a flow, lower replicas, or start the agent with a higher --max-instances",
        )


class GenerationFence:
    """The highest generation seen per instance name; also of stopped ones, oldest forgotten first."""

    def __init__(self, remembered: int = REMEMBERED_GENERATIONS) -> None:
        self._seen: OrderedDict[str, int] = OrderedDict()
        self._remembered = remembered

    def pass_through(self, name: str, generation: int) -> None:
        """Raises the floor to the generation, or raises WrongState when it is below."""
        floor = self._seen.get(name, 0)
        if generation < floor:
            raise WrongState(
                f"generation {generation} of instance {name} is older than {floor}",
                reason="STALE_GENERATION",
                next_step="Read the deployment's state again; somebody else decides now",
                metadata={"generation": str(floor)},
            )
        self._seen[name] = generation
        self._seen.move_to_end(name)
        while len(self._seen) > self._remembered:
            self._seen.popitem(last=False)
