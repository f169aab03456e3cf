"""What is the same for all OTLP spans of a step, encoded once: its resource; name, kind and attributes of each span."""

from __future__ import annotations

from headrace.model.hop_record import Site
from headrace.wire.otlp_common_hop import CommonHop, CommonPublish
from headrace.wire.otlp_fields import Value, attribute, attributes, id_attribute_prefix, resource_prefix, text

INTERNAL, SERVER, CLIENT, PRODUCER, CONSUMER = 1, 2, 3, 4, 5
EXECUTION = id_attribute_prefix("headrace.execution")
MESSAGE = id_attribute_prefix("messaging.message.id")
ATTEMPT_ONE = attribute("headrace.attempt", 1)
MESSAGING: dict[str, Value] = {"messaging.system": "nats"}


def span_tail(name: str, kind: int, phase: str, pairs: dict[str, Value] | None = None) -> bytes:
    """What follows ids and times in a span; `kind` is one of those above, `phase` empty for none."""
    shown: dict[str, Value] = {"headrace.phase": phase} if phase else {}
    return text(5, name) + b"\x30" + bytes((kind,)) + attributes(shown | (pairs or {}))


class SiteBytes:
    """What is the same for all spans of a step."""

    __slots__ = (
        "ack",
        "common",
        "common_end",
        "common_publish",
        "component",
        "process",
        "publish_of",
        "queue",
        "resource",
        "sidecar_in",
        "sidecar_out",
        "site",
    )

    def __init__(self, site: Site) -> None:
        self.site = site  # held, so that its identity stays its own
        self.resource = resource_prefix(resource_of(site))
        step = site.step
        destination = f"hr.{site.workspace}.{site.flow}.d{site.deployment}.{step}"
        consumed = MESSAGING | {
            "messaging.destination.name": destination,
            "messaging.consumer.group.name": f"d{site.deployment}_{step}",
        }
        self.queue = span_tail(f"queue {step}", INTERNAL, "queue")
        self.process = span_tail(
            f"process {step}",
            CONSUMER,
            "process",
            consumed | {"messaging.operation.name": "process", "messaging.operation.type": "process"},
        )
        self.sidecar_in = span_tail(f"sidecar-in {step}", INTERNAL, "sidecar-in")
        self.component = span_tail(f"component {step}", INTERNAL, "component")
        self.sidecar_out = span_tail(f"sidecar-out {step}", INTERNAL, "sidecar-out")
        settled: dict[str, Value] = {"messaging.operation.name": "ack", "messaging.operation.type": "settle"}
        self.ack = span_tail(f"ack {step}", CLIENT, "publish", consumed | settled)
        common = (self.queue, ATTEMPT_ONE + self.process, MESSAGE, EXECUTION)
        self.common = CommonHop(*common, self.sidecar_in, self.component, self.sidecar_out)
        self.common_end = CommonHop(*common, self.sidecar_in, self.component, self.sidecar_out, self.ack)
        sent: dict[str, Value] = {"messaging.operation.name": "publish", "messaging.operation.type": "send"}
        self.publish_of = span_tail(
            f"publish {step}", PRODUCER, "publish", MESSAGING | {"messaging.destination.name": destination} | sent
        )
        self.common_publish = CommonPublish(self.publish_of + MESSAGE)


def resource_of(site: Site) -> dict[str, Value]:
    """Attributes of a site's resource."""
    found: dict[str, Value] = {
        "service.name": site.service,
        "service.namespace": site.workspace,
        "service.instance.id": site.instance,
        "headrace.workspace": site.workspace,
        "headrace.flow": site.flow,
        "headrace.step": site.step,
        "headrace.component": site.component,
        "headrace.revision": site.revision,
        "headrace.instance": site.instance,
    }
    for key, number in (("headrace.version", site.version), ("headrace.deployment", site.deployment)):
        if number:
            found[key] = number
    if site.revision_number:
        found["service.version"] = str(site.revision_number)
        found["headrace.revision_number"] = site.revision_number
    return found
