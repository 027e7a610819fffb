"""Replaying stored histories of Temporal workflows in a test."""

from collections.abc import Sequence
from pathlib import Path

from durably.io.background_loop import get_background_loop
from durably.temporal import Temporal
from durably.temporal.declarations import WorkerDeclaration
from durably.temporal.gateway import Gateway
from durably.temporal.replay import HistoryReplayer, TypeReport, read_histories, replay_all
from durably.temporal.replay.exposed import with_exposed


def replay_histories(
    code: Temporal | Gateway,
    directory: str | Path,
    *,
    declarations: Sequence[WorkerDeclaration] | None = None,
) -> list[TypeReport]:
    """Replay the histories of ``directory`` and below against ``code``: a connection's workers, a gateway's workflows.

    The files are as ``temporal workflow show -o json`` and ``durably temporal replay --save`` write them. No server is
    needed. ``declarations`` are replayed instead of ``temporal.workers``: Django's ``discover()``. The reports say how
    many histories of each workflow type were replayed.

    Raises ``AssertionError``, which names each history that does not fit, the event at fault, and what the code does
    instead; ``HistoryError`` for a directory without histories.
    """
    temporal = code.temporal if isinstance(code, Gateway) else code
    declared = temporal.workers if declarations is None else declarations
    if isinstance(code, Gateway):
        declared = with_exposed(declared, code.exposures.values())
    replayer = HistoryReplayer(temporal, declared)
    reports = get_background_loop().run(replay_all(replayer, read_histories(directory)))
    failures = [each for report in reports for each in report.failures]
    if failures:
        count = sum(report.replayed + report.skipped for report in reports) + len(failures)
        lines = [f"{len(failures)} of {count} histories do not fit the code:", *(each.describe() for each in failures)]
        raise AssertionError("\n".join(lines))
    return reports
