"""``Engine``, the interface of engines.

HTTP API, dashboard, command line, SDK and tests use its operations. ``SqliteEngine`` and ``WorkflowEngine`` implement
them, ``HttpEngine`` reaches an engine over HTTP. This module needs no package of an engine, so that an app without one
can use them. To add an operation, declare it here with its line in ``SyncEngine``,
and implement it in the engines, or here if it only combines what they have (``is_derived``). Its route and its client
are derived from the declaration.
"""

# Most methods have no bodies: ``@Operation`` makes them.
# mypy: disable-error-code="empty-body"
# pyright: reportReturnType=false

import datetime as dt
from collections.abc import Collection, Coroutine, Mapping
from typing import Annotated, Any, TypeVar

import msgspec

from durably.engine.model.overview import (
    App,
    Changes,
    EngineInfo,
    FunctionInfo,
    FunctionLoad,
    FunctionReport,
    Overview,
    ScheduleInfo,
)
from durably.engine.model.questions import LONGEST_ASK_SECONDS, Asked, OpenQuestion
from durably.engine.model.runs import (
    Attempt,
    BulkOperation,
    EventFilter,
    EventPage,
    ExportedSpans,
    FromStep,
    InvokeReceipt,
    LogPage,
    MatchCount,
    Run,
    RunCall,
    RunFilter,
    RunMetadata,
    RunPage,
    RunReport,
    RunStatus,
    StatusCounts,
    Step,
    StoredEvent,
)
from durably.protocol.call import CheckpointRequest, LogLine
from durably.protocol.channels import MessageBatch, NewMessage
from durably.protocol.engine_errors import NotSupportedError
from durably.protocol.events import EventReceipt, SendBody
from durably.protocol.headers import Header

from .metrics import Metric
from .operations import Access, Operation, blocking, operations_of

T = TypeVar("T")

RunLimit = Annotated[int, msgspec.Meta(ge=1, le=500)]
EventLimit = Annotated[int, msgspec.Meta(ge=1, le=100)]
Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
ChangePosition = Annotated[int, msgspec.Meta(ge=1, le=2**53)]
WaitSeconds = Annotated[float, msgspec.Meta(ge=0, le=60)]
IdSuffix = Annotated[str, msgspec.Meta(pattern=r"^[0-9A-Za-z]+\Z", description="the last letters and digits of an id")]
"""Ids are letters and digits, so special characters of LIKE patterns are refused."""

_NO_RUN = "no run has the id {run_id!r}"
_NO_EVENT = "no event has the id {event_id!r}"


async def _event_exists(engine: "Engine", arguments: Mapping[str, Any], result: object) -> bool:
    """Whether the event exists. True if the engine has no log of events.

    The answer of such an engine is an empty list.
    """
    try:
        return await engine.get_event(arguments["event_id"]) is not None
    except NotSupportedError:
        return True


async def _run_exists(engine: "Engine", arguments: Mapping[str, Any], result: object) -> bool:
    return await engine.get_run(arguments["run_id"]) is not None


async def _show_receipt(engine: "Engine", arguments: Mapping[str, Any], receipt: EventReceipt) -> SendBody:
    return SendBody(ids=receipt.ids, status=200, unmatched=receipt.unmatched)


async def _show_run(engine: "Engine", arguments: Mapping[str, Any], result: object) -> Run | None:
    return await engine.get_run(arguments["run_id"])


async def _show_new_run(engine: "Engine", arguments: Mapping[str, Any], run_id: str) -> Run | None:
    return await engine.get_run(run_id)


async def _show_function(engine: "Engine", arguments: Mapping[str, Any], result: object) -> FunctionInfo | None:
    return next((each for each in await engine.list_functions() if each.id == arguments["function_id"]), None)


async def _show_run_id(engine: "Engine", arguments: Mapping[str, Any], result: object) -> dict[str, Any]:
    return {"run_id": result or arguments["run_id"]}


async def _show_ok(engine: "Engine", arguments: Mapping[str, Any], result: object) -> dict[str, Any]:
    return {"ok": True}


async def _show_skipped(engine: "Engine", arguments: Mapping[str, Any], count: int) -> dict[str, Any]:
    return {"skipped": count}


