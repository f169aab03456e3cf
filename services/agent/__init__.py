"""The agent service; see ARCHITECTURE.md."""
