"""Which fields of a draft an update changes (AIP-134, AIP-161)."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from headrace.model.errors import InvalidInput
from headrace.model.flow_spec import FlowSpec
from headrace.model.suggestion import did_you_mean

# Field of the proto to field of the model.
FIELDS = {
    "type": "type",
    "steps": "steps",
    "reply_timeout": "reply_timeout_s",
    "max_waiting": "max_waiting",
    "description": "description",
    "rate_limit": "rate_limit",
}
WHOLE = "*"


def check_mask(paths: Sequence[str]) -> frozenset[str]:
    """The fields of the model that are named, empty for the whole draft; InvalidInput naming an unknown path."""
    if list(paths) == [WHOLE]:
        return frozenset()
    for index, path in enumerate(paths):
        if path not in FIELDS:
            known = f"Fields are {', '.join(FIELDS)}, each as a whole"
            raise InvalidInput.at(
                f"update_mask.paths[{index}]",
                path,
                "is not a field of a draft that can be named",
                reason="UNKNOWN_FIELD",
                next_step=did_you_mean(path, list(FIELDS)) or known,
            )
    return frozenset(FIELDS[path] for path in paths)


def masked(base: FlowSpec, given: FlowSpec, fields: frozenset[str]) -> FlowSpec:
    """The base with the fields named as they were given; without any, what was given."""
    if not fields:
        return given
    return msgspec.structs.replace(base, **{field: getattr(given, field) for field in fields})
