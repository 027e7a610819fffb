"""Messages of runs to listeners: the time from publish to listener, and what listeners cost the functions."""

import os
from pathlib import Path
from statistics import median

from .children import Child
from .tables import describe_machine, judge, table

RUNS, LISTENERS = 200, 2_000
SIDES = {"follow": "`follow`, in the app's process", "sse": "server-sent events of the engine, which is a process"}


def report(directory: Path, *, is_quick: bool) -> str:
    """The section of the results."""
    runs, listeners = (4, 20) if is_quick else (RUNS, LISTENERS)
    seconds, rounds = (0.5, 1) if is_quick else (8.0, 2)
    rows, verdicts = [], []
    for side, name in SIDES.items():
        with Child("benchmarks.contenders.streams", directory / side, side) as child:
            found = [
                (
                    child.ask(runs=runs, listeners=0, seconds=seconds),
                    child.ask(runs=runs, listeners=listeners, seconds=seconds),
                )
                for _ in range(rounds)
            ]
        rows += [
            [
                f"{name}, {count:,} listeners",
                f"{median(each['published'] for each in of):,.0f}",
                f"{median(each['delivered'] for each in of):,.0f}",
                *(f"{median(each[key] for each in of) * 1e3:,.1f} ms" if count else "" for key in ("p50", "p99")),
                f"{median(each['cpu'] for each in of):.2f}",
                f"{max(each['rss'] for each in of) / 2**20:,.0f} MiB",
                f"{median(each['quick'] for each in of):,.0f}",
            ]
            for count, of in ((0, [without for without, _ in found]), (listeners, [with_ for _, with_ in found]))
        ]
        p99 = min(with_["p99"] for _, with_ in found) * 1e3
        verdicts.append(judge(f"{side}: p99 from publish to listener", p99, at_most=100, unit="ms"))
        ratio = median(with_["published"] / without["published"] for without, with_ in found)
        verdicts.append(judge(f"{side}: messages published, with against without listeners", ratio, at_least=0.9))
        ratio = median(with_["quick"] / max(without["quick"], 0.001) for without, with_ in found)
        verdicts.append(judge(f"{side}: quick runs at full load, with against without listeners", ratio, at_least=0.9))
    header = ["", "published/s", "delivered/s", "p50", "p99", "CPUs", "memory", "quick runs/s"]
    return "\n".join(
        [
            "## Messages to many listeners\n",
            f"{describe_machine()} {runs} runs publish 20 messages a second each. Load average at the end: "
            f"{os.getloadavg()[0]:.1f}. Quick runs are measured after the latencies, as many as possible at the same "
            "time. CPUs are those of the app and the engine.\n",
            table(header, rows),
            *verdicts,
            "",
        ]
    )
