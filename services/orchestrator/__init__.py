"""The orchestrator service; see ARCHITECTURE.md."""
