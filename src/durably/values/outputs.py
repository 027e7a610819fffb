"""Outputs of steps and functions: their JSON (spec §5.3.1), and their types.

An annotation or ``output_type`` defines the type of an output.
"""

import asyncio
import collections.abc as abc
import contextlib
import functools
import inspect
import re
import typing
from collections.abc import Callable, Sequence
from functools import partial
from types import FunctionType, MethodType, SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

import msgspec

from durably.errors import FunctionConfigInvalidError, MemoInvalidError, OutputUnserializableError
from durably.execution import FoundSteps, Raised, Returned, StepReport
from durably.protocol.call import check_nesting
from durably.protocol.errors import describe_error, is_retriable
from durably.protocol.limits import MAX_NESTING
from durably.protocol.opcodes import FUNCTION_END_ID, Op, Opcode
from durably.protocol.text import get_logger
from durably.values.codecs import Serializer, Unset

from .codecs import Codec, SerializerCodec, TypeUnsupportedError, ValueRefusedError, codec_for
from .json_values import Change, encode_checked

_logger = get_logger("durably.types")
_AWAITABLES = (abc.Awaitable, abc.Coroutine, asyncio.Future, asyncio.Task)
_PLAIN = (None, "None", bool, int, float, str, "bool", "int", "float", "str", dict, "dict", list, "list", Any)

_known: dict[Any, Codec | None] = dict.fromkeys(_PLAIN)
"""Codecs by annotation, for annotations with the same meaning in every module. Read for each step of each call."""
_MAX_KNOWN = 512
_declared: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()  # types by handler; Unset if there is none
_warned: dict[tuple[str, str, str], None] = {}
_MAX_WARNED = 4096


# -- JSON


def encode_output(value: Any, source: str) -> bytes:
    """JSON of the result of a function or step.

    Raises ``OutputUnserializableError``, which names the source.
    """
    return to_json(value, source)[0]


def to_json(value: Any, source: str, function_id: str = "") -> tuple[bytes, Any]:
    """JSON of the output of a function or step, and the value decoded from it.

    Warns if the decoded value has another form; ``function_id`` names the step's function in the warning. Raises
    ``OutputUnserializableError`` naming the source, and the position.
    """
    if value is msgspec.UNSET:
        return b"null", None
    data, returned, is_same = b"", None, False
    with contextlib.suppress(Exception):  # a user's __eq__ may raise anything; numpy's truth value is ambiguous
        data = msgspec.json.encode(value)
        check_nesting(data, MAX_NESTING)  # reported below
        returned = msgspec.json.decode(data)
        is_same = bool(returned == value)
    if is_same:
        return data, returned
    try:
        data, returned, change = encode_checked(value)
    except ValueError as error:
        raise OutputUnserializableError(
            f"{source} returned unserializable data: {error}. Return JSON values, annotate the handler with its return "
            "type, or set output_type"
        ) from None
    if change is not None:
        _warn_of_change(f'{source} of function "{function_id}"' if function_id else source, change)
    return data, returned


def check_found(reports: Sequence[StepReport]) -> None:
    """Check the data of steps that the engine executes, such as invocations.

    Raises ``OutputUnserializableError`` naming the step.
    """
    for report in reports:
        if report.op.opts and report.step is not None and not report.step.request.is_run:
            try:
                encode_checked(report.op.opts)
            except ValueError as error:
                raise OutputUnserializableError(
                    f'step "{report.step_id}" was given data that JSON cannot express: {error}'
                ) from None


def finish(report: StepReport) -> None:
    """Put the result or the error of the step into its op, once."""
    op = report.op
    if report.error is None and op.op == Opcode.STEP_RUN and op.data is msgspec.UNSET:
        try:
            op.data = msgspec.Raw(to_json(report.output, f'step "{op.display_name}"', report.function_id)[0])
        except OutputUnserializableError as error:
            report.error = error
    if report.error is not None and op.error is None:
        if op.op == Opcode.STEP_RUN or (op.op == Opcode.STEP_ERROR and not is_retriable(report.error)):
            op.op = Opcode.STEP_ERROR if is_retriable(report.error) else Opcode.STEP_FAILED
        op.error = describe_error(report.error)


