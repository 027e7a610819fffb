"""The handlers of a workflow class, and their arguments from JSON.

Handlers are the run method, signals, queries and updates. Their code is inspected, never run. A single parameter that
is an object (a model, dataclass, ``TypedDict`` or mapping) is the JSON body itself. Otherwise the body is an object
with a member for each parameter. A handler without parameters takes no body or an empty object.
"""

import dataclasses
import datetime as dt
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Protocol, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, PydanticUserError, TypeAdapter, ValidationError, create_model
from pydantic_core import to_json

from durably.temporal.compat import HandlerDefinition, workflow_parts
from durably.temporal.errors import TemporalSettingsError

from .problems import bad_request

T = TypeVar("T")
_MAY_BE_INFINITE = re.compile(rb"nan|inf|e\+?\d{3}|\d{300}", re.IGNORECASE)


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
    """A handler. ``doc`` is the first paragraph of its docstring."""

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
    """The definition of a class or run method. Raises ``TemporalSettingsError``."""
    found = workflow_parts(workflow)
    if found is None:
        raise TemporalSettingsError(f"{_named(workflow)} is not a workflow: decorate its class with @workflow.defn")
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


_PLAIN = (str, int, float, Decimal, Enum, UUID, dt.date, dt.timedelta)
"""Types that a query parameter can have."""


class Arguments:
    """The arguments of a handler. ``type`` is the type of the JSON body."""

    def __init__(self, title: str, handler: Handler, model: Any = None) -> None:
        self.parameters = handler.parameters
        self.members: tuple[str, ...] = ()
        self._takes_body = len(self.parameters) == 1 and (
            _is_object(self.parameters[0].type) or (model is not None and model == self.parameters[0].type)
        )
        if model is not None:
            self._check_model(title, model)
            self.type = model
        elif self._takes_body:
            self.type = self.parameters[0].type
        else:
            self.type = _model_of(title, self.parameters)
        self.is_empty = not self.parameters and model is None
        self.is_required = any(parameter.is_required for parameter in self.parameters) or model is not None
        try:
            self._adapter: TypeAdapter[Any] = TypeAdapter(self.type)
        except PydanticUserError as error:
            raise TemporalSettingsError(f"{title} cannot be validated: {error.message}") from error

    def _check_model(self, title: str, model: Any) -> None:
        if self._takes_body and model == self.parameters[0].type:
            return
        fields = getattr(model, "model_fields", {})
        missing = [p.name for p in self.parameters if p.is_required and p.name not in fields]
        if not fields or (missing and not (len(self.parameters) == 1 and self._takes_model(model))):
            raise TemporalSettingsError(
                f"the input model of {title} is not a pydantic model with a field for each parameter: "
                f"{', '.join(missing) or model}"
            )

    def _takes_model(self, model: Any) -> bool:
        hint = self.parameters[0].type
        return isinstance(hint, type) and isinstance(model, type) and issubclass(model, hint)

    @property
    def fit_in_url(self) -> bool:
        """Whether query parameters can have their types."""
        return all(
            isinstance(parameter.type, type) and issubclass(parameter.type, _PLAIN) for parameter in self.parameters
        )

    def parse(self, body: bytes) -> Any:
        """The value of a JSON body. Raises a problem, and pydantic's ``ValidationError``."""
        if not body.strip():
            if self.is_required:
                raise bad_request("a JSON body is needed")
            body = b"{}"
        return _finite(self._adapter.validate_json, body)

    def parse_strings(self, values: Mapping[str, str]) -> Any:
        """The value of query parameters. Raises pydantic's ``ValidationError``."""
        return self._adapter.validate_strings(dict(values))

    def spread(self, value: Any) -> list[Any]:
        """The handler's arguments. A parameter that the body leaves out has its default."""
        if self.is_empty:
            return []
        if self._takes_body:
            return [value]
        if len(self.parameters) == 1 and self.parameters[0].name not in fields_of(value):
            return [value]
        return [getattr(value, parameter.name) for parameter in self.parameters]


