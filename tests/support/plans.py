"""Deployment plans for tests: a chain of steps, pins made up."""

from __future__ import annotations

from hashlib import sha256

from headrace.model.deployment import DeploymentPlan, PinPlan, StepPlan
from headrace.model.flow_spec import RetryPolicy


def plan_of(flow: str, *names: str, deployment: int = 1, version: int = 1) -> DeploymentPlan:
    """trigger -> action -> action ..."""
    steps = []
    for index, name in enumerate(names):
        digest = "sha256:" + sha256(f"{name} {version}".encode()).hexdigest()
        pin = PinPlan(name, version, digest, "3.11", "1", "1")
        receivers = tuple(names[index + 1 : index + 2])
        kind = "action" if index else "trigger"
        steps.append(StepPlan(name, kind, "work", pin, {}, receivers, 64, 60.0, RetryPolicy()))
    return DeploymentPlan(
        "default", flow, "realtime", deployment, version, names[0], tuple(steps), 1000, 0.0, parking_epoch=0
    )
