"""Scheduling of runs: transactions, triggers, timers, calls to apps, requests, bulk operations."""