def to_end_op(returned: Returned) -> FoundSteps | Raised:
    """The function's end as an op, which can follow others in one answer."""
    try:
        data = msgspec.Raw(encode_output(returned.value, returned.source))
    except OutputUnserializableError as error:
        return Raised(error)
    return FoundSteps([StepReport(Op(id=FUNCTION_END_ID, op=Opcode.RUN_COMPLETE, data=data))])


def encode_as(codec: Codec, source: str, value: Any) -> Any:
    """Raises ``OutputUnserializableError`` with the source (``step "id"``)."""
    try:
        return codec.encode(value, partial(_warn_of_change, source))
    except ValueRefusedError as error:
        raise OutputUnserializableError(f"{source} returned unserializable data: {error}") from error.__cause__


def decode_as(codec: Codec, source: str, data: Any) -> Any:
    """Raises ``MemoInvalidError`` with the source."""
    try:
        return codec.decode(data)
    except ValueRefusedError as error:
        raise MemoInvalidError(
            f"{source}: the stored result does not fit {codec.name}: {error}. The type changed after the step ran: "
            "accept the old form too (a default for a new field), or give the step another id, which runs it again"
        ) from error.__cause__


def _warn_of_change(source: str, change: Change) -> None:
    """Warn, once for each position, that the output comes back in another form."""
    if _is_first_warning(source, change.path, change.found):
        _logger.warning(
            "%s returned %s at `%s`, which is stored as %s and comes back as that; annotate the handler with its "
            "return type, or give the step output_type=…, to get the value as it was, or return JSON values",
            source,
            change.found,
            change.path,
            change.stored,
        )


def _warn_of_unresolved(handler: Callable[..., Any], error: Exception) -> None:
    if _is_first_warning(_name(handler), "annotation", str(error)):
        _logger.warning(
            "%s: the return annotation cannot be resolved (%s), so the output is plain JSON values; import the type at "
            "run time, not under TYPE_CHECKING, or give output_type=…",
            _name(handler),
            error,
        )


def _is_first_warning(source: str, path: str, found: str) -> bool:
    key = (source, re.sub(r"\[\d+\]", "[]", path), found)
    if key in _warned:
        return False
    if len(_warned) >= _MAX_WARNED:
        _warned.clear()
    _warned[key] = None
    return True


def _name(handler: Any) -> str:
    module, name = getattr(handler, "__module__", None), getattr(handler, "__qualname__", type(handler).__qualname__)
    return f"{module}.{name}" if module else str(name)


# -- types


def handler_codec(
    step_id: str, handler: Callable[..., Any], args: Sequence[Any], output_type: Any, serializer: Serializer | None
) -> Codec | None:
    """The codec of a step's output; ``None`` for plain JSON values.

    Raises ``OutputUnserializableError`` for an annotation to which JSON cannot be converted, before the handler runs,
    and ``FunctionConfigInvalidError`` for such an ``output_type``.
    """
    if output_type is not Unset:
        return _explicit(f'step "{step_id}": output_type', output_type, serializer)
    if type(handler) is FunctionType and handler is not asyncio.to_thread:
        try:
            return _known[handler.__annotations__.get("return")]
        except (KeyError, TypeError):
            pass
    typ = declared_type(handler, args)
    if typ is Unset:
        return None
    try:
        codec = codec_for(typ, serializer)
        if not isinstance(codec, SerializerCodec):
            _remember(handler, typ, codec)
        return codec
    except NameError as error:
        _warn_of_unresolved(handler, error)
        return None
    except TypeUnsupportedError as error:
        raise OutputUnserializableError(
            f'step "{step_id}" would return unserializable data: the return annotation of {_name(handler)} cannot be '
            f"used: {error}. Annotate a type that JSON can be converted to, or give the step output_type=… (typing.Any "
            "for plain JSON values)"
        ) from None


def _remember(handler: Any, typ: Any, codec: Codec | None) -> None:
    """Cache the codec, unless the annotation has names in quotes.

    The meaning of such names depends on the module.
    """
    annotation = getattr(handler, "__annotations__", {}).get("return")
    if not isinstance(annotation, str) and annotation == typ:
        if len(_known) >= _MAX_KNOWN:
            _known.clear()
            _known.update(dict.fromkeys(_PLAIN))
        with contextlib.suppress(TypeError):  # not hashable
            _known[annotation] = codec


