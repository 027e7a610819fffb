"""Operations of an engine, and their declarations.

Each is declared once, by ``@Operation`` above its method in ``Engine``. The declaration names the HTTP method and path,
and how the result is shown over HTTP. The arguments, their types and their defaults are those of the method. The route
(``api/http/application.py``), the client (``api/codec.py``), and calls between processes are derived from these.
``blocking`` derives a method for synchronous code.
"""

import contextlib
import datetime as dt
import functools
import inspect
import types
from collections.abc import Callable, Collection, Coroutine, Mapping
from dataclasses import KW_ONLY, dataclass, field
from enum import Enum
from typing import Annotated, Any, Concatenate, ParamSpec, Protocol, TypeVar, Union, cast, get_args, get_origin
from typing import get_type_hints as read_type_hints

import msgspec

from durably.engine.model.runs import RunStatus
from durably.protocol.durations import parse_rfc3339

Method = TypeVar("Method", bound=Callable[..., Any])
P = ParamSpec("P")
T = TypeVar("T")

REQUIRED = inspect.Parameter.empty


class ArgumentInvalidError(ValueError):
    """An argument's string has the wrong form."""


class Access(Enum):
    """Callers of an operation over HTTP.

    An engine in dev mode requires no keys: it checks hosts and origins.
    """

    OPEN = "everyone"
    EVENT_KEY = "holders of an event key, which is part of the path"
    SIGNING_KEY = "holders of the signing key"
    DEVELOPMENT = "only in dev mode"


class ArgumentLocation(Enum):
    """The part of an HTTP request that carries an argument."""

    PATH = "path"
    QUERY = "query"
    FIELD = "field of the JSON body"
    HEADER = "header"
    BODY = "whole body"


class Argument(msgspec.Struct, frozen=True):
    """An argument of an operation.

    ``type`` is without ``None``. ``default`` is ``REQUIRED`` if there is none; ``http_default`` replaces it in the HTTP
    API.
    """

    name: str
    wire_name: str
    location: ArgumentLocation
    type: Any
    default: Any
    http_default: Any = None

    @property
    def is_required(self) -> bool:
        return self.default is REQUIRED

    def read(self, text: str, *, has_limits: bool = True) -> Any:
        """The value of a query parameter or header. Raises ``ArgumentInvalidError``.

        ``has_limits``: whether numbers above the maximum are refused.
        """
        base, meta = base_of(self.type)
        if base is dt.datetime:
            # An unescaped "+" of an offset arrives as a space in a query string.
            if time := parse_rfc3339(text.replace(" ", "+")):
                return time
            raise ArgumentInvalidError(
                f"{self.wire_name} must be an RFC 3339 time like 2026-01-31T12:00:00Z, not {text!r}"
            )
        if base is RunStatus:
            return read_status(text)
        if base is int:
            most = 2**53 if not has_limits or meta is None or meta.le is None else int(meta.le)
            if text.isascii() and text.isdigit() and len(text) <= len(str(most)) and 1 <= int(text) <= most:
                return int(text)
            raise ArgumentInvalidError(f"{self.wire_name} must be a whole number from 1 to {most}, not {text!r}")
        if base is float:
            maximum = 2.0**53 if meta is None or meta.le is None else float(meta.le)
            with contextlib.suppress(ValueError):
                if 0 <= (number := float(text)) <= maximum:
                    return number
            raise ArgumentInvalidError(f"{self.wire_name} must be a number from 0 to {maximum:g}, not {text!r}")
        if base is bool:
            if text in ("true", "false"):
                return text == "true"
            raise ArgumentInvalidError(f"{self.wire_name} must be true or false, not {text!r}")
        if meta is not None and meta.pattern is not None:
            try:
                return msgspec.convert(text, Annotated[str, meta]).upper()
            except msgspec.ValidationError:
                raise ArgumentInvalidError(f"{self.wire_name} must be {meta.description}, not {text!r}") from None
        return text

    def write(self, value: Any) -> str:
        """The string of a value in a path, query or header."""
        if isinstance(value, bool):
            return "true" if value else "false"
        return value.isoformat() if isinstance(value, dt.datetime) else str(value)


def read_status(text: str) -> RunStatus:
    """The run status of a name in any case. Raises ``ArgumentInvalidError``."""
    try:
        return RunStatus.read(text)
    except ValueError as error:
        raise ArgumentInvalidError(str(error)) from None


def base_of(annotation: Any) -> tuple[Any, msgspec.Meta | None]:
    """The type without its limits, and the limits that the HTTP API has."""
    if get_origin(annotation) is Annotated:
        base, *metas = get_args(annotation)
        return base, next((meta for meta in metas if isinstance(meta, msgspec.Meta)), None)
    return annotation, None


def without_none(annotation: Any) -> Any:
    """The type ``T`` of ``T | None``."""
    if get_origin(annotation) not in (Union, types.UnionType):
        return annotation
    others = [each for each in get_args(annotation) if each is not type(None)]
    if len(others) == len(get_args(annotation)):
        return annotation
    return others[0] if len(others) == 1 else Union[tuple(others)]  # noqa: UP007 (of values)


class Show(Protocol):
    """Converts the result, given the engine and the operation's arguments."""

    def __call__(self, engine: Any, arguments: Mapping[str, Any], result: Any, /) -> Coroutine[Any, Any, Any]: ...


