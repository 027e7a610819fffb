"""Routing of events and waits by the ids of workflows."""
