"""Bounds that every part of the mesh keeps to alike."""

from __future__ import annotations

MAX_BODY_BYTES = 512 * 1024
"""Largest body of a message or a reply."""
MAX_OUTPUTS = 1_000
"""Most outputs of one input."""
MAX_OUTPUT_BYTES = 32 * 1024 * 1024
"""All outputs of one input together, headers included: they are held until its function has ended."""
MAX_HEADERS_BYTES = 64 * 1024
"""Headers, content type and key of one output or reply."""
MAX_PASSTHROUGH_BYTES = 256 * 1024
"""What a message carries of earlier steps' outputs; with body and headers it fits the broker's 1 MB."""
MAX_BATCH_OUTPUTS = 999
"""Most messages that the outputs of one input of a keyed step may become: with the cursor they are one batch."""
# What a startup hook returns, as JSON.
MAX_HOOK_RESULT_BYTES = 64 * 1024
