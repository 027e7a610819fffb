"""Settings of an engine that do nothing on Temporal."""

UNUSED_SETTINGS = {
    "clock": "the Temporal server has the timers",
    "durability": "the Temporal server's database decides",
    "entropy": "ids of runs are made from those of events",
    "retention": "that of Temporal's namespace decides: `temporal operator namespace update --retention`",
}
"""Each with the reason."""
