"""Real load for long: the engine's memory is to stay flat, and purging is to keep its file bounded.

``python -m benchmarks.soak --seconds 3600`` soaks for an hour.
"""

import argparse
import tempfile
from pathlib import Path

from .children import Child
from .database import DATABASE, bytes_of_events
from .slopes import fit
from .tables import describe_machine

SECONDS = 300.0
_SAMPLES = 50
_RETENTION_SHARE = 0.1
"""For how much of the time what has ended is kept."""


def soak(directory: Path, seconds: float) -> str:
    """The section of the results."""
    retention = seconds * _RETENTION_SHARE
    runs, memory, file = [], [], []
    with (
        Child("benchmarks.engine_process", directory, str(retention)) as engine,
        Child("benchmarks.contenders.soak", directory / "app", engine.ready["origin"]) as app,
    ):
        for _ in range(_SAMPLES):
            runs.append(app.ask(seconds=seconds / _SAMPLES))
            memory.append(engine.rss())
            file.append((directory / DATABASE).stat().st_size)
        events = bytes_of_events(directory) / runs[-1]
    growth, filling = fit(runs, memory), fit(runs, file)
    return "\n".join(
        [
            "## A soak\n",
            f"{describe_machine()} {runs[-1]:,} runs of three steps over HTTP in {seconds:,.0f} s, twenty at once. "
            f"What has ended is kept for {retention:,.0f} s, events for a day. Fitted over the second half:\n",
            f"- the engine's resident memory ({memory[-1] / 1e6:,.0f} MB at the end) grows by {growth} bytes per run;",
            f"- its file ({file[-1] / 1e6:,.1f} MB at the end) grows by {filling} bytes per run; each has two events, "
            f"of {events:,.0f}, and what has been purged leaves {filling.value - events:,.0f}.\n",
        ]
    )


def report(directory: Path, *, is_quick: bool) -> str:
    """The section of the results."""
    return soak(directory, 3.0 if is_quick else SECONDS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="durably-soak-") as name:
        print(soak(Path(name), options.seconds))
