"""Engines: what stores runs and decides what is called when.

``machine`` and its siblings here are pure: no I/O, no clock, no randomness. ``embedded`` is the engine
that keeps its state in one SQLite file. An engine knows apps only through ``durably.protocol``; it never
imports the SDK, a web framework or user code.
"""
