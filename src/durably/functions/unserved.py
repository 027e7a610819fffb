"""Functions that this process has made and does not serve.

The engine does not know such a function, so no event starts it, and no error occurs. The process reports it when it is
certain: when it sends an event, or when its app syncs. Each function is reported once.
"""

import inspect
import logging
import sys
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from durably.protocol.events import patterns_of
from durably.protocol.options import TriggerEvent
from durably.settings import is_test_run

from .config import FunctionDefinition

CALLS_OF_SERVE = {
    "durably.fast_api": "durably.fast_api.serve(app, client, functions)",
    "durably.flask": "durably.flask.serve(app, client, functions)",
    "durably.tornado": "durably.tornado.serve(app, client, functions)",
    "durably.django": "urlpatterns.append(durably.django.serve(client, functions))",
    "durably.digital_ocean": "main = durably.digital_ocean.serve(client, functions)",
}
"""The call by which each adapter serves functions, for error messages."""

_MOST_NAMED = 5

Made = FunctionDefinition[Any]
Explain = Callable[[Sequence[Made]], str]
"""Returns the end of a sentence: where a framework looks for functions, and where to add these."""

_made: dict[int, tuple[weakref.ref[Made], object]] = {}
"""Functions without a handler, each with its client's engine if that is in this process."""
_explain: Explain | None = None


def note_made(function: Made, engine: object) -> None:
    """Expect a handler for a function.

    ``engine`` is the one in this process, or ``None``.
    """
    key = id(function)
    _made[key] = weakref.ref(function, lambda _: _made.pop(key, None)), engine


def note_served(functions: Iterable[Made]) -> None:
    for function in functions:
        _made.pop(id(function), None)


def set_explanation(explain: Explain) -> None:
    """Set the explanation of a framework that discovers functions."""
    global _explain
    _explain = explain


def find_unserved(*, app_id: str | None = None, engine: object = None, is_in_process: bool = False) -> list[Made]:
    """The functions without a handler.

    They are those of an app, of an engine in this process, or of any engine in this process.
    """
    if not _made:
        return []
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


def warn_of_unserved(functions: Sequence[Made], logger: "logging.Logger | logging.LoggerAdapter[Any]") -> None:
    """Warn of functions without a handler.

    Tests import functions without serving them, so a run of pytest gets no warning.
    """
    if functions and not is_test_run():
        logger.warning("some functions do not run: %s", report(functions))


def report(functions: Sequence[Made]) -> str:
    """A sentence on functions without a handler, with the remedy.

    ``find_unserved`` does not return them again.
    """
    note_served(functions)
    named = ", ".join(f"{function.id!r} ({_place_of(function)})" for function in functions[:_MOST_NAMED])
    if len(functions) > _MOST_NAMED:
        named = f"{named} and {len(functions) - _MOST_NAMED} more"
    what, them = ("the function", "it") if len(functions) == 1 else ("the functions", "them")
    explain = _explain or _explain_serve
    return f"this process has made {what} {named} and does not serve {them}: {explain(functions)}"


def _place_of(function: Made) -> str:
    code = getattr(inspect.unwrap(function.handler), "__code__", None)
    return function.handler.__module__ if code is None else f"{code.co_filename}, line {code.co_firstlineno}"


def _explain_serve(functions: Sequence[Made]) -> str:
    them = "it" if len(functions) == 1 else "them"
    used = {adapter for adapter in CALLS_OF_SERVE if adapter in sys.modules}
    in_django = "durably.django" in used or _is_django_project()
    if in_django:
        used.add("durably.django")
    calls = [CALLS_OF_SERVE[adapter] for adapter in CALLS_OF_SERVE if adapter in (used or {"durably.fast_api"})]
    advice = f"add {them} to the functions of {' or '.join(calls)}{'' if used else ', or of another framework'}"
    if not in_django:
        return advice
    setting = (
        "write INSTALLED_APPS += ['durably.django'] in the settings, which finds the functions in each app's durable.py"
    )
    return f"{setting}; or {advice}" if used == {"durably.django"} else f"{advice}; or {setting}"


def _is_django_project() -> bool:
    django = sys.modules.get("django.conf")
    return django is not None and bool(django.settings.configured)
