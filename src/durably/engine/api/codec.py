"""Operations as HTTP requests and answers, in both directions, and ``HttpEngine``.

Pure: no I/O, no web framework. The server uses ``read_arguments`` and ``encode_result``. ``HttpEngine`` uses
``write_request`` and ``read_result``, and implements ``Engine`` from the table of operations. Its connection is TCP or
a Unix socket: ``exchange`` sends a request, with aiohttp for other processes, with urllib3 for the command line
(``cli/client.py``), where it never suspends.
"""

import datetime as dt
import functools
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, NoReturn, cast, get_args, get_origin
from urllib.parse import quote, urlencode

import msgspec

from durably.engine.api.interface import OPERATIONS as OPERATIONS
from durably.engine.api.interface import Engine
from durably.engine.api.operations import (
    Argument,
    ArgumentInvalidError,
    ArgumentLocation,
    Operation,
    read_status,
    without_none,
)
from durably.engine.model.runs import RunStatus
from durably.protocol import engine_errors as errors
from durably.protocol.call import check_nesting, decode
from durably.protocol.engine_errors import EngineError
from durably.protocol.events import Envelope, ErrorBody, Metadata

NOT_FOUND = "not_found"
"""The ``code`` of an error if the path names something that does not exist."""

_encoder = msgspec.json.Encoder()
_NULL = b"null"


class HttpRequest(msgspec.Struct, frozen=True):
    """The request of an operation. ``target`` is the path with its query."""

    method: str
    target: str
    headers: dict[str, str] = {}
    body: bytes | None = None


class HttpResponse(msgspec.Struct, frozen=True):
    status: int
    body: bytes


class EngineRefusedError(EngineError):
    """An engine refused a request. ``status`` is the HTTP status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class NotAnEngineError(EngineError):
    """The answer is not one of an engine of Durably."""


# statuses

_STATUSES: dict[type[EngineError], int] = {
    errors.JsonInvalidError: 400,
    errors.CheckpointInvalidError: 400,
    errors.ConfigInvalidError: 400,
    errors.EventInvalidError: 400,
    errors.OpInvalidError: 400,
    errors.SelectionInvalidError: 400,
    errors.StepNotFoundError: 400,
    errors.AnswerRefusedError: 422,
    errors.QuestionClosedError: 409,
    errors.CancellationNotFoundError: 404,
    errors.FunctionNotFoundError: 404,
    errors.RunNotFoundError: 404,
    errors.FunctionPausedError: 409,
    errors.StaleCallError: 409,
    errors.EventTooLargeError: 413,
    errors.TooLargeError: 413,
    errors.NotSupportedError: 501,
    errors.DatabaseLostError: 503,
    errors.DatabaseReplacedError: 503,
    errors.DatabaseUnavailableError: 503,
    errors.EngineClosedError: 503,
    errors.RunUnavailableError: 503,
    errors.ServerUnavailableError: 503,
    errors.TooManyWaitersError: 503,
}


def status_of(error: EngineError) -> int:
    """The HTTP status of an engine's error."""
    return _STATUSES.get(type(error), 500)


# arguments


def read_arguments(
    operation: Operation,
    path: Mapping[str, str],
    query: Mapping[str, str],
    headers: Mapping[str, str],
    body: bytes,
    *,
    has_limits: bool = True,
) -> dict[str, Any]:
    """The arguments of an operation that the parts of a request carry.

    Raises ``ArgumentInvalidError``, and ``msgspec.DecodeError`` for a body that is not JSON or has the wrong shape.
    """
    arguments: dict[str, Any] = {}
    for argument in operation.arguments:
        match argument.location:
            case ArgumentLocation.PATH:
                arguments[argument.name] = path[argument.name]
            case ArgumentLocation.HEADER:
                if text := headers.get(argument.wire_name):
                    arguments[argument.name] = check_header(argument.wire_name, text)
            case ArgumentLocation.QUERY:
                if text := query.get(argument.wire_name):
                    arguments[argument.name] = argument.read(text, has_limits=has_limits)
                elif argument.http_default is not None:
                    arguments[argument.name] = argument.http_default
            case ArgumentLocation.BODY:
                arguments[argument.name] = _read_whole_body(argument.type, body)
            case ArgumentLocation.FIELD:
                pass
    if fields := _fields_of(operation):
        arguments |= fields.read(body)
    return arguments


def check_header(name: str, text: str) -> str:
    """The string of a header. Raises ``ArgumentInvalidError`` if it is not UTF-8."""
    if any("\ud800" <= each <= "\udfff" for each in text):
        raise ArgumentInvalidError(f"the header {name} is not encoded in UTF-8")
    return text


