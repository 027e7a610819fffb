"""Workflows and database transactions: a workflow must not start for what is rolled back."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar, Unpack, overload

from django.db import transaction
from temporalio.types import MethodAsyncNoParam, MethodAsyncSingleParam

from durably.temporal.call_options import StartOptions
from durably.temporal.connection import Temporal

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
    """Start a workflow once the current transaction commits; at once when there is none.

    The arguments are those of ``temporal.sync.start_workflow``; ``using`` names the database. If the server is away at
    that moment, the transaction stays and the error is raised from the end of the ``atomic`` block, or with ``robust``
    logged: what must start in any case is better written down and started by an activity or a schedule.
    """
    connection = temporal or get_temporal()

    def start() -> None:
        connection.sync.start_workflow(workflow, *arg, id=id, **options)

    transaction.on_commit(start, using=using, robust=robust)
