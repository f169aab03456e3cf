"""The filter of ListOperations (a part of AIP-160): `flow=orders AND done=false`."""

from __future__ import annotations

from collections.abc import Callable

from headrace.model.errors import InvalidInput
from services.orchestrator.domain.documents import OperationDocument


def operation_filter(text: str) -> Callable[[OperationDocument], bool]:
    """Whether an operation fits; InvalidInput for what is no filter."""
    flow: str | None = None
    done: bool | None = None
    for term in text.split(" AND ") if text.strip() else []:
        name, equals, value = (part.strip() for part in term.partition("="))
        value = value.strip('"')
        if name == "flow" and equals and value:
            flow = value.removeprefix("flows/")
        elif name == "done" and value in ("true", "false"):
            done = value == "true"
        else:
            raise InvalidInput.at(
                "filter", text, "is not a filter", next_step="Use flow=orders, done=false, or both with AND between"
            )
    return lambda operation: flow in (None, operation.flow) and done in (None, operation.done)
