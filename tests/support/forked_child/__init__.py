"""A process for tests of the preloaded parent."""
