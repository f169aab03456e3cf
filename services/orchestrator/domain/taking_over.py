"""What a new leader does before anything else: its epoch into every document and fence of a flow.

The flow's document first: an earlier leader's compare-and-set of it fails from then on. Then the generation of
each live deployment's state, then those of its instances at their agent; the sidecars get theirs with the next
lifecycle call, which follows from the generation. In work that is under way nothing changes.
"""

from __future__ import annotations

import msgspec

from services.orchestrator.domain.actions import Action, SetState, StartInstance, StopInstance, UpdateFlow
from services.orchestrator.domain.deployment_phases import OVER
from services.orchestrator.domain.leadership import epoch_of, generation_of
from services.orchestrator.domain.snapshot import Snapshot


def plan_taking_over(snapshot: Snapshot) -> list[Action] | None:
    """The first actions of a new leader for a flow; empty for one that is outdated itself; None when all is done."""
    flow, epoch = snapshot.flow, snapshot.epoch
    if not epoch or (flow.leader_epoch == epoch and not _outdated_states(snapshot)):
        return None
    if flow.leader_epoch > epoch:
        return []
    if flow.leader_epoch < epoch:
        return [UpdateFlow(msgspec.structs.replace(flow, leader_epoch=epoch), f"taken over in epoch {epoch}")]
    return _outdated_states(snapshot)


def _outdated_states(snapshot: Snapshot) -> list[Action]:
    found: list[Action] = []
    for number in snapshot.flow.live:
        view = snapshot.deployments.get(number)
        if view is None or view.state is None or view.state.phase in OVER:
            continue
        if epoch_of(view.state.generation) < snapshot.epoch:
            raised = msgspec.structs.replace(
                view.state, generation=generation_of(view.state.generation, snapshot.epoch)
            )
            found.append(SetState(number, raised, f"taken over in epoch {snapshot.epoch}"))
    return found


def stop_orphans(snapshot: Snapshot) -> list[Action]:
    """Stops instances of deployments of which nothing may be left: a start that reached the agent too late.

    Numbers are never used again, so one that was given and is not live is over for good. The generation is above
    whatever the agent has seen: one that was refused would leave the instance running beside everything that is
    decided later.
    """
    flow = snapshot.flow
    return [
        StopInstance(instance.name, generation_of(instance.generation, snapshot.epoch))
        for instance in snapshot.instances.values()
        if instance.deployment < flow.next_deployment and instance.deployment not in flow.live
    ]


def raise_fences(snapshot: Snapshot) -> list[Action]:
    """Tells the agent of instances that were started in an earlier epoch: nothing is started, the fence rises."""
    if not snapshot.agent_known:
        return []
    found: list[Action] = []
    for number in snapshot.flow.live:
        view = snapshot.deployments.get(number)
        if view is None or view.state is None or view.state.phase in OVER:
            continue
        for wanted in snapshot.wanted_instances(number):
            running = snapshot.instances.get(wanted.name)
            if running is None or running.stopping:
                continue
            if epoch_of(running.generation) < epoch_of(view.state.generation):
                found.append(StartInstance(wanted, view.state.generation))
    return found
