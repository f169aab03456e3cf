"""Source text that components of sidecar tests begin with, and what such a component can note and wait for."""

from __future__ import annotations

from pathlib import Path

HEAD = """
import asyncio, json, os, pathlib, sys, threading
from asyncio import sleep as pause
from headrace.sdk import Component, ComponentError, Context, Rebound

component = Component()
"""


def count_calls(folder: Path) -> str:
    """Source of a function that counts calls outside the process, by body."""
    return f"""
CALLS = pathlib.Path({str(folder)!r})

def note(body):
    with open(CALLS / "calls", "ab") as file:
        file.write(body + b"\\n")
    return (CALLS / "calls").read_bytes().split(b"\\n").count(body)

def block_until(name):
    while not (CALLS / name).exists():
        threading.Event().wait(0.01)
"""
