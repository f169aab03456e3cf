"""Passes opaque bytes on."""

from headrace.sdk import Component

component = Component()


@component.trigger
async def start(body: bytes) -> bytes:
    return body


@component.action
async def relay(body: bytes) -> bytes:
    return body
