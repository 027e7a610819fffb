"""Scheduling of runs.

It consists of transactions, triggers, timers, calls to apps, requests and bulk operations.
"""