@dataclass(eq=False, repr=False)
class Operation:
    """Declares a method of ``Engine`` as an operation, as its decorator.

    - ``route``: The HTTP method and the path, such as ``"GET /v1/runs/{run_id}"``. Arguments that are not in the path
      are query parameters of GET and DELETE, and fields of the JSON body of POST.
    - ``is_repeatable``: Executing it twice has the effect of executing it once.
    - ``repeatable_with``: Arguments with any of which it is repeatable.
    - ``missing``: The error's message if the result is ``None``, or if it is empty and ``exists`` returns false. The
      HTTP status is then 404.
    - ``show``: Makes the ``data`` of the HTTP answer if it differs from the result.
    - ``is_bare``: The answer is the result alone, without the envelope of the ``/v1`` API.
    - ``names``: Other names of arguments over HTTP.
    - ``headers``: Arguments that are headers.
    - ``body``: The argument that is the whole body.
    - ``http_defaults``: Defaults of arguments over HTTP.
    - ``is_derived``: The method has a body, over other methods of the engine. Engines need not override it.
    """

    route: str
    _: KW_ONLY
    access: Access = Access.SIGNING_KEY
    is_repeatable: bool = True
    repeatable_with: Collection[str] = ()
    missing: str | None = None
    exists: Show | None = None
    show: Show | None = None
    is_bare: bool = False
    names: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str | None = None
    http_defaults: Mapping[str, Any] = field(default_factory=dict)
    is_derived: bool = False
    method: Callable[..., Any] = field(init=False)

    def __call__(self, method: Method) -> Method:
        self.method = method

        @functools.wraps(method)
        async def execute(engine: Any, *arguments: Any, **options: Any) -> Any:
            return await engine.execute(self, self.bind(arguments, options))

        execute.operation = self  # type: ignore[attr-defined]
        return cast(Method, execute)

    @property
    def name(self) -> str:
        return self.method.__name__

    @property
    def http_method(self) -> str:
        return self.route.partition(" ")[0]

    @property
    def path(self) -> str:
        return self.route.partition(" ")[2]

    def __repr__(self) -> str:
        return f"Operation({self.name!r})"

    def may_repeat(self, arguments: Mapping[str, Any]) -> bool:
        """Whether executing it twice with these arguments has the effect of executing it once."""
        return self.is_repeatable or not arguments.keys().isdisjoint(self.repeatable_with)

    @functools.cached_property
    def _signature(self) -> inspect.Signature:
        return inspect.signature(self.method)

    def bind(self, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments by name, without those that have their default.

        Raises ``TypeError`` as a call does.
        """
        bound = self._signature.bind(None, *arguments, **options).arguments
        parameters = self._signature.parameters
        return {name: value for name, value in list(bound.items())[1:] if value is not parameters[name].default}

    async def execute(self, engine: Any, arguments: Mapping[str, Any]) -> Any:
        """Call the method of an engine."""
        return await getattr(engine, self.name)(**arguments)

    async def is_missing(self, engine: Any, arguments: Mapping[str, Any], result: Any) -> bool:
        """Whether an empty result means that the path names nothing that exists."""
        if self.missing is None or result is None or self.exists is None:
            return self.missing is not None and result is None
        return not await self.exists(engine, arguments, result)

    @functools.cached_property
    def has_body(self) -> bool:
        return any(argument.location in (ArgumentLocation.FIELD, ArgumentLocation.BODY) for argument in self.arguments)

    @functools.cached_property
    def arguments(self) -> tuple[Argument, ...]:
        hints = read_type_hints(self.method, include_extras=True)
        parameters = list(self._signature.parameters.values())[1:]
        return tuple(
            Argument(
                parameter.name,
                self.names.get(parameter.name) or self.headers.get(parameter.name) or parameter.name,
                self._location_of(parameter.name),
                without_none(hints[parameter.name]),
                parameter.default,
                self.http_defaults.get(parameter.name),
            )
            for parameter in parameters
        )

    @functools.cached_property
    def result(self) -> Any:
        """The type of the result."""
        return read_type_hints(self.method, include_extras=True)["return"]

    def _location_of(self, name: str) -> ArgumentLocation:
        if "{" + name + "}" in self.path:
            return ArgumentLocation.PATH
        if name in self.headers:
            return ArgumentLocation.HEADER
        if name == self.body:
            return ArgumentLocation.BODY
        return ArgumentLocation.FIELD if self.http_method in ("POST", "PUT") else ArgumentLocation.QUERY


def operations_of(engine: type[Any]) -> dict[str, Operation]:
    """The operations that a class declares, by name."""
    found = (getattr(getattr(engine, name), "operation", None) for name in dir(engine))
    return {each.name: each for each in found if isinstance(each, Operation)}


class Blocking(Protocol):
    """A class with methods for synchronous code."""

    def block(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Block this thread until the coroutine has ended. Returns its result."""
        ...


Owner = TypeVar("Owner", bound=Blocking)


def blocking(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Any, P], T]:
    """The same method for synchronous code.

    For example ``get_run_sync = blocking(Engine.get_run)``. The class has the method ``block``. A subclass may override
    the asynchronous method: its override is called.
    """
    name = method.__name__

    @functools.wraps(method)
    def block(self: Any, /, *arguments: P.args, **options: P.kwargs) -> T:
        return cast(T, self.block(getattr(self, name)(*arguments, **options)))

    block.__name__ = f"{name}_sync"
    block.__doc__ = f"``{name}`` for synchronous code."
    return block
