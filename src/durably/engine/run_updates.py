"""The updates that the start and the end of a run were, made from the run."""

from durably.engine.views import RunStatus, RunUpdate, RunView, UpdateKind, describe_error

UPDATES_OF_ENDS = {
    RunStatus.COMPLETED: UpdateKind.RUN_COMPLETED,
    RunStatus.FAILED: UpdateKind.RUN_FAILED,
    RunStatus.CANCELLED: UpdateKind.RUN_CANCELLED,
    RunStatus.SKIPPED: UpdateKind.RUN_SKIPPED,
}


def start_of(run: RunView) -> RunUpdate:
    """The update that a run's start was."""
    return RunUpdate(
        kind=UpdateKind.RUN_STARTED, at=run.created_at, run_id=run.id, function_id=run.function_id, app_id=run.app_id
    )


def end_of(run: RunView) -> RunUpdate:
    """The update that the end of a run was, which has ended."""
    assert run.ended_at is not None
    is_completed = run.status is RunStatus.COMPLETED
    return RunUpdate(
        kind=UPDATES_OF_ENDS[run.status],
        at=run.ended_at,
        run_id=run.id,
        function_id=run.function_id,
        app_id=run.app_id,
        output=run.output if is_completed else None,
        error=None if is_completed or run.output is None else describe_error(run.output),
        created_at=run.created_at,
        event_id=run.event_id,
    )
