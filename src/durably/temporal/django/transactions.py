"""Workflows and database transactions: a workflow must not start for what is rolled back."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar, Unpack, overload

from asgiref.sync import sync_to_async
from django.core.exceptions import SynchronousOnlyOperation
from django.db import transaction
from temporalio.types import MethodAsyncNoParam, MethodAsyncSingleParam

from durably.django_compat import in_event_loop
from durably.temporal.call_options import StartOptions
from durably.temporal.connection import Temporal
from durably.temporal.default_arguments import fill_arguments

from .conf import get_temporal

W = TypeVar("W")
A = TypeVar("A")
R = TypeVar("R")
P = ParamSpec("P")


class CommitOptions(StartOptions, total=False):
    """How ``start_on_commit`` starts a workflow, and after which transaction."""

    using: str | None
    robust: bool
    temporal: Temporal | None


@overload
def start_on_commit(workflow: MethodAsyncNoParam[W, R], *, id: str, **options: Unpack[CommitOptions]) -> None: ...
@overload
def start_on_commit(
    workflow: MethodAsyncSingleParam[W, A, R], arg: A, *, id: str, **options: Unpack[CommitOptions]
) -> None: ...
@overload
def start_on_commit(
    workflow: Callable[Concatenate[W, P], Awaitable[R]],
    *,
    args: Sequence[Any],
    id: str,
    **options: Unpack[CommitOptions],
) -> None: ...
@overload
def start_on_commit(
    workflow: str, *arg: Any, id: str, args: Sequence[Any] = (), **options: Unpack[CommitOptions]
) -> None: ...
def start_on_commit(
    workflow: Any,
    *arg: Any,
    id: str,
    using: str | None = None,
    robust: bool = False,
    temporal: Temporal | None = None,
    **options: Any,
) -> None:
    """Start a workflow when the current transaction commits; at once if there is no transaction.

    The arguments are those of ``temporal.sync.start_workflow``; ``using`` names the database. If the server is away at
    that moment, the transaction stays. The error is raised from the end of the ``atomic`` block, or with ``robust``
    it is logged: what must start in any case is better written down and started by an activity or a schedule.

    Raises ``SynchronousOnlyOperation`` on an event loop: the transaction is in another thread there. See
    ``astart_on_commit``. Before the commit, raises ``TemporalSettingsError`` if no task queue is known, and
    ``TypeError`` if the arguments do not fit the workflow.
    """
    _refuse_event_loop()
    sync = (temporal or get_temporal()).sync
    arg, options = fill_arguments(workflow, arg, sync.with_task_queue(options))

    def start() -> None:
        sync.start_workflow(workflow, *arg, id=id, **options)

    transaction.on_commit(start, using=using, robust=robust)


@overload
async def astart_on_commit(
    workflow: MethodAsyncNoParam[W, R], *, id: str, **options: Unpack[CommitOptions]
) -> None: ...
@overload
async def astart_on_commit(
    workflow: MethodAsyncSingleParam[W, A, R], arg: A, *, id: str, **options: Unpack[CommitOptions]
) -> None: ...
@overload
async def astart_on_commit(
    workflow: Callable[Concatenate[W, P], Awaitable[R]],
    *,
    args: Sequence[Any],
    id: str,
    **options: Unpack[CommitOptions],
) -> None: ...
@overload
async def astart_on_commit(
    workflow: str, *arg: Any, id: str, args: Sequence[Any] = (), **options: Unpack[CommitOptions]
) -> None: ...
async def astart_on_commit(workflow: Any, *arg: Any, id: str, **options: Any) -> None:
    """``start_on_commit`` for asynchronous code: the transaction is that of ``sync_to_async``'s thread.

    Django has no transactions on an event loop, so in most asynchronous views there is none and the workflow has
    started when this returns. The event loop is not blocked.
    """
    await sync_to_async(start_on_commit)(workflow, *arg, id=id, **options)


def _refuse_event_loop() -> None:
    """If ``DJANGO_ALLOW_ASYNC_UNSAFE`` is set, Django itself does not refuse it before the commit."""
    if in_event_loop():
        raise SynchronousOnlyOperation(
            "start_on_commit() is called on an event loop, where Django has no transactions: use "
            "await astart_on_commit(…), or call it in the function that you give to sync_to_async"
        )
