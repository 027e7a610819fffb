"""Routing of events, waits and syncs by the ids of workflows."""
