"""The user's app: its import, and the child processes that run it."""
