"""How much goes into one batch: all that is ready, less after a refusal, down to one message."""

from __future__ import annotations

from headrace.model.limits import MAX_BATCH_OUTPUTS

MAX_INPUTS = 512
MAX_BYTES = 8 * 1024 * 1024


class CommitSize:
    """One batch is refused as a whole for one of its messages, and nobody says for which."""

    def __init__(self) -> None:
        self.inputs = MAX_INPUTS
        self.messages = MAX_BATCH_OUTPUTS

    def stored(self) -> None:
        """It fitted: more may be tried."""
        self.inputs = min(MAX_INPUTS, self.inputs * 2)
        self.messages = MAX_BATCH_OUTPUTS

    def full(self, inputs: int) -> None:
        """An edge had no room for the outputs of so many inputs."""
        self.inputs = max(1, inputs // 2)

    def shrink(self, inputs: int, messages: int) -> bool:
        """Less, to find the message at fault; False when it was alone."""
        if inputs > 1:
            self.inputs = 1
            return True
        if messages > 1:
            self.messages = 1
            return True
        return False
