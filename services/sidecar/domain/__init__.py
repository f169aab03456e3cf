"""Pure decisions of the sidecar: no IO, no clock."""