async def _show_kept(engine: "Engine", arguments: Mapping[str, Any], kept: bool) -> dict[str, Any]:
    return {"kept": kept}


class Engine:
    """The interface of an engine.

    Most methods are operations, which pass themselves to ``execute`` unless a subclass overrides them. Methods
    raise the engine's errors of ``durably.errors``. Ids of functions begin with their app's. Times have time zones.
    Lists are newest first; ``cursor`` is the id of the last item of the previous page, and ``id_suffix`` the end of the
    ids of items.
    """

    unsupported: frozenset[str] = frozenset()
    """The names of operations that this kind of engine does not offer.

    They raise ``NotSupportedError``, and the dashboard and the command line do not offer them. The set also names
    arguments (``"search_runs.if_exp"``) and their values (``"search_runs.status.Scheduled"``) that a method refuses.
    """

    alternatives: Mapping[str, str] = {}
    """What to use in place of an unsupported operation, by its name, for error messages."""

    async def execute(self, operation: Operation, arguments: Mapping[str, Any]) -> Any:
        """Execute an operation whose method is not overridden.

        ``arguments`` omits those that have their default. Raises ``NotSupportedError``.
        """
        if operation.name in self.unsupported:
            advice = self.alternatives.get(operation.name, "")
            raise NotSupportedError(
                f"this engine does not offer {operation.name.replace('_', ' ')}{advice and ': '}{advice}"
            )
        if not operation.is_derived:
            raise NotImplementedError(f"{type(self).__name__} has no method {operation.name}")
        return await operation.method(self, **arguments)

    # what derived operations need of an engine; an engine that overrides ``execute`` has none of these

    async def _find_runs(self, wanted: RunFilter, limit: int, cursor: str | None) -> RunPage:
        """See ``search_runs``."""

    async def _find_counts(self, wanted: RunFilter) -> StatusCounts:
        """See ``count_runs``."""

    async def _find_events(self, wanted: EventFilter, limit: int, cursor: str | None) -> EventPage:
        """See ``search_events``."""

    async def _start_cancellation(self, wanted: RunFilter) -> BulkOperation:
        """See ``cancel_runs``."""

    async def _start_replay(self, wanted: RunFilter, statuses: Collection[RunStatus]) -> BulkOperation:
        """See ``replay_runs``."""

    async def _count_selected(self, wanted: RunFilter, statuses: Collection[RunStatus]) -> MatchCount:
        """See ``count_matching_runs``."""

    # events

    @Operation(
        "POST /e/{key}",
        access=Access.EVENT_KEY,
        is_bare=True,
        show=_show_receipt,
        body="body",
        headers={
            "seed": Header.EVENT_ID_SEED,
            "sender": Header.RUN_ID,
            "traceparent": Header.TRACEPARENT,
            "tracestate": Header.TRACESTATE,
            "baggage": Header.BAGGAGE,
        },
    )
    async def receive_events(
        self,
        body: bytes,
        *,
        seed: str | None = None,
        sender: str | None = None,
        traceparent: str | None = None,
        tracestate: str | None = None,
        baggage: str | None = None,
    ) -> EventReceipt:
        """Store events, and return their ids, in order, after the commit.

        - ``body``: JSON, an event or a list.
        - ``seed``: The same seed gives the same ids, so a repeated request has no effect.
        - ``sender``: The id of the run that sends the events, if any.
        - ``traceparent``: The trace context (W3C) that their runs continue, with ``tracestate`` and ``baggage``. An
          invalid one is ignored.

        Stores all or none. Raises ``EventInvalidError``, ``EventTooLargeError``.
        """

    @Operation("GET /v1/events", http_defaults={"limit": 20}, is_derived=True)
    async def list_events(
        self,
        *,
        name: str | None = None,
        received_after: dt.datetime | None = None,
        received_before: dt.datetime | None = None,
        limit: EventLimit = 50,
        cursor: str | None = None,
        id_suffix: IdSuffix | None = None,
    ) -> list[StoredEvent]:
        """Events, newest first."""
        wanted = EventFilter(
            name=name, received_after=received_after, received_before=received_before, id=id_suffix, has_runs=False
        )
        events: list[StoredEvent] = []
        while len(events) < limit:
            page = await self._find_events(wanted, limit - len(events), cursor)
            events += page.events
            if (cursor := page.cursor) is None:
                break
        return events

    @Operation("GET /v1/search/events", names={"if_exp": "if"}, is_derived=True)
    async def search_events(
        self,
        *,
        name: str | None = None,
        received_after: dt.datetime | None = None,
        received_before: dt.datetime | None = None,
        is_unmatched: bool | None = None,
        if_exp: str | None = None,
        id: str | None = None,
        limit: EventLimit = 50,
        cursor: str | None = None,
    ) -> EventPage:
        """Search events, newest first, each with the first 50 runs that it started.

        - ``received_after``, ``received_before``: A half-open interval of the time of receipt.
        - ``is_unmatched``: Only events without effects whose name triggers no function, or only the others.
        - ``if_exp``: A condition (CEL, over ``event``).
        - ``id``: The id of an event, or its last characters.

        A search looks at a limited number of events: a page may have fewer events than ``limit``, or none, and a
        cursor. A page ends after 1 MiB. Raises ``SelectionInvalidError``.
        """
        wanted = EventFilter(
            name=name,
            received_after=received_after,
            received_before=received_before,
            is_unmatched=is_unmatched,
            if_exp=if_exp,
            id=id or None,
        )
        return await self._find_events(wanted, limit, cursor)

    @Operation("GET /v1/events/{event_id}", missing=_NO_EVENT)
    async def get_event(self, event_id: str) -> StoredEvent | None:
        """An event by the id that ``Client.send`` returned, with notes on its effects."""

    @Operation("GET /v1/events/{event_id}/runs", missing=_NO_EVENT, exists=_event_exists)
    async def event_runs(self, event_id: str) -> list[Run]:
        """The runs that an event started, in their order."""

    # runs

    @Operation("GET /v1/runs", is_derived=True)
    async def list_runs(
        self,
        *,
        status: RunStatus | None = None,
        function_id: str | None = None,
        limit: RunLimit = 50,
        cursor: str | None = None,
        started_after: dt.datetime | None = None,
        id_suffix: IdSuffix | None = None,
    ) -> list[Run]:
        """Runs, newest first. Outputs of more than 16 KiB are omitted: ``get_run`` has them."""
        wanted = RunFilter(status=status, function_id=function_id, started_after=started_after, id=id_suffix)
        runs: list[Run] = []
        while len(runs) < limit:
            page = await self._find_runs(wanted, limit - len(runs), cursor)
            runs += page.runs
            if (cursor := page.cursor) is None:
                break
        return runs

    @Operation("GET /v1/search/runs", names={"if_exp": "if"}, is_derived=True)
    async def search_runs(
        self,
        *,
        status: RunStatus | None = None,
        function_id: str | None = None,
        app_id: str | None = None,
        event_name: str | None = None,
        started_after: dt.datetime | None = None,
        started_before: dt.datetime | None = None,
        if_exp: str | None = None,
        id: str | None = None,
        limit: RunLimit = 50,
        cursor: str | None = None,
    ) -> RunPage:
        """Search runs, newest first.

        - ``started_after``, ``started_before``: A half-open interval of the time of creation.
        - ``if_exp``: A condition (CEL, over ``event`` and ``output``).
        - ``id``: The id of a run or of an event, or its last characters.

        A search looks at a limited number of runs: a page may have fewer runs than ``limit``, or none, and a cursor.
        Outputs of more than 16 KiB are omitted. Raises ``SelectionInvalidError``.
        """
        wanted = RunFilter(
            status=status,
            function_id=function_id,
            app_id=app_id,
            event_name=event_name,
            started_after=started_after,
            started_before=started_before,
            if_exp=if_exp,
            id=id or None,
        )
        return await self._find_runs(wanted, limit, cursor)

    @Operation("GET /v1/search/runs/counts", is_derived=True)
    async def count_runs(
        self,
        *,
        function_id: str | None = None,
        app_id: str | None = None,
        event_name: str | None = None,
        started_after: dt.datetime | None = None,
        started_before: dt.datetime | None = None,
    ) -> StatusCounts:
        """Count runs by status. See ``search_runs`` for the conditions.

        Counts may stop at 1,000 runs of a status, or after a limited number of other runs. They are then not complete.
        """
        wanted = RunFilter(
            function_id=function_id,
            app_id=app_id,
            event_name=event_name,
            started_after=started_after,
            started_before=started_before,
        )
        return await self._find_counts(wanted)

    @Operation("GET /v1/runs/{run_id}", missing=_NO_RUN)
    async def get_run(self, run_id: str) -> Run | None:
        """A run's status, its output (JSON) and more; ``None`` if it does not exist.

        ``run_id`` may be the id of an invocation's event. If flow control holds its run back, or has skipped it, the
        result has the status ``SCHEDULED`` or ``SKIPPED``, and the event's id.
        """

    @Operation("GET /v1/runs/{run_id}/end")
    async def wait_for_run(self, run_id: str, *, within: WaitSeconds | None = None) -> Run:
        """The run, when it has ended with any status, or as it is after ``within`` seconds. See ``get_run``.

        Raises ``RunNotFoundError``.
        """

    @Operation("GET /v1/runs/{run_id}/steps", missing=_NO_RUN, exists=_run_exists)
    async def run_steps(self, run_id: str) -> list[Step]:
        """Finished steps in the order of their ends, then steps under way."""

    @Operation("GET /v1/runs/{run_id}/attempts", missing=_NO_RUN, exists=_run_exists)
    async def run_attempts(self, run_id: str) -> list[Attempt]:
        """Attempts that failed and were repeated, the earliest first."""

    @Operation("GET /v1/runs/{run_id}/jobs", missing=_NO_RUN, exists=_run_exists)
    async def run_calls(self, run_id: str) -> list[RunCall]:
        """The calls that are scheduled or under way, the earliest first."""

    @Operation("DELETE /v1/runs/{run_id}", show=_show_run)
    async def cancel_run(self, run_id: str) -> bool:
        """Cancel a run. Returns ``False`` if it has already ended.

        Raises ``RunNotFoundError``.
        """

    @Operation("POST /v1/runs/{run_id}/skip-delays", show=_show_skipped)
    async def skip_delays(self, run_id: str, *, step_id: str | None = None) -> int:
        """Skip a run's sleeps and retry delays.

        Returns the number of both. With ``step_id`` only those of that step. Requests of the engine (``fetch``,
        ``ai.infer``), waits and limits of flow control are not affected. Raises ``RunNotFoundError``.
        """

    @Operation("POST /v1/runs/{run_id}/rerun", is_repeatable=False, show=_show_new_run)
    async def rerun(self, run_id: str, *, from_step: FromStep | None = None) -> str:
        """Run the same function again with the same events. Returns the new run's id.

        From a step: with the memos that are older than the step's. Raises ``RunNotFoundError``, ``StepNotFoundError``,
        ``FunctionNotFoundError``, ``FunctionPausedError``.
        """

    @Operation(
        "POST /invoke/{function_id}",
        is_repeatable=False,
        repeatable_with=("id", "seed"),
        is_bare=True,
        headers={
            "seed": Header.EVENT_ID_SEED,
            "sender": Header.RUN_ID,
            "traceparent": Header.TRACEPARENT,
            "tracestate": Header.TRACESTATE,
            "baggage": Header.BAGGAGE,
        },
    )
    async def invoke(
        self,
        function_id: str,
        data: dict[str, Any] | None = None,
        *,
        user: Any = None,
        v: str | None = None,
        id: str | None = None,
        seed: str | None = None,
        sender: str | None = None,
        traceparent: str | None = None,
        tracestate: str | None = None,
        baggage: str | None = None,
    ) -> InvokeReceipt:
        """Start a run of one function, whatever its triggers. Returns when the run is stored.

        - ``id``: While a run is stored that the function was invoked with this id for, that run is returned, and no
          other starts. A skipped run does not count.
        - The others are those of ``receive_events``.

        Raises ``FunctionNotFoundError``, ``FunctionPausedError``, ``EventInvalidError``.
        """

    @Operation(
        "POST /v1/signals",
        is_repeatable=False,
        missing="no run waits for the signal {name!r}",
        names={"name": "signal"},
        show=_show_run_id,
    )
    async def signal(self, name: str, data: Any = None, *, run_id: str | None = None) -> str | None:
        """Wake the run that waits for a signal, unless it is another than ``run_id``.

        Returns its id, or ``None`` if no run waits.
        """

    @Operation("POST /v1/runs/{run_id}/asks")
    async def ask_run(
        self,
        run_id: str,
        name: str,
        data: Any = None,
        *,
        id: str,
        step_id: str | None = None,
        is_only: bool = False,
        needs_reply: bool = True,
        within: float = LONGEST_ASK_SECONDS,
    ) -> Asked:
        """Deliver a message to a run that receives messages of this name, once, and wait for its reply.

        Returns what became of it after ``within`` seconds, 20 at most. Until it is ``replied`` to, repeat the
        request with the same ``id``, which identifies the message among those of this name.

        - ``step_id``: The hashed id of the step that may receive it, for a question that a person has seen.
        - ``is_only``: Refuse the message if the run has accepted another one of this name.
        - ``needs_reply``: Without it, it returns when the message is delivered.

        Raises ``RunNotFoundError``, ``AnswerRefusedError`` if the message does not fit, and ``QuestionClosedError`` if
        the run has ended or takes it no more.
        """

    @Operation("GET /v1/questions")
    async def list_questions(
        self,
        *,
        run_id: str | None = None,
        function_id: str | None = None,
        limit: RunLimit = 50,
        cursor: str | None = None,
    ) -> list[OpenQuestion]:
        """The open questions of runs, those of the newest runs first.

        ``cursor`` is the last question of the previous page, as ``<run id>.<step id>``.
        """

    @Operation("GET /v1/runs/{run_id}/report", missing=_NO_RUN)
    async def inspect_run(self, run_id: str) -> RunReport | None:
        """A run in full detail; ``None`` if it does not exist.

        It has steps with their spans of time and attempts, events, parent and children, and logs.
        """

    # overviews

    @Operation("GET /v1/engine")
    async def describe_engine(self) -> EngineInfo:
        """The kind of the engine, and notes on the limits of its lists."""

    @Operation("GET /v1/overview")
    async def overview(self, *, since: dt.datetime | None = None, until: dt.datetime | None = None) -> Overview:
        """The engine's state: runs over time, load of functions, items to look at.

        Default: the last 24 hours. Counts are kept for 30 days. Raises ``SelectionInvalidError``.
        """

    @Operation("GET /v1/loads")
    async def function_loads(
        self, *, since: dt.datetime | None = None, until: dt.datetime | None = None
    ) -> list[FunctionLoad]:
        """Current load and run counts per function, by function id.

        Default: the last 24 hours. Counts are kept for 30 days. Raises ``SelectionInvalidError``.
        """

    @Operation("GET /v1/functions/{function_id}/report", missing="no app serves a function with the id {function_id!r}")
    async def inspect_function(self, function_id: str, *, since: dt.datetime | None = None) -> FunctionReport | None:
        """A function with its load, and durations of its last runs and their steps.

        The durations are those of the last 100 runs that completed or failed. ``since`` is the beginning of the load's
        counts, by default 24 hours ago. ``None`` if no app serves it.
        """

    @Operation("GET /v1/schedules")
    async def list_schedules(self) -> list[ScheduleInfo]:
        """The cron schedules of functions, with their next five ticks and last runs."""

    @Operation("POST /v1/counts", names={"if_exp": "if"}, is_derived=True)
    async def count_matching_runs(
        self,
        function_id: str,
        *,
        statuses: Collection[RunStatus],
        started_after: dt.datetime | None = None,
        started_before: dt.datetime | None = None,
        if_exp: str | None = None,
    ) -> MatchCount:
        """Count the runs to which a bulk operation would apply; see ``cancel_runs``.

        Looks at the newest 20,000 runs of the function. Raises ``FunctionNotFoundError``, ``SelectionInvalidError``.
        """
        wanted = RunFilter(
            function_id=function_id, started_after=started_after, started_before=started_before, if_exp=if_exp
        )
        return await self._count_selected(wanted, statuses)

    @Operation("GET /v1/changes")
    async def wait_for_changes(self, *, after: ChangePosition | None = None, run_id: str | None = None) -> Changes:
        """Wait for a change after ``position``. Returns the new position.

        Returns at once if a change has already happened, or without ``after``, and at the latest after 20 s. With
        ``run_id`` it waits for changes of this run. Raises ``TooManyWaitersError`` (503).
        """

    @Operation("GET /v1/logs")
    async def list_logs(
        self,
        *,
        run_id: str | None = None,
        function_id: str | None = None,
        position: ChangePosition | None = None,
        limit: RunLimit = 100,
    ) -> LogPage:
        """Lines of ``ctx.logger``, which the engine keeps in development.

        They start at ``position``, 1 for the first line; by default the latest lines.
        """

    # functions and apps

    @Operation("GET /v1/functions")
    async def list_functions(self) -> list[FunctionInfo]:
        """List the functions that apps serve.

        They are in the order of apps, and of functions within each app.
        """

    @Operation("POST /v1/functions/{function_id}/pause", show=_show_function)
    async def pause_function(self, function_id: str) -> None:
        """Stop the function from starting runs.

        Its triggers are shown as skipped. Runs under way continue. Raises ``FunctionNotFoundError``.
        """

    @Operation("POST /v1/functions/{function_id}/resume", show=_show_function)
    async def resume_function(self, function_id: str) -> None:
        """Allow a paused function to start runs again. Raises ``FunctionNotFoundError``."""

    @Operation("GET /v1/apps")
    async def list_apps(self) -> list[App]:
        """The apps that have synced, by id, with their last syncs and connection errors."""

    @Operation("GET /v1/apps/{app_id}/functions", missing="no app with the id {app_id!r} has synced")
    async def list_app_functions(self, app_id: str) -> list[FunctionInfo] | None:
        """The functions of an app, in its order; ``None`` if no such app has synced."""

    # bulk operations on the runs of a function

    @Operation("POST /v1/cancellations", is_repeatable=False, names={"if_exp": "if"}, is_derived=True)
    async def cancel_runs(
        self,
        function_id: str,
        *,
        started_before: dt.datetime,
        started_after: dt.datetime | None = None,
        if_exp: str | None = None,
        app_id: str | None = None,
    ) -> BulkOperation:
        """Start to cancel runs of a function.

        Applies to runs that were created from ``started_after`` until before ``started_before`` and whose event matches
        ``if_exp`` (CEL, over ``event``). A ``started_before`` in the future also applies to runs that start until then.
        For an hour, the cancellation also applies to runs of the function that descend from a cancelled run, by events
        or invocations. With ``app_id``, ``function_id`` may be the id within the app. ``get_cancellation`` shows the
        progress.

        Raises ``FunctionNotFoundError``, ``SelectionInvalidError``.
        """
        wanted = RunFilter(
            function_id=function_id,
            app_id=app_id,
            started_after=started_after,
            started_before=started_before,
            if_exp=if_exp,
        )
        return await self._start_cancellation(wanted)

    @Operation("GET /v1/cancellations")
    async def list_cancellations(self) -> list[BulkOperation]:
        """Bulk cancellations, newest first, and their progress."""

    @Operation(
        "GET /v1/cancellations/{cancellation_id}",
        missing="no bulk cancellation has the id {cancellation_id!r}",
        is_derived=True,
    )
    async def get_cancellation(self, cancellation_id: str) -> BulkOperation | None:
        """A bulk cancellation and its progress."""
        return next((each for each in await self.list_cancellations() if each.id == cancellation_id), None)

    @Operation("DELETE /v1/cancellations/{cancellation_id}", is_repeatable=False, show=_show_ok)
    async def delete_cancellation(self, cancellation_id: str) -> None:
        """Stop a bulk cancellation.

        Runs that it has cancelled stay cancelled. Raises ``CancellationNotFoundError``.
        """

    @Operation("POST /v1/replays", is_repeatable=False, names={"if_exp": "if"}, is_derived=True)
    async def replay_runs(
        self,
        function_id: str,
        *,
        statuses: Collection[RunStatus] = (RunStatus.FAILED,),
        started_after: dt.datetime | None = None,
        started_before: dt.datetime | None = None,
        if_exp: str | None = None,
        app_id: str | None = None,
    ) -> BulkOperation:
        """Start to rerun the function's runs that ended with one of the ``statuses``.

        ``started_before`` is by default now. The other arguments are those of ``cancel_runs``. Raises
        ``FunctionNotFoundError``, ``FunctionPausedError``, ``SelectionInvalidError``.
        """
        wanted = RunFilter(
            function_id=function_id,
            app_id=app_id,
            started_after=started_after,
            started_before=started_before,
            if_exp=if_exp,
        )
        return await self._start_replay(wanted, statuses)

    @Operation("GET /v1/replays")
    async def list_replays(self) -> list[BulkOperation]:
        """Bulk replays, newest first, and their progress."""

    @Operation("GET /v1/replays/{replay_id}", missing="no bulk replay has the id {replay_id!r}", is_derived=True)
    async def get_replay(self, replay_id: str) -> BulkOperation | None:
        """A bulk replay and its progress."""
        return next((each for each in await self.list_replays() if each.id == replay_id), None)

    # for SDKs

    @Operation("POST /v1/checkpoint/{run_id}/async", body="request", show=_show_run_id)
    async def checkpoint(self, run_id: str, request: CheckpointRequest) -> None:
        """Store steps that a call has finished while it continues.

        Raises ``StaleCallError`` (409), ``CheckpointInvalidError`` (400), ``TooLargeError`` (413),
        ``RunNotFoundError`` (404).
        """

    @Operation("GET /v0/runs/{run_id}/batch", is_bare=True, missing=_NO_RUN)
    async def run_batch(self, run_id: str) -> msgspec.Raw | None:
        """The run's events, a JSON array (spec §4.4.2)."""

    @Operation("GET /v0/runs/{run_id}/actions", is_bare=True, missing=_NO_RUN)
    async def run_actions(self, run_id: str) -> msgspec.Raw | None:
        """The run's memos, a JSON object by hashed step id (spec §4.4.2)."""

    @Operation("POST /v1/runs/{run_id}/metadata", is_repeatable=False, body="body", show=_show_kept)
    async def add_run_metadata(self, run_id: str, body: msgspec.Raw) -> bool:
        """Store an SDK's metadata of a run. Returns ``False`` if it is too large.

        The body is ``{target, metadata: [{kind, op, values}]}``. Raises ``RunNotFoundError``.
        """

    @Operation("POST /v1/runs/{run_id}/logs", is_repeatable=False, show=_show_kept)
    async def add_run_logs(self, run_id: str, lines: list[LogLine]) -> bool:
        """Store lines of ``ctx.logger``. Returns ``False`` if some are not kept.

        An engine keeps them in development only, and of each run the first 5,000. Raises ``RunNotFoundError``.
        """

    @Operation("POST /v1/runs/{run_id}/progress")
    async def report_progress(self, run_id: str, fraction: Fraction, message: str = "") -> float:
        """Store how far a run is, from 0 to 1. Returns the seconds after which the next value should be sent.

        Of a run that has ended, the last value stays. Raises ``RunNotFoundError``.
        """

    @Operation("POST /v1/messages", is_repeatable=False, show=_show_ok)
    async def publish_messages(self, messages: list[NewMessage]) -> None:
        """Publish messages to those who listen to their channels now. They are kept in memory, for a short time.

        Raises ``EventInvalidError``, ``TooLargeError``.
        """

    @Operation("POST /v1/messages/read")
    async def read_messages(
        self, channels: dict[str, int], *, reader: str | None = None, waits: bool = True
    ) -> MessageBatch:
        """The messages of channels after positions, 0 for all that are kept.

        Waits for some up to 20 s, or until the same ``reader`` reads again. The channel of a run is its id, and begins
        with the state of the run. Raises ``EventInvalidError``.
        """

    @Operation("POST /v1/outboxes", show=_show_ok)
    async def report_outbox(self, name: str, waiting: int, refused: int, oldest: float) -> None:
        """Keep the state of an outbox for the metrics and the overview, until the engine restarts.

        A relay reports it every ten seconds: the numbers of events that wait and that were refused, and the seconds
        that the oldest one has waited.
        """

    @Operation("GET /v1/runs/{run_id}/metadata", missing=_NO_RUN)
    async def run_metadata(self, run_id: str) -> list[RunMetadata] | None:
        """Metadata of a run from SDKs; ``None`` if the run does not exist."""

    @Operation("POST /v1/traces/userland", is_repeatable=False, body="body", headers={"content_type": "content-type"})
    async def add_traces(self, body: bytes, content_type: str) -> bool:
        """Store spans that an SDK has exported. Returns ``False`` if they are too large.

        The spans are in the form of OTLP over HTTP.
        """

    @Operation("GET /v1/runs/{run_id}/traces")
    async def run_traces(self, run_id: str) -> list[ExportedSpans]:
        """The exports of spans that name a run. They may contain spans of other runs."""

    # metrics

    @Operation("GET /v1/metrics")
    async def read_metrics(self) -> list[Metric]:
        """The engine's metrics. ``GET /metrics`` has them in the format of Prometheus.

        Counters start at zero when the engine starts.
        """


