"""Declared workers and schedules.

An app declares its workers and schedules at import time, in any number of places. The options and arguments are those
of its calls to the server. This module does not connect, and starts nothing.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypedDict

from temporalio.client import SchedulePolicy, ScheduleSpec
from temporalio.worker import (
    Interceptor,
    Plugin,
    PollerBehavior,
    WorkerDeploymentConfig,
    WorkerTuner,
    WorkflowRunner,
)

from .errors import TemporalWorkerError

# Workers


class WorkerOptions(TypedDict, total=False):
    """Options of a worker that are not workflows or activities.

    ``temporalio.worker.Worker`` describes them.
    """

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
    """The work of one task queue; ``None`` is the connection's own task queue.

    ``passed_through`` are modules that workflows share with the process: their sandbox does not import them again.
    """

    task_queue: str | None = None
    workflows: tuple[type, ...] = ()
    activities: tuple[Callable[..., Any], ...] = ()
    passed_through: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


_ADDED_UP = "interceptors"
"""The option to which several declarations of one task queue may add."""


def by_task_queue(declarations: Iterable[WorkerDeclaration], default: str | None) -> list[WorkerDeclaration]:
    """Merge declarations, so that there is one for each task queue.

    The server gives a queue's tasks to any of its workers. If each of two workers had half of the workflows, both would
    fail half of their tasks.

    Raises ``TemporalWorkerError`` if there is nothing to run, no task queue, or an option with two values.
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
            raise TemporalWorkerError(f'the option {name} of the task queue "{queue}" has two different values')
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
    """The same work, with an interceptor after the declared ones."""
    return [
        replace(each, options={**each.options, _ADDED_UP: [*each.options.get(_ADDED_UP, ()), interceptor]})
        for each in declarations
    ]


# Schedules


@dataclass(frozen=True, kw_only=True)
class ScheduleDeclaration:
    """A schedule and the workflow that it starts.

    If ``task_queue`` is ``None``, it is the connection's own.
    """

    id: str
    workflow: str | Callable[..., Any]
    args: tuple[Any, ...]
    spec: ScheduleSpec
    policy: SchedulePolicy
    task_queue: str | None = None
