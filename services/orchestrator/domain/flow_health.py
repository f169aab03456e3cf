"""Whether a flow serves: what `grpc.health.v1` and the metrics say of `flows/<flow>`."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from services.orchestrator.domain.flow_states import RUNS
from services.orchestrator.domain.sleeping import sleepers
from services.orchestrator.domain.snapshot import WORKING, Progress, Snapshot, StatusView


class Health(StrEnum):
    """As in grpc.health.v1."""

    SERVING = "SERVING"
    NOT_SERVING = "NOT_SERVING"
    UNKNOWN = "UNKNOWN"


def flow_health(snapshot: Snapshot, statuses: Mapping[str, StatusView], *, agent_known: bool) -> Health:
    """SERVING: it runs, and each step has an instance that works (or sleeps until a message comes). NOT_SERVING: it is
    stopped, suspended or on its way there, it starts, or a step has nobody who works. UNKNOWN: it should run, and the
    agent, which knows whether it does, does not answer.

    `statuses` are those of the instances that are up, which may be newer than the snapshot's.
    """
    if snapshot.flow.state not in RUNS:
        return Health.NOT_SERVING
    if not agent_known:
        return Health.UNKNOWN
    if snapshot.flow.active not in snapshot.deployments:
        return Health.NOT_SERVING
    works: dict[str, bool] = {}
    asleep = sleepers(snapshot)
    for instance in snapshot.wanted_instances(snapshot.flow.active):
        status = statuses.get(instance.name)
        working = status is not None and status.progress in (*WORKING, Progress.SLEEPING)
        works[instance.step] = works.get(instance.step, False) or working or instance.step in asleep
    return Health.SERVING if works and all(works.values()) else Health.NOT_SERVING
