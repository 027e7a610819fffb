"""Statements that write and read rows: of apps, runs, flow control and counts."""
