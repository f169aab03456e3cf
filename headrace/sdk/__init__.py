"""Headrace's Python SDK: write a component.

from headrace.sdk import Component, Context

component = Component()

@component.action
async def greet(name: str, ctx: Context) -> dict:
    return {"greeting": f"hello {name}"}
"""

from headrace.sdk.attachments import Attachment, Attachments
from headrace.sdk.choices import Choice, Metadata
from headrace.sdk.component import Component
from headrace.sdk.context import Context, StepIdentity, current_context
from headrace.sdk.errors import ComponentError, DefinitionError, EmitRefused, Rebound
from headrace.sdk.message import Message

__all__ = [
    "Attachment",
    "Attachments",
    "Choice",
    "Component",
    "ComponentError",
    "Context",
    "DefinitionError",
    "EmitRefused",
    "Message",
    "Metadata",
    "Rebound",
    "StepIdentity",
    "current_context",
]
