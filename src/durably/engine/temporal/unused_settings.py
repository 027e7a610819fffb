"""Settings of an engine that do nothing on Temporal."""

UNUSED_SETTINGS = {
    "alerts": "Temporal stores the ends of runs, and this process does not see those of others. Alert on Temporal's "
    "metrics, or from a function's on_failure",
    "clock": "the Temporal server has the timers",
    "durability": "the Temporal server's database decides",
    "entropy": "ids of runs are made from those of events",
    "log_runs": "runs are executed by all processes, and none sees the ends of all. Temporal's UI and search show them",
    "retention": "that of Temporal's namespace decides: `temporal operator namespace update --retention`",
}
"""Each with the reason."""
