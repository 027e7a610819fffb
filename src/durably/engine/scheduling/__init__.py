"""Scheduling of runs.

It consists of transactions, triggers, timers, calls to apps, requests and bulk operations. ``transactions`` change the
database, ``requests`` calls apps and other servers, and ``monitoring`` counts and reports.
"""
