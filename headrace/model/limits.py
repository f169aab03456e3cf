"""Bounds that every part of the mesh keeps to alike."""

from __future__ import annotations

MAX_BODY_BYTES = 512 * 1024
"""Largest body of a message or a reply."""
MAX_OUTPUTS = 1_000
"""Most outputs of one input."""
