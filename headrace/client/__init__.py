"""The Python client SDK: `AsyncClient` and its sync face `Client`."""