def _finite(validate: Callable[[bytes], T], body: bytes) -> T:
    """The validated body, whose numbers a workflow can read again.

    Pydantic writes ``inf`` and ``nan`` as ``null``, unless a model specifies otherwise. A workflow whose input cannot
    be read repeats its first task forever.
    """
    value = validate(body)
    if _MAY_BE_INFINITE.search(body) and _has_infinite(value):
        try:
            validate(to_json(value))
        except ValidationError:
            raise bad_request(
                "the input has a number that is infinite or not a number (NaN), which cannot be stored"
            ) from None
    return value


def _has_infinite(value: Any) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, list | tuple | set | frozenset):
        return any(map(_has_infinite, value))
    return any(map(_has_infinite, fields_of(value).values()))


def fields_of(value: Any) -> Mapping[str, Any]:
    """The fields of an input by name: those of a mapping, model or dataclass."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, BaseModel):
        return {name: getattr(value, name) for name in type(value).model_fields}
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return {}


def model_with_start(title: str, start: Arguments, signal: Arguments) -> type[BaseModel]:
    """The body of signal-with-start: the inputs of workflow and signal."""
    fields: dict[str, Any] = {"input": _field_of(start), "signal": _field_of(signal)}
    config = ConfigDict(extra="forbid", validate_default=True)
    return create_model(title, __config__=config, **fields)


def batch_model(title: str, base: type[BaseModel], signal: Arguments) -> type[BaseModel]:
    """The body of a batch of signals, with the input of the signal."""
    fields: dict[str, Any] = {"signal": _field_of(signal)}
    return create_model(title, __base__=base, __doc__=base.__doc__, **fields)


def _field_of(arguments: Arguments) -> tuple[Any, Any]:
    """Arguments as a field of a body."""
    return (arguments.type, ...) if arguments.is_required else (arguments.type, Field(default_factory=dict))


def _model_of(title: str, parameters: Sequence[Parameter]) -> type[BaseModel]:
    fields: dict[str, Any] = {
        parameter.name: (parameter.type, Field() if parameter.is_required else parameter.default)
        for parameter in parameters
    }
    try:
        return create_model(title, __config__=ConfigDict(extra="forbid", protected_namespaces=()), **fields)
    except (NameError, PydanticUserError) as error:
        raise TemporalSettingsError(f"{title} cannot be a JSON object: {error}") from error


def _is_object(hint: Any) -> bool:
    if typing.get_origin(hint) is Annotated:
        return _is_object(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return all(_is_object(option) for option in typing.get_args(hint))
    hint = typing.get_origin(hint) or hint
    if not isinstance(hint, type):
        return False
    return dataclasses.is_dataclass(hint) or typing.is_typeddict(hint) or issubclass(hint, (BaseModel, Mapping))


class Body(Protocol):
    """The JSON body of an endpoint."""

    @property
    def type(self) -> Any: ...

    @property
    def is_empty(self) -> bool:
        """Whether the endpoint takes no body, or an empty object."""
        ...

    @property
    def is_required(self) -> bool: ...

    @property
    def members(self) -> tuple[str, ...]:
        """The fields of a body that the gateway defines."""
        ...

    def parse(self, body: bytes) -> Any:
        """The validated value. Raises a problem, and pydantic's ``ValidationError``."""
        ...


@dataclass(frozen=True)
class ModelBody:
    """A body with a pydantic model. ``members`` is empty if it has users' fields."""

    type: type[BaseModel]
    members: tuple[str, ...] = ()
    is_empty: bool = False

    @property
    def is_required(self) -> bool:
        return any(each.is_required() for each in self.type.model_fields.values())

    def parse(self, body: bytes) -> BaseModel:
        return _finite(self.type.model_validate_json, body.strip() or b"{}")