def function_codec(
    source: str, handler: Callable[..., Any], output_type: Any, serializer: Serializer | None
) -> Codec | None:
    """The codec of a function's output.

    An unusable annotation is reported, and ignored.
    """
    if output_type is not Unset:
        return _explicit(f"{source}: output_type", output_type, serializer)
    typ = declared_type(handler, ())
    try:
        return None if typ is Unset else codec_for(typ, serializer)
    except NameError as error:
        _warn_of_unresolved(handler, error)
    except TypeUnsupportedError as error:
        if _is_first_warning(source, "annotation", ""):
            _logger.warning("%s: the return annotation is ignored: %s", source, error)
    return None


def check_output_type(source: str, output_type: Any, serializer: Serializer | None) -> None:
    """Check the ``output_type`` of a function when it is created.

    Names in the type may be defined later. Raises ``FunctionConfigInvalidError``.
    """
    if output_type is Unset or serializer is not None:
        return
    try:
        codec_for(output_type)
    except TypeUnsupportedError as error:
        raise _unusable(f"{source}: output_type", error) from None
    except NameError:
        return


def _unusable(what: str, error: Exception) -> FunctionConfigInvalidError:
    return FunctionConfigInvalidError(f"{what} cannot be used: {error}. Or give the client a serializer")


def _explicit(what: str, output_type: Any, serializer: Serializer | None) -> Codec | None:
    if serializer is not None:
        return SerializerCodec(serializer, output_type)
    try:
        return codec_for(output_type)
    except (TypeUnsupportedError, NameError) as error:
        raise _unusable(what, error) from None


def declared_type(handler: Any, args: Sequence[Any] = ()) -> Any:
    """The type of a handler's awaited result; ``Unset`` if it declares none."""
    if handler is asyncio.to_thread and args:
        handler = args[0]
    while isinstance(handler, functools.partial | MethodType):
        handler = handler.func if isinstance(handler, functools.partial) else handler.__func__
    if isinstance(handler, type):
        return handler
    if not hasattr(handler, "__annotations__") and hasattr(handler, "__wrapped__"):
        handler = handler.__wrapped__  # such as a function in ``functools.lru_cache``, since Python 3.14
    if not hasattr(handler, "__annotations__"):
        handler = getattr(type(handler), "__call__", handler)  # noqa: B004 (its annotations, not whether it is callable)
    annotations = getattr(handler, "__annotations__", None)
    if not isinstance(annotations, dict) or "return" not in annotations:
        return Unset
    try:
        return _declared[handler]
    except (KeyError, TypeError):
        pass
    try:
        typ = _awaited(_resolve(handler, annotations["return"]))
    except Exception as error:  # evaluating the user's text may raise anything
        _warn_of_unresolved(handler, error)
        typ = Unset
    with contextlib.suppress(TypeError):  # without weak references
        _declared[handler] = typ
    return typ


def _resolve(handler: Any, annotation: Any) -> Any:
    """Resolve the return annotation only.

    Other annotations may use names that are imported only for type checkers.
    """
    function = inspect.unwrap(handler)
    names = dict(getattr(function, "__globals__", {}))
    code, closure = getattr(function, "__code__", None), getattr(function, "__closure__", None)
    for name, cell in zip(code.co_freevars if code else (), closure or (), strict=True):
        with contextlib.suppress(ValueError):  # not yet assigned
            names[name] = cell.cell_contents
    names |= {parameter.__name__: parameter for parameter in getattr(function, "__type_params__", ())}
    shim = SimpleNamespace(__annotations__={"return": annotation})
    return typing.get_type_hints(shim, names, include_extras=True)["return"]


def _awaited(typ: Any) -> Any:
    """``T`` of ``Awaitable[T]``.

    A handler may be a sync function that returns a coroutine.
    """
    if typing.get_origin(typ) in _AWAITABLES:
        return typing.get_args(typ)[-1]
    return Unset if typ in _AWAITABLES else typ
