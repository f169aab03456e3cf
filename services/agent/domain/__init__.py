"""Pure decisions of the agent: no IO, no clock."""
