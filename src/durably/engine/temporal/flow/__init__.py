"""Flow control on Temporal: buckets for events, and queues for calls."""
