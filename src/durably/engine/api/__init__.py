"""The interface of engines, with their HTTP API, metrics and dashboard."""
