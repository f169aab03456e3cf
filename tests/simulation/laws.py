"""Laws that hold at each moment: the broker tells what it stores, sidecars what they do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headrace.model import subjects
from headrace.model.deployment import DeploymentPlan, StepPlan, decode_state
from headrace.model.route import decode_route
from headrace.wire.envelope import decode_envelope
from services.orchestrator.domain.deployment_phases import TRANSITIONS
from services.orchestrator.domain.flow_states import FlowState
from services.sidecar.settings import Settings
from tests.simulation.flow_drafts import STREAM
from tests.simulation.ledger import Ledger, is_ours, key_of, number_of
from tests.support.memory_stream import Stored

if TYPE_CHECKING:
    from tests.simulation.world import World


class Laws:
    """Of one world; what breaks them is told to it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.ledger = Ledger()
        self.stimuli: set[str] = set()
        self.ingress_owners: list[str] = []
        self.ran_digests: dict[tuple[int, str], set[str]] = {}
        self.stale_switches = 0
        self.owners: dict[str, set[int]] = {}
        self.committed: dict[tuple[int, str, int], int] = {}
        self.entered: dict[str, list[int]] = {}
        self.left: dict[str, list[int]] = {}
        self.epochs: set[int] = set()
        self.newest_config = 0

    # What the broker tells.

    def purged(self, stream: str, gone: list[Stored]) -> None:
        """Messages go only where a person said so, now."""
        stimuli = [item for item in gone if not is_ours(item.subject)]
        if stream != STREAM or not stimuli:
            return
        flow = self._world.flow()
        if flow.state != FlowState.STOPPING or flow.stop_mode != "DROP":
            self._world.violated(f"{len(stimuli)} messages were purged while the flow is {flow.state} {flow.stop_mode}")
        self.ledger.dropped |= {number_of(item) for item in stimuli}

    def stored(self, message: Stored) -> None:
        """A message of the flow's stream, none of ours."""
        place = subjects.parse_data_subject(message.subject)
        fresh = decode_envelope(message.payload).id in self.stimuli
        if fresh and self.ingress_owners[-1:] != [place.owner]:
            self.ingress_owners.append(place.owner)
            self._world.say(f"the ingress stores for {place.owner}")
        if fresh:
            self.entered.setdefault(key_of(message), []).append(number_of(message))
        if place.owner == subjects.INGRESS:
            self._world.violated("a message is stored under the ingress itself")
        elif (
            place.owner.startswith("d")
            and self._world.phase(int(place.owner[1:])) not in ("ACTIVE", "DRAINING")
            and not self.stale_switches
        ):
            phase = self._world.phase(int(place.owner[1:])) or "unknown"
            self._world.violated(f"a message for {place.step} is stored for {place.owner}, which is {phase}")

    def configured(self, stream: str, config: dict[str, Any]) -> None:
        if stream != STREAM:
            return
        generation = int(config["metadata"]["headrace-generation"])
        if generation < self.newest_config:
            # The broker has no compare-and-set here: what a late switch does is found and mended.
            self.stale_switches += 1
            self._world.say("a stale switch")
        self.newest_config = max(generation, self.newest_config)
        transform = config.get("subject_transform")
        owner = str(transform["dest"]).split(".")[3] if transform else "nobody"
        listed = " ".join(item.split(".")[3] for item in config["subjects"])
        self._world.say(
            f"stream lists {listed}; ingress to {owner}; generation {config['metadata']['headrace-generation']}"
        )

    def deployment_written(self, key: str, old: bytes | None, new: bytes | None) -> None:
        kind, _, number = key.split(".")
        if new is None:
            return
        if kind == "plan":
            if old is not None and old != new:
                self._world.violated(f"the plan of d{number} was changed")
            return
        after = decode_state(new)
        self._world.say(f"d{number} is {after.phase}, generation {after.generation} {after.cause_reason}")
        if old is None:
            return
        before = decode_state(old)
        if after.generation < before.generation:
            self._world.violated(f"d{number} went back from generation {before.generation} to {after.generation}")
        if after.phase != before.phase and after.phase not in TRANSITIONS[before.phase]:
            self._world.violated(f"d{number} went from {before.phase} to {after.phase}")
        if after.phase != before.phase and after.generation == before.generation:
            self._world.violated(f"d{number} became {after.phase} without a new generation")

    def route_written(self, key: str, old: bytes | None, new: bytes | None) -> None:
        if old is not None and new is not None and decode_route(new).epoch < decode_route(old).epoch:
            self._world.violated(f"the route of an earlier leader was written over {decode_route(old)}")

    def leads(self, epoch: int) -> None:
        """An orchestrator has begun its term. Each has an epoch of its own, and no two lead at a time."""
        if epoch in self.epochs:
            self._world.violated(f"two orchestrators lead in epoch {epoch}")
        self.epochs.add(epoch)
        leading = [item.name for item in self._world.orchestrators if item.up and item.lease.leading]
        if len(leading) > 1:
            self._world.violated(f"{leading} lead at once")

    # What sidecars tell.

    def ran(self, settings: Settings, digest: str) -> None:
        """A component of an instance was started."""
        plan = self._world.plan(settings.deployment)
        pinned = plan.step(settings.step).pin.digest if plan else "nothing"
        if digest != pinned:
            self._world.violated(f"{settings.instance} runs {digest[:14]}, pinned is {pinned[:14]}")
        self.ran_digests.setdefault((settings.deployment, settings.step), set()).add(digest)

    def handling(self, message: Stored, plan: DeploymentPlan, step: StepPlan, digest: str) -> None:
        number = number_of(message)
        touched = self.ledger.deployments.setdefault((number, decode_envelope(message.payload).incarnation), set())
        touched.add(plan.deployment)
        if len(touched) > 1:
            self._world.violated(f"message {number} was handled by deployments {sorted(touched)}")
        if digest != step.pin.digest:
            self._world.violated(f"message {number} was handled by code that is not pinned")

    def effect(self, message: Stored, step: StepPlan, plan: DeploymentPlan) -> None:
        """An input was acknowledged; of the last step that is the effect."""
        if step.keyed:
            self._in_order(plan, step, message)
        if not step.receivers:
            number = number_of(message)
            self.ledger.done[number] = self.ledger.done.get(number, 0) + 1
            if self.ledger.done[number] == 1:
                self.left.setdefault(key_of(message), []).append(number)

    def _in_order(self, plan: DeploymentPlan, step: StepPlan, message: Stored) -> None:
        """What is committed of a slot is committed in the order in which it was stored there."""
        place = (plan.deployment, step.name, subjects.parse_data_subject(message.subject).slot)
        before = self.committed.get(place, 0)
        if message.sequence < before:
            self._world.violated(f"slot {place}: {message.sequence} was committed after {before}")
        self.committed[place] = message.sequence

    def taken(self, durable: str, replica: int) -> None:
        """Somebody was given a message of a slot's durable: each of these has one owner for ever."""
        owners = self.owners.setdefault(durable, set())
        owners.add(replica)
        if len(owners) > 1:
            self._world.violated(f"replicas {sorted(owners)} pull from {durable}")

    def dead_letter(self, message: Stored) -> None:
        self.ledger.dead.add(number_of(message))
