"""Flow control on Temporal: gates of events, and queues of calls."""
