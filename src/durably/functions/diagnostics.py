"""Possible mistakes in functions: those that a call detects, and functions that no handler serves.

They are steps that the function no longer reaches, unfinished steps, and events sent outside of steps.
"""

import logging
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from typing import Any

import msgspec

from durably.app import App
from durably.execution import Divergence, ReplayDivergedError, StepIds, StepIdUnstableError, in_step
from durably.protocol.errors import Error
from durably.protocol.events import patterns_of
from durably.protocol.options import TriggerEvent
from durably.protocol.text import printable
from durably.run_logger import Logger
from durably.settings import is_test_run

from .config import FunctionDefinition
from .middleware import in_hook

_MAX_RUNS = 1_000
_MAX_LISTED = 5
_MAX_GROWTHS = 5
"""Calls with a growing number of unreached finished steps after which a run fails."""

_GUIDE = "Give the steps the ids that they had; a new version of the function may take a new fn_id"


running_diagnostics: ContextVar["Diagnostics | None"] = ContextVar("durably_running_diagnostics", default=None)
"""Set while a function's own code runs, and in what it calls."""


_SEND_REMEDY = (
    "Write ctx.step.send_event(id, events), which sends them once, or call client.send in the handler of a step"
)


def check_send(what: str = "sends events by client.send", remedy: str = _SEND_REMEDY) -> None:
    """Warn if a function sends events, or does ``what``, outside of its steps.

    Steps, and hooks of middleware, may do so.
    """
    diagnostics = running_diagnostics.get()
    if diagnostics is not None and in_step.get() is None and not in_hook.get():
        diagnostics.sent_directly(what, remedy)


class DivergenceLog:
    """The divergences of one function's runs that this process has seen."""

    def __init__(self, function_id: str) -> None:
        self.function_id = function_id
        self._runs: OrderedDict[str, tuple[int, int]] = OrderedDict()  # most unreached steps, and increases
        self.ids = StepIds()
        self.has_sent_directly = False
        """Whether the function was warned of ``client.send`` outside of a step."""

    def report(self, run_id: str, divergence: Divergence, logger: Logger, *, is_strict: bool) -> Error | None:
        """Log a divergence, once for each run and number of unreached steps.

        Returns the error that fails the run, if any.
        """
        text = self._describe(run_id, divergence)
        if is_strict:
            return ReplayDivergedError(f"{text} (strict_replay). {_GUIDE}")
        most, growths = self._runs.pop(run_id, (-1, 0))
        unreached = len(divergence.unreached)
        is_new = unreached > most
        if unreached > max(most, 0):
            growths += 1
        self._runs[run_id] = (max(most, unreached), growths)
        if len(self._runs) > _MAX_RUNS:
            self._runs.popitem(last=False)
        if growths >= _MAX_GROWTHS and divergence.found is not None:
            del self._runs[run_id]
            return StepIdUnstableError(
                f"{text}. This has happened in {growths} calls of the run, with more steps each time: the ids of its "
                "steps change from call to call (are they random, or made from the time?), so their handlers would run "
                f"again endlessly. {_GUIDE}"
            )
        if is_new:
            logger.warning("%s. Steps whose ids have changed run again. %s", printable(text), _GUIDE)
        return None

    def _describe(self, run_id: str, divergence: Divergence) -> str:
        where = f'function "{self.function_id}", run {run_id}'
        if not divergence.unreached:
            return f'{where}: the function reached step "{divergence.early}" earlier than when the run finished it'
        steps = self._list(divergence.unreached)
        did = f'found the new step "{divergence.found}"' if divergence.found is not None else "returned"
        return f"{where}: the function {did} without reaching steps that the run has finished: {steps}"

    def _list(self, ids: Sequence[str]) -> str:
        listed = [
            f'"{name}"'
            if (name := self.ids.names.get(hashed_id))
            else f"one unknown to this process (SHA-1 of its id: {hashed_id[:12]}…)"
            for hashed_id in ids[:_MAX_LISTED]
        ]
        more = len(ids) - len(listed)
        return ", ".join(listed) + (f" and {more} more" if more else "")


