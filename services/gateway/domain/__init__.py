"""Pure decisions of the gateway: no IO, no clock."""
