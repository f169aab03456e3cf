"""Headrace's Python SDK: write a component.

from headrace.sdk import Component, Context

component = Component()

@component.action
async def greet(name: str, ctx: Context) -> dict:
    return {"greeting": f"hello {name}"}
"""

from headrace.sdk.component import Component
from headrace.sdk.context import Context, Message, StepIdentity, current_context
from headrace.sdk.errors import ComponentError, DefinitionError, EmitRefused, Rebound

__all__ = [
    "Component",
    "ComponentError",
    "Context",
    "DefinitionError",
    "EmitRefused",
    "Message",
    "Rebound",
    "StepIdentity",
    "current_context",
]
