"""What a workflow class says of itself: its name, and what its run, signals, queries and updates take and give.

User code is only inspected, never run.
"""

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from durably.temporal.compat import HandlerDefinition, workflow_parts
from durably.temporal.errors import TemporalSettingsError


@dataclass(frozen=True)
class Parameter:
    name: str
    type: Any
    default: Any = inspect.Parameter.empty

    @property
    def is_required(self) -> bool:
        return self.default is inspect.Parameter.empty


@dataclass(frozen=True)
class Handler:
    """A run, signal, query or update method. ``doc`` is the first paragraph of its docstring."""

    name: str
    parameters: tuple[Parameter, ...]
    result: Any
    doc: str = ""


@dataclass(frozen=True)
class WorkflowDefinition:
    name: str
    doc: str
    run: Handler
    run_function: Callable[..., Any]
    signals: Mapping[str, Handler] = field(default_factory=dict)
    queries: Mapping[str, Handler] = field(default_factory=dict)
    updates: Mapping[str, Handler] = field(default_factory=dict)


def define(workflow: type | Callable[..., Any]) -> WorkflowDefinition:
    """From a workflow class, or its run method. Raises ``TemporalSettingsError`` for anything else."""
    found = workflow_parts(workflow)
    if found is None:
        raise TemporalSettingsError(f"{_named(workflow)} is no workflow: decorate its class with @workflow.defn")
    if found.name is None:
        raise TemporalSettingsError(f"{_named(workflow)} is a dynamic workflow, which has no name to be started by")
    return WorkflowDefinition(
        name=found.name,
        doc=_doc(found.cls),
        run=_handler(found.name, found.run),
        run_function=found.run,
        signals=_handlers(found.signals),
        queries=_handlers(found.queries),
        updates=_handlers(found.updates),
    )


def _handlers(definitions: Mapping[str, HandlerDefinition]) -> dict[str, Handler]:
    return {name: _handler(name, each.function, each.description) for name, each in definitions.items()}


def _handler(name: str, function: Callable[..., Any], description: str | None = None) -> Handler:
    hints = _hints(function)
    parameters = list(inspect.signature(function).parameters.values())
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise TemporalSettingsError(f"{_named(function)} takes *{parameter.name}, which cannot be exposed")
    return Handler(
        name=name,
        parameters=tuple(
            Parameter(parameter.name, hints.get(parameter.name, Any), parameter.default) for parameter in parameters[1:]
        ),
        result=hints.get("return", Any),
        doc=description or _doc(function),
    )


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError) as error:
        raise TemporalSettingsError(f"the type hints of {_named(function)} cannot be read: {error}") from error


def _doc(documented: Any) -> str:
    own = inspect.cleandoc(documented.__doc__ or "")
    return own.partition("\n\n")[0].replace("\n", " ")


def _named(documented: Any) -> str:
    return str(getattr(documented, "__qualname__", documented))
