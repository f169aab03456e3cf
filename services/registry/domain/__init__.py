"""Pure decisions of the registry: no IO, no clock."""