OPERATIONS = operations_of(Engine)
"""The operations by name."""


class SyncEngine(Engine):
    """An engine with methods for synchronous code too, except those for SDKs."""

    def block(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Block this thread until the coroutine has ended. Returns its result."""
        raise NotImplementedError

    list_events_sync = blocking(Engine.list_events)
    search_events_sync = blocking(Engine.search_events)
    get_event_sync = blocking(Engine.get_event)
    event_runs_sync = blocking(Engine.event_runs)
    list_runs_sync = blocking(Engine.list_runs)
    search_runs_sync = blocking(Engine.search_runs)
    count_runs_sync = blocking(Engine.count_runs)
    get_run_sync = blocking(Engine.get_run)
    wait_for_run_sync = blocking(Engine.wait_for_run)
    run_steps_sync = blocking(Engine.run_steps)
    run_attempts_sync = blocking(Engine.run_attempts)
    run_calls_sync = blocking(Engine.run_calls)
    run_metadata_sync = blocking(Engine.run_metadata)
    run_traces_sync = blocking(Engine.run_traces)
    cancel_run_sync = blocking(Engine.cancel_run)
    skip_delays_sync = blocking(Engine.skip_delays)
    rerun_sync = blocking(Engine.rerun)
    describe_engine_sync = blocking(Engine.describe_engine)
    overview_sync = blocking(Engine.overview)
    function_loads_sync = blocking(Engine.function_loads)
    inspect_function_sync = blocking(Engine.inspect_function)
    list_schedules_sync = blocking(Engine.list_schedules)
    count_matching_runs_sync = blocking(Engine.count_matching_runs)
    wait_for_changes_sync = blocking(Engine.wait_for_changes)
    inspect_run_sync = blocking(Engine.inspect_run)
    list_logs_sync = blocking(Engine.list_logs)
    invoke_sync = blocking(Engine.invoke)
    signal_sync = blocking(Engine.signal)
    ask_run_sync = blocking(Engine.ask_run)
    list_questions_sync = blocking(Engine.list_questions)
    list_functions_sync = blocking(Engine.list_functions)
    pause_function_sync = blocking(Engine.pause_function)
    resume_function_sync = blocking(Engine.resume_function)
    list_apps_sync = blocking(Engine.list_apps)
    list_app_functions_sync = blocking(Engine.list_app_functions)
    cancel_runs_sync = blocking(Engine.cancel_runs)
    list_cancellations_sync = blocking(Engine.list_cancellations)
    get_cancellation_sync = blocking(Engine.get_cancellation)
    delete_cancellation_sync = blocking(Engine.delete_cancellation)
    replay_runs_sync = blocking(Engine.replay_runs)
    list_replays_sync = blocking(Engine.list_replays)
    get_replay_sync = blocking(Engine.get_replay)
    read_metrics_sync = blocking(Engine.read_metrics)
