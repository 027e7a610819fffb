"""Middleware: user code around calls, steps and sent events (spec §6).

For each call the hooks of all middleware run once, the client's before the function's, in this order:
``transform_input``, ``after_memoization``, ``before_execution``, ``after_execution``, ``transform_output``,
``before_response``. Hooks named *after*, and ``transform_output``, run in reverse order of registration.
``before_step`` and ``after_step`` run around each executed step. ``transform_step_input`` runs before a step that the
engine executes is sent to it. ``before_send_events`` and ``after_send_events`` run around each send of events.

With checkpointing a call executes several steps. ``before_execution``, ``after_execution`` and ``transform_output``
then run for each of them, and once more for the function's end. The function continues with its step's result, decoded
from JSON. The output of ``transform_output`` is stored, and ``transform_input`` must restore it at later calls.
"""

from __future__ import annotations

from typing import Any, ClassVar

from durably.functions.function import Function
from durably.functions.middleware import SendEventsResult, TransformOutputResult, TransformStepInput, base_of_middleware
from durably.protocol.events import Event

from .client import Client
from .context import Context, ContextSync
from .execution import StepInfo, StepMemos


@base_of_middleware
class Middleware:
    """Base of async middleware.

    One is created for each call and each send, with the framework's request.
    """

    def __init__(self, client: Client, raw_request: object) -> None:
        self.client = client
        self.raw_request = raw_request

    async def transform_input(self, ctx: Context | ContextSync, function: Function[Any], steps: StepMemos) -> None:
        """Before the function runs. Context and memos may be changed."""

    async def after_memoization(self) -> None:
        """All memos are returned. Runs at once if there are none."""

    async def before_execution(self) -> None:
        """Before new code runs."""

    async def after_execution(self) -> None:
        """After new code ran, whether it succeeded or not."""

    async def transform_output(self, result: TransformOutputResult) -> None:
        """A function or step returned or raised; ``result`` may be changed."""

    async def before_response(self) -> None:
        """Before the answer goes to the engine."""

    async def before_step(self, step: StepInfo) -> None:
        """Before a step's handler runs."""

    async def after_step(self, step: StepInfo, result: TransformOutputResult) -> None:
        """After a step's handler ran.

        Changes to ``result`` belong in ``transform_output``.
        """

    async def transform_step_input(self, step: TransformStepInput) -> None:
        """Before a step that the engine executes is sent to it, and before ``Function.start``.

        ``step.opts`` may be replaced. A start looks like an invoke, with the id that was given to it.
        """

    async def transform_result(self, result: TransformOutputResult) -> None:
        """A handle has got the result of a run (``RunHandle.result``); ``result.output`` may be changed.

        Middleware whose ``transform_output`` changes the results of functions undoes that here.
        """

    async def before_send_events(self, events: list[Event]) -> None:
        """Before events are sent; the list and its events may be changed."""

    async def after_send_events(self, result: SendEventsResult) -> None:
        """After events were sent, or could not be."""


@base_of_middleware
class MiddlewareSync:
    """Base of sync middleware, for functions of both kinds.

    The hooks are those of ``Middleware``. In an async function the hooks run on its event loop. Middleware with hooks
    that block (files, the network) sets ``runs_in_thread``: then async functions wait for them in a worker thread.
    Context variables that such a hook sets are not kept.
    """

    runs_in_thread: ClassVar[bool] = False

    def __init__(self, client: Client, raw_request: object) -> None:
        self.client = client
        self.raw_request = raw_request

    def transform_input(self, ctx: Context | ContextSync, function: Function[Any], steps: StepMemos) -> None:
        """See ``Middleware.transform_input``."""

    def after_memoization(self) -> None:
        """See ``Middleware.after_memoization``."""

    def before_execution(self) -> None:
        """See ``Middleware.before_execution``."""

    def after_execution(self) -> None:
        """See ``Middleware.after_execution``."""

    def transform_output(self, result: TransformOutputResult) -> None:
        """See ``Middleware.transform_output``."""

    def before_response(self) -> None:
        """See ``Middleware.before_response``."""

    def before_step(self, step: StepInfo) -> None:
        """See ``Middleware.before_step``."""

    def after_step(self, step: StepInfo, result: TransformOutputResult) -> None:
        """See ``Middleware.after_step``."""

    def transform_step_input(self, step: TransformStepInput) -> None:
        """See ``Middleware.transform_step_input``."""

    def transform_result(self, result: TransformOutputResult) -> None:
        """See ``Middleware.transform_result``."""

    def before_send_events(self, events: list[Event]) -> None:
        """See ``Middleware.before_send_events``."""

    def after_send_events(self, result: SendEventsResult) -> None:
        """See ``Middleware.after_send_events``."""
