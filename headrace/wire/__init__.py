"""Bytes and protos to model values and back; no IO."""
