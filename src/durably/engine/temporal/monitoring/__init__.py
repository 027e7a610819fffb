"""Metrics, log lines, alerts and spans of the runs that a process executes.

Workflows report to the process that executes them (``process_reports.py``). Nothing in a run depends on it.
"""
