"""Metrics of an engine: catalogue, counters, and the form for Prometheus."""