def _read_whole_body(kind: Any, body: bytes) -> Any:
    if kind is bytes:
        return body
    check_nesting(body)
    if kind is msgspec.Raw:
        msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        return msgspec.Raw(body)
    return msgspec.json.decode(body, type=kind)


class _Fields:
    """The fields of a JSON body. A null field has its default."""

    def __init__(self, arguments: list[Argument], name: str) -> None:
        self._arguments = arguments
        self._may_be_empty = not any(argument.is_required for argument in arguments)
        # Times and statuses are strings, as in queries.
        forms = {dt.datetime: str, Collection[RunStatus]: list[str]}
        fields = [(argument.name, forms.get(argument.type, argument.type) | None, None) for argument in arguments]
        names = {argument.name: argument.wire_name for argument in arguments}
        self._decoder = msgspec.json.Decoder(msgspec.defstruct(name, fields, rename=names, kw_only=True))

    def read(self, body: bytes) -> dict[str, Any]:
        if self._may_be_empty and not body.strip():
            return {}
        decoded = decode(self._decoder, body)
        found: dict[str, Any] = {}
        for argument in self._arguments:
            value = getattr(decoded, argument.name)
            if value is not None and (value != "" or argument.type is Any):
                found[argument.name] = _read_field(argument, value)
            elif argument.is_required:
                raise ArgumentInvalidError(f"{argument.wire_name} is required")
        return found


def _read_field(argument: Argument, value: Any) -> Any:
    if argument.type is dt.datetime:
        return argument.read(value)
    if argument.type == Collection[RunStatus]:
        return [read_status(text) for text in value] or argument.default
    return value


@functools.cache
def _fields_of(operation: Operation) -> _Fields | None:
    fields = [argument for argument in operation.arguments if argument.location is ArgumentLocation.FIELD]
    return _Fields(fields, f"the body of {operation.name}") if fields else None


def write_request(operation: Operation, given: Mapping[str, Any], **path: str) -> HttpRequest:
    """The request for an operation.

    ``path`` has the parts of the path that are not arguments.
    """
    query: dict[str, str] = {}
    fields: dict[str, Any] = {}
    headers: dict[str, str] = {}
    body: bytes | None = None
    for argument in operation.arguments:
        value = given.get(argument.name)
        if value is None:
            continue
        match argument.location:
            case ArgumentLocation.PATH:
                path[argument.name] = argument.write(value)
            case ArgumentLocation.QUERY:
                query[argument.wire_name] = argument.write(value)
            case ArgumentLocation.HEADER:
                headers[argument.wire_name] = value
            case ArgumentLocation.BODY:
                body = bytes(value) if isinstance(value, bytes | msgspec.Raw) else _encoder.encode(value)
            case ArgumentLocation.FIELD:
                fields[argument.wire_name] = value
    for argument in operation.arguments:
        if argument.http_default is not None and argument.location is ArgumentLocation.QUERY:
            query.setdefault(argument.wire_name, argument.write(argument.default))
    if _fields_of(operation):
        body = _encoder.encode(fields)
    if body is not None:
        headers.setdefault("content-type", "application/json")
    target = operation.path.format_map({name: quote(text, safe="") for name, text in path.items()})
    return HttpRequest(operation.http_method, f"{target}?{urlencode(query)}" if query else target, headers, body)


# results


def encode_result(operation: Operation, result: Any, shown: Any) -> bytes:
    """The body of an answer.

    ``shown`` is the return value of ``operation.show``.
    """
    if operation.is_bare:
        return _encoder.encode(shown)
    metadata = Metadata(fetched_at=dt.datetime.now(dt.UTC))
    if operation.show is None:
        return _encoder.encode(Envelope(data=result, metadata=metadata))
    return _encoder.encode(_Shown(data=shown, metadata=metadata, result=result))


class _Shown(msgspec.Struct):
    """An envelope whose ``data`` is not the operation's ``result``."""

    data: Any
    metadata: Metadata
    result: Any


def read_result(operation: Operation, given: Mapping[str, Any], response: HttpResponse) -> Any:
    """The result of an operation.

    Raises the engine's error, or ``EngineRefusedError``.
    """
    if response.status >= 400:
        error = _read_error(response)
        if error.code == NOT_FOUND and operation.missing is not None:
            return [] if get_origin(operation.result) is list else None
        raise_error(error)
    try:
        return _result_reader(operation)(response.body)
    except msgspec.DecodeError:
        raise NotAnEngineError("the answer is not one of an engine of Durably") from None


