"""Every name of KV buckets, of the documents in them, and of object stores. Built here, nowhere else.

JetStream stores a bucket as a stream named KV_<bucket>, an object store as OBJ_<store>.
"""

from __future__ import annotations


def component_bucket(workspace: str) -> str:
    """Registry: `component.<name>`, `revision.<name>.<number>`, `digest.<hex>`."""
    return f"hr_{workspace}_components"


def pin_bucket(workspace: str) -> str:
    """Who pins what: key from `pin_key`, written by the orchestrator, read by the registry."""
    return f"hr_{workspace}_pins"


def bundle_store(workspace: str) -> str:
    """Object store of bundles, by the hex of their digest."""
    return f"hr_{workspace}_bundles"


def attachment_store(workspace: str) -> str:
    return f"hr_{workspace}_attachments"


def flow_bucket(workspace: str) -> str:
    """Orchestrator: `flow.<name>`, `version.<flow>.<n>`, `operation.<id>`."""
    return f"hr_{workspace}_flows"


def deployment_bucket(workspace: str) -> str:
    """`plan.<flow>.<n>` (immutable) and `state.<flow>.<n>`; sidecars read both."""
    return f"hr_{workspace}_deployments"


def route_bucket(workspace: str) -> str:
    """`<flow>`: what a gateway must know of a flow (headrace.model.route)."""
    return f"hr_{workspace}_routes"


def answer_bucket(workspace: str) -> str:
    """Answers kept for Idempotency-Keys, with a TTL."""
    return f"hr_{workspace}_answers"


def request_bucket(workspace: str) -> str:
    """Answers kept for request ids, with a TTL; of orchestrator and registry."""
    return f"hr_{workspace}_requests"


def edit_bucket(workspace: str) -> str:
    """Orchestrator: what people made of dead letters, `<flow>.<number>`, with the TTL of the letters."""
    return f"hr_{workspace}_edits"


def credential_bucket(workspace: str) -> str:
    """Credentials: heads, sealed values, and who uses which version."""
    return f"hr_{workspace}_credentials"


def lease_bucket(workspace: str) -> str:
    return f"hr_{workspace}_lease"


def hooks_key(flow: str, deployment: int) -> str:
    """Where it is kept that a deployment's startup and shutdown hooks have ended."""
    return f"hooks.{flow}.{deployment}"


def plan_key(flow: str, deployment: int) -> str:
    return f"plan.{flow}.{deployment}"


def state_key(flow: str, deployment: int) -> str:
    return f"state.{flow}.{deployment}"


def sampling_key(flow: str) -> str:
    """In the bucket of deployments: how a flow is sampled, across its deployments (headrace.model.sampling)."""
    return f"sampling.{flow}"


def broker_key() -> str:
    """In the bucket of deployments: the broker processes that sidecars met, and when first."""
    return "broker"


def pin_key(digest: str, flow: str, holder: str) -> str:
    """`<hex>.<flow>.<holder>`, holder for example `d1` (deployment) or `v2` (version)."""
    return f"{digest.removeprefix('sha256:')}.{flow}.{holder}"
