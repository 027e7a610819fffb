"""Declarations of an app's workers and schedules.

They are made at import time, in as many places as an app likes. ``workers`` runs workers; ``schedules`` writes
schedules to the server. Nothing in this file connects or starts anything.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypedDict

from temporalio.client import ScheduleIntervalSpec, SchedulePolicy, ScheduleSpec
from temporalio.common import Priority, RetryPolicy, TypedSearchAttributes
from temporalio.worker import (
    Interceptor,
    Plugin,
    PollerBehavior,
    WorkerDeploymentConfig,
    WorkerTuner,
    WorkflowRunner,
)

from .default_arguments import with_defaults
from .errors import TemporalSettingsError, TemporalWorkerError


class WorkerOptions(TypedDict, total=False):
    """What a worker may be told beside its work, as ``temporalio.worker.Worker`` describes it."""

    activity_executor: Executor
    activity_task_poller_behavior: PollerBehavior
    deployment_config: WorkerDeploymentConfig
    disable_eager_activity_execution: bool
    graceful_shutdown_timeout: timedelta
    identity: str
    interceptors: Sequence[Interceptor]
    max_activities_per_second: float
    max_cached_workflows: int
    max_concurrent_activities: int
    max_concurrent_local_activities: int
    max_concurrent_workflow_tasks: int
    max_task_queue_activities_per_second: float
    plugins: Sequence[Plugin]
    tuner: WorkerTuner
    workflow_failure_exception_types: Sequence[type[BaseException]]
    workflow_runner: WorkflowRunner
    workflow_task_poller_behavior: PollerBehavior


@dataclass(frozen=True, kw_only=True)
class WorkerDeclaration:
    """The work of one task queue; ``None`` is the connection's own.

    ``passed_through`` are modules that workflows take from the process as they are, instead of importing them anew
    into their sandbox.
    """

    task_queue: str | None = None
    workflows: tuple[type, ...] = ()
    activities: tuple[Callable[..., Any], ...] = ()
    passed_through: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


_ADDED_UP = "interceptors"
"""The option that several declarations of one task queue may each add to."""


def by_task_queue(declarations: Iterable[WorkerDeclaration], default: str | None) -> list[WorkerDeclaration]:
    """One declaration for each task queue: the server hands a queue's tasks to any of its workers, so that of two
    that know half the workflows each, both would fail half of their tasks.

    Raises ``TemporalWorkerError`` where there is nothing to run, no task queue, or an option given twice.
    """
    merged: dict[str, WorkerDeclaration] = {}
    for declaration in declarations:
        queue = declaration.task_queue or default
        if not queue:
            raise TemporalWorkerError(
                'a worker is declared without a task queue: name one, temporal.add_worker("orders", …), or give the '
                "connection one (Temporal(task_queue=…), TEMPORAL_TASK_QUEUE)"
            )
        merged[queue] = _merge(queue, merged.get(queue), declaration)
    if not merged:
        raise TemporalWorkerError(
            "there is nothing to run: declare workers with temporal.add_worker(workflows=[…], activities=[…])"
        )
    for queue, declaration in merged.items():
        if not declaration.workflows and not declaration.activities:
            raise TemporalWorkerError(f'the worker of the task queue "{queue}" has neither workflows nor activities')
    return list(merged.values())


def _merge(queue: str, known: WorkerDeclaration | None, more: WorkerDeclaration) -> WorkerDeclaration:
    known = known or WorkerDeclaration()
    options = {**known.options, **more.options}
    if _ADDED_UP in options:
        options[_ADDED_UP] = _union(tuple(known.options.get(_ADDED_UP, ())), tuple(more.options.get(_ADDED_UP, ())))
    for name in known.options.keys() & more.options.keys() - {_ADDED_UP}:
        if known.options[name] != more.options[name]:
            raise TemporalWorkerError(f'the option {name} of the task queue "{queue}" is given twice, differently')
    return WorkerDeclaration(
        task_queue=queue,
        workflows=_union(known.workflows, more.workflows),
        activities=_union(known.activities, more.activities),
        passed_through=_union(known.passed_through, more.passed_through),
        options=options,
    )


def _union(known: tuple[Any, ...], more: tuple[Any, ...]) -> tuple[Any, ...]:
    return (*known, *(each for each in more if each not in known))


def with_interceptor(declarations: Iterable[WorkerDeclaration], interceptor: Interceptor) -> list[WorkerDeclaration]:
    """The same work, with an interceptor after those that were declared."""
    return [
        replace(each, options={**each.options, _ADDED_UP: [*each.options.get(_ADDED_UP, ()), interceptor]})
        for each in declarations
    ]


def modules_to_pass_through(declaration: WorkerDeclaration) -> set[str]:
    """The modules that only have activities, and what the declaration names.

    A workflow imports its activities for their names and types; importing all that they need anew for each workflow
    is slow, and fails where a module can be there but once, such as Django's models.
    """
    workflows = {workflow.__module__ for workflow in declaration.workflows}
    activities = {
        getattr(activity, "__module__", None) or type(activity).__module__ for activity in declaration.activities
    }
    return {
        module
        for module in {"durably", *declaration.passed_through, *activities}
        if not any(workflow == module or workflow.startswith(f"{module}.") for workflow in workflows)
    }


class ScheduledWorkflowOptions(TypedDict, total=False):
    """How a schedule starts its workflow, as ``temporalio.client.ScheduleActionStartWorkflow`` describes it."""

    execution_timeout: timedelta
    run_timeout: timedelta
    task_timeout: timedelta
    retry_policy: RetryPolicy
    memo: Mapping[str, Any]
    typed_search_attributes: TypedSearchAttributes
    static_summary: str
    static_details: str
    priority: Priority


@dataclass(frozen=True, kw_only=True)
class ScheduleDeclaration:
    """A schedule and what it starts; ``task_queue`` ``None`` is the connection's own."""

    id: str
    workflow: str | Callable[..., Any]
    args: tuple[Any, ...]
    spec: ScheduleSpec
    policy: SchedulePolicy
    workflow_id: str
    task_queue: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def make_spec(
    cron: str | Sequence[str] | None, every: timedelta | None, spec: ScheduleSpec | None, time_zone: str | None
) -> ScheduleSpec:
    """When a schedule is due. Raises ``TemporalSettingsError`` unless exactly one of the first three is given."""
    if sum(given is not None for given in (cron, every, spec)) != 1:
        raise TemporalSettingsError("a schedule is given one of cron=, every= and spec=")
    if spec is None:
        expressions = [cron] if isinstance(cron, str) else list(cron or ())
        intervals = [] if every is None else [ScheduleIntervalSpec(every=every)]
        spec = ScheduleSpec(cron_expressions=expressions, intervals=intervals)
    return spec if time_zone is None else replace(spec, time_zone_name=time_zone)


def scheduled_arguments(id: str, start: str | Callable[..., Any], args: Sequence[Any]) -> tuple[Any, ...]:
    """With defaults, if ``start`` is a method. Raises ``TemporalSettingsError`` for arguments that do not fit it."""
    if isinstance(start, str):
        return tuple(args)
    try:
        return tuple(with_defaults(start, args))
    except TypeError as error:
        raise TemporalSettingsError(f'the schedule "{id}" cannot start its workflow: {error}') from None
