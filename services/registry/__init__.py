"""The registry service; see ARCHITECTURE.md."""
