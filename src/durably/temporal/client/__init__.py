"""The clients of an app: its connection to the server, async and sync."""
