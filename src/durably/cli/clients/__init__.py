"""Connections of commands to an engine: HTTP, a Unix socket, or Temporal."""
