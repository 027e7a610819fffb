"""Runs as workflows, and the activities that make their calls."""
