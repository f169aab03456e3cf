"""Pure decisions of the orchestrator: no IO, no clock."""
