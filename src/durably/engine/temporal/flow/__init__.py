"""Flow control on Temporal: buckets of events, and queues of calls."""
