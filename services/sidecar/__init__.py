"""The sidecar service; see ARCHITECTURE.md."""
