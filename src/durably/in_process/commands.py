"""Commands of user code to the engine in its own processes: cancel, rerun, pause, replay."""

import datetime as dt
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import msgspec

from durably.events import as_data

from .queries import Queries, aware

if TYPE_CHECKING:
    from durably.engine.scheduling.bulk_operations import Selection
    from durably.engine.views import BulkOperationView, InvokeReceipt, RunStatus


class Commands(Queries):
    """Commands that start something also raise ``TransportError`` if the leader ended before it answered.

    It is then unclear whether the command was executed.
    """

    # one run

    async def invoke(self, function_id: str, data: Mapping[str, Any] | None = None) -> "InvokeReceipt":
        """Start a run of one function, whatever triggers it otherwise. Raises ``FunctionNotFoundError``,
        ``EventInvalidError``."""
        return cast("InvokeReceipt", await self._request("invoke", function_id, dict(as_data(data) or {})))

    def invoke_sync(self, function_id: str, data: Mapping[str, Any] | None = None) -> "InvokeReceipt":
        return self._block(self.invoke(function_id, data))

    async def signal(self, name: str, data: Any = None) -> str | None:
        """Wake the run that waits for a signal; its id, or ``None`` if no run waits."""
        return cast("str | None", await self._request("signal", name, data))

    def signal_sync(self, name: str, data: Any = None) -> str | None:
        return self._block(self.signal(name, data))

    async def cancel_run(self, run_id: str) -> bool:
        """False if the run has already ended. Raises ``RunNotFoundError``."""
        return cast("bool", await self._request("cancel_run", run_id))

    def cancel_run_sync(self, run_id: str) -> bool:
        return self._block(self.cancel_run(run_id))

    async def rerun(self, run_id: str, *, from_step: str | None = None, step_input: Sequence[Any] | None = None) -> str:
        """Run the same function again with the same events; the new run's id.

        ``from_step`` is the id of a step that the run has finished: the new run takes over the results of the steps
        before it. ``step_input`` are arguments for that step in place of its own. Raises ``RunNotFoundError``,
        ``StepNotFoundError``, ``FunctionNotFoundError``, ``FunctionPausedError``, and ``ValueError`` for a
        ``step_input`` without a step.
        """
        from durably.engine.scheduling.reruns import FromStep

        if from_step is None:
            if step_input is not None:
                raise ValueError("step_input needs from_step, the step that it is for")
            return cast("str", await self._request("rerun", run_id, None))
        encoded = None if step_input is None else [msgspec.Raw(msgspec.json.encode(each)) for each in step_input]
        return cast("str", await self._request("rerun", run_id, FromStep(from_step, encoded)))

    def rerun_sync(self, run_id: str, *, from_step: str | None = None, step_input: Sequence[Any] | None = None) -> str:
        return self._block(self.rerun(run_id, from_step=from_step, step_input=step_input))

    # many runs of a function

    async def cancel_runs(
        self,
        function_id: str,
        *,
        started_after: dt.datetime | None = None,
        started_before: dt.datetime | None = None,
        if_exp: str | None = None,
    ) -> "BulkOperationView":
        """Start to cancel the function's runs that were created in that time (default: all until now) and whose
        event meets ``if_exp`` (CEL, over ``event``).

        A ``started_before`` in the future also applies to runs that start until then. ``list_cancellations`` shows
        how many runs were cancelled. Raises ``FunctionNotFoundError``, ``SelectionInvalidError``.
        """
        selection = _select(function_id, started_after, started_before, if_exp)
        return cast("BulkOperationView", await self._request("cancel_runs", selection))

    def cancel_runs_sync(
        self,
        function_id: str,
        *,
        started_after: dt.datetime | None = None,
        started_before: dt.datetime | None = None,
        if_exp: str | None = None,
    ) -> "BulkOperationView":
        return self._block(
            self.cancel_runs(function_id, started_after=started_after, started_before=started_before, if_exp=if_exp)
        )

    async def delete_cancellation(self, cancellation_id: str) -> None:
        """Let a bulk cancellation cancel no more runs. Raises ``CancellationNotFoundError``."""
        await self._request("delete_cancellation", cancellation_id)

    def delete_cancellation_sync(self, cancellation_id: str) -> None:
        self._block(self.delete_cancellation(cancellation_id))

    async def replay_runs(
        self,
        function_id: str,
        *,
        statuses: "Collection[RunStatus | str]" = ("Failed",),
        started_after: dt.datetime | None = None,
        started_before: dt.datetime | None = None,
        if_exp: str | None = None,
    ) -> "BulkOperationView":
        """Start to rerun the function's runs that ended with one of the ``statuses``; see ``cancel_runs`` for the other
        arguments. Raises ``FunctionNotFoundError``, ``FunctionPausedError``, ``SelectionInvalidError``, and
        ``ValueError`` for an unknown status."""
        from durably.engine.views import RunStatus

        selection = _select(function_id, started_after, started_before, if_exp)
        wanted = [RunStatus(status) for status in statuses]
        return cast("BulkOperationView", await self._request("replay_runs", selection, wanted))

    def replay_runs_sync(
        self,
        function_id: str,
        *,
        statuses: "Collection[RunStatus | str]" = ("Failed",),
        started_after: dt.datetime | None = None,
        started_before: dt.datetime | None = None,
        if_exp: str | None = None,
    ) -> "BulkOperationView":
        return self._block(
            self.replay_runs(
                function_id,
                statuses=statuses,
                started_after=started_after,
                started_before=started_before,
                if_exp=if_exp,
            )
        )

    # a function

    async def pause_function(self, function_id: str) -> None:
        """Let the function start no more runs: its triggers are shown as skipped. Runs under way go on. Raises
        ``FunctionNotFoundError``."""
        await self._request("pause_function", function_id)

    def pause_function_sync(self, function_id: str) -> None:
        self._block(self.pause_function(function_id))

    async def resume_function(self, function_id: str) -> None:
        """Let a paused function start runs again. Raises ``FunctionNotFoundError``."""
        await self._request("resume_function", function_id)

    def resume_function_sync(self, function_id: str) -> None:
        self._block(self.resume_function(function_id))


def _select(
    function_id: str,
    started_after: dt.datetime | None,
    started_before: dt.datetime | None,
    if_exp: str | None,
) -> "Selection":
    from durably.engine.scheduling.bulk_operations import Selection

    return Selection(
        function_id=function_id,
        started_after=aware("started_after", started_after),
        started_before=aware("started_before", started_before) or dt.datetime.now(dt.UTC),
        expression=if_exp,
    )
