"""Functions of a transaction: events, triggers, inputs of runs, operations."""
