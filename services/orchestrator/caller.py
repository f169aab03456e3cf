"""Who calls: what the history and the log name as the one who decided."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

USER_KEY = "headrace-user"
MAX_USER = 100
ORCHESTRATOR = "orchestrator"

_caller: ContextVar[str] = ContextVar("caller", default=ORCHESTRATOR)


def current_caller() -> str:
    """The caller of the RPC this code runs for; `orchestrator` outside of one."""
    return _caller.get()


def set_caller(name: str) -> None:
    _caller.set(name)


def caller_of(context: Any) -> str:
    """The metadata `headrace-user` where the caller says who it is (nothing proves it), else its address."""
    for key, value in context.invocation_metadata() or ():
        if key == USER_KEY and isinstance(value, str) and value.strip():
            return "".join(sign for sign in value.strip() if sign.isprintable())[:MAX_USER]
    return str(context.peer())[:MAX_USER]