class Diagnostics(msgspec.Struct):
    """Logs what one call detects (an ``execution.Diagnostics``).

    With ``is_strict`` a run fails if its function no longer reaches its finished steps.
    """

    app: App
    divergences: DivergenceLog
    run_id: str
    is_strict: bool
    is_over: bool = False

    @property
    def function_id(self) -> str:
        return self.divergences.function_id

    def divergence(self, divergence: Divergence) -> Error | None:
        return self.divergences.report(self.run_id, divergence, self.app.logger, is_strict=self.is_strict)

    def unfinished_steps(self, step_ids: Sequence[str]) -> None:
        more = len(step_ids) - _MAX_LISTED
        self.app.logger.warning(
            'function "%s", run %s: the function returned without steps that it had given to a task or to gather, '
            "which nothing awaited: %s%s. They are not finished, and nothing waits for their results: await the task "
            "or the gather, or cancel it",
            self.function_id,
            self.run_id,
            ", ".join(f'"{printable(step_id)}"' for step_id in step_ids[:_MAX_LISTED]),
            f" and {more} more" if more > 0 else "",
        )

    def not_awaited(self, problem: str) -> None:
        self.app.logger.warning('function "%s", run %s: %s', self.function_id, self.run_id, printable(problem))

    def sent_directly(self, what: str, remedy: str) -> None:
        """Warn once for each function and process."""
        if self.is_over or self.divergences.has_sent_directly:
            return
        self.divergences.has_sent_directly = True
        self.app.logger.warning(
            'function "%s" %s outside of a step (run %s), which happens again each time that the function continues '
            "after a step or is retried. %s",
            self.function_id,
            what,
            self.run_id,
            remedy,
        )

    def abandoned_thread(self, step_id: str) -> None:
        self.app.logger.warning(
            'step "%s" of function "%s" (run %s) was cancelled while its handler ran in a thread, which continues: '
            "a thread cannot be interrupted. Its result is dropped, and if the function reaches the step again, "
            "the handler runs again",
            printable(step_id),
            self.function_id,
            self.run_id,
        )


# -- functions that are not served

_MOST_NAMED = 5

Made = FunctionDefinition[Any]

_made: dict[int, tuple[weakref.ref[Made], object]] = {}
"""Functions without a handler, each with its client's engine if that is in this process."""


def note_made(function: Made, engine: object) -> None:
    """Expect a handler for a function.

    The engine does not know a function without one, so no event starts it, and no error occurs. The process reports it
    once, when it is certain: when it sends an event, or when its app syncs. ``engine`` is the one in this process, or
    ``None``.
    """
    key = id(function)
    _made[key] = weakref.ref(function, lambda _: _made.pop(key, None)), engine


def note_served(functions: Iterable[Made]) -> None:
    for function in functions:
        _made.pop(id(function), None)


def find_unserved(*, app_id: str | None = None, engine: object = None, is_in_process: bool = False) -> list[Made]:
    """The functions without a handler: of an app, of an engine in this process, or of any engine in this process."""
    found = ((reference(), its_engine) for reference, its_engine in list(_made.values()))
    return [
        function
        for function, its_engine in found
        if function is not None
        and app_id in (None, function.opts.app_id)
        and engine in (None, its_engine)
        and not (is_in_process and its_engine is None)
    ]


def is_triggered_by(function: Made, names: Iterable[str]) -> bool:
    events = {trigger.event for trigger in function.opts.triggers if isinstance(trigger, TriggerEvent)}
    return any(not events.isdisjoint(patterns_of(name)) for name in names)


def warn_of_unserved(functions: Sequence[Made], logger: logging.Logger | logging.LoggerAdapter[Any]) -> None:
    """Warn of functions without a handler, except in a test run, which imports functions without serving them."""
    if functions and not is_test_run():
        logger.warning("some functions do not run: %s", report_unserved(functions))


def report_unserved(functions: Sequence[Made]) -> str:
    """A sentence on functions without a handler. ``find_unserved`` does not return them again."""
    note_served(functions)
    named = ", ".join(f"{function.id!r} (in {function.handler.__module__})" for function in functions[:_MOST_NAMED])
    if len(functions) > _MOST_NAMED:
        named = f"{named} and {len(functions) - _MOST_NAMED} more"
    return (
        f"this process has made the functions {named} and does not serve them: give them to serve(…), or, with "
        "durably.django in INSTALLED_APPS, import them in the durable.py of an installed app"
    )
