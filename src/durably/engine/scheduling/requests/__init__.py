"""Requests of the engine: calls to apps, and requests of fetch and infer steps."""