@functools.cache
def _result_reader(operation: Operation) -> Callable[[bytes], Any]:
    kind = wire_type(operation.result)
    if operation.is_bare and without_none(operation.result) is msgspec.Raw:
        return msgspec.Raw
    if operation.is_bare:
        decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(kind)
        return lambda body: from_wire(decoder.decode(body))
    field = "data" if operation.show is None else "result"
    envelope = msgspec.json.Decoder(msgspec.defstruct("Answer", [(field, kind)]))
    return lambda body: from_wire(getattr(envelope.decode(body), field))


def _read_error(response: HttpResponse) -> ErrorBody:
    try:
        return msgspec.json.decode(response.body, type=ErrorBody)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise NotAnEngineError(f"the answer is not one of an engine of Durably (status {response.status})") from None


def raise_error(error: ErrorBody) -> NoReturn:
    """Raise the engine's error that an answer describes."""
    kind = getattr(errors, error.code or "", None)
    if isinstance(kind, type) and issubclass(kind, EngineError):
        raise kind(error.error)
    raise EngineRefusedError(error.error, error.status)


# views as JSON


@functools.cache
def wire_type(kind: Any) -> Any:
    """The type to decode JSON as, before ``from_wire``.

    msgspec does not decode ``Raw | None``, so views use ``Raw``.
    """
    if get_origin(kind) in (list, dict):
        *keys, item = get_args(kind)
        wire = wire_type(item)
        return kind if wire == item else cast(Any, get_origin(kind))[(*keys, wire)]
    inner = without_none(kind)
    if inner is msgspec.Raw:
        return inner
    if inner is not kind:
        wire = wire_type(inner)
        return kind if wire == inner else wire | None
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return _wire_struct(kind)
    return kind


@functools.cache
def decoder_of(kind: Any) -> msgspec.json.Decoder[Any]:
    """Decodes JSON for ``from_wire``."""
    return msgspec.json.Decoder(wire_type(kind))


def from_wire(value: Any) -> Any:
    if isinstance(value, msgspec.Raw):
        return None if bytes(value) == _NULL else value
    if isinstance(value, list):
        return [from_wire(each) for each in value]
    if isinstance(value, dict):
        return {key: from_wire(each) for key, each in value.items()}
    wire_struct = _wire_structs.get(type(value))
    if wire_struct is None:
        return value
    view, changed = wire_struct
    fields = {name: getattr(value, name) for name in value.__struct_fields__}
    return view(**{name: from_wire(each) if name in changed else each for name, each in fields.items()})


_wire_structs: dict[type[Any], tuple[type[Any], frozenset[str]]] = {}
"""The views of wire structs, and the names of the fields that differ."""


def _wire_struct(view: type[msgspec.Struct]) -> type[Any]:
    """The struct with the wire types of its fields, if any of them differs."""
    fields = msgspec.structs.fields(view)
    changed = frozenset(field.name for field in fields if wire_type(field.type) != field.type)
    if not changed:
        return view
    wire_struct = msgspec.defstruct(
        view.__name__,
        [_wire_field(field) for field in fields],
        rename={field.name: field.encode_name for field in fields},
        kw_only=True,
    )
    _wire_structs[wire_struct] = view, changed
    return wire_struct


def _wire_field(field: msgspec.structs.FieldInfo) -> Any:
    if field.type == msgspec.Raw | None:
        return field.name, msgspec.Raw, msgspec.Raw(_NULL)
    kind = wire_type(field.type)
    if field.default is not msgspec.NODEFAULT:
        return field.name, kind, field.default
    if field.default_factory is not msgspec.NODEFAULT:
        return field.name, kind, msgspec.field(default_factory=cast(Any, field.default_factory))
    return field.name, kind


# an engine over HTTP

Exchange = Callable[[HttpRequest], Awaitable[HttpResponse]]
"""Sends a request to the engine and returns its answer. Raises an error of its own if no engine answers."""

ANY_EVENT_KEY = "dev"
"""An engine in dev mode accepts any event key."""


class HttpEngine(Engine):
    """An engine that is reached over HTTP.

    ``event_key`` is a key of the engine, for ``receive_events``. Raises the engine's errors, those of ``exchange``, and
    ``EngineRefusedError`` for other refusals.
    """

    def __init__(self, exchange: Exchange, *, event_key: str = ANY_EVENT_KEY) -> None:
        self._exchange = exchange
        self._event_key = event_key

    async def execute(self, operation: Operation, arguments: Mapping[str, Any]) -> Any:
        request = write_request(operation, arguments, key=self._event_key)
        return read_result(operation, arguments, await self._exchange(request))
