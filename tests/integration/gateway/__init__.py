"""The gateway as a process, against a real broker."""
