"""Codecs: values of a type as JSON, and back; and serializers, with which a client replaces them."""

import collections.abc as abc
import contextlib
import functools
import importlib
import pathlib
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any, Literal, Protocol, TypeVar, Union, get_args, get_origin, runtime_checkable

import msgspec

from .json_values import Change, describe, describe_loss, encode_json, failing_path, find_changes, is_same, worst_change


@runtime_checkable
class Serializer(Protocol):
    """Used for the outputs of functions and steps with an ``output_type``."""

    def serialize(self, obj: object, typ: Any) -> object:
        """An object as JSON values: dict, list, str, number, bool or None."""
        ...

    def deserialize(self, obj: object, typ: Any) -> object:
        """JSON values as an object of ``typ``."""
        ...


class PydanticSerializer:
    """A serializer of the types that pydantic's ``TypeAdapter`` supports.

    Such types are models, dataclasses, lists and unions of them, among others. Raises ``ImportError`` if pydantic is
    not installed (``pip install "durably[pydantic]"``).
    """

    def __init__(self) -> None:
        try:
            import pydantic
        except ImportError as error:
            raise ImportError('PydanticSerializer needs pydantic: pip install "durably[pydantic]"') from error
        self._make_adapter: Any = pydantic.TypeAdapter
        self._cached_adapter: Any = functools.lru_cache(_MAX_CACHED)(pydantic.TypeAdapter)

    def serialize(self, obj: object, typ: Any) -> object:
        return self._adapter(typ).dump_python(obj, mode="json")

    def deserialize(self, obj: object, typ: Any) -> object:
        return self._adapter(typ).validate_python(obj)

    def _adapter(self, typ: Any) -> Any:
        try:
            return self._cached_adapter(typ)
        except TypeError:  # not hashable
            return self._make_adapter(typ)


class Unset:
    """The type of an ``output_type`` that was not given.

    The serializer does not get such outputs.
    """


_MAX_CACHED = 512
"""The size of caches by type. Types can be created at run time, so the caches are bounded."""

_PLAIN: frozenset[Any] = frozenset(
    (Any, object, None, type(None), bool, int, float, str, dict, list, typing.Never, typing.NoReturn)
)
_PLAIN_LISTS = (list, abc.Sequence, abc.MutableSequence, abc.Collection, abc.Iterable)
_PLAIN_DICTS = (dict, abc.Mapping, abc.MutableMapping)


class TypeUnsupportedError(Exception):
    """JSON cannot be converted to a type. The message states the reason."""


class ValueRefusedError(Exception):
    """A value cannot be stored, or stored JSON does not match the type.

    The message states the position and the reason.
    """


Notify = Callable[[Change], None]


class Codec(Protocol):
    """Converts values of one type. Both methods raise ``ValueRefusedError``."""

    name: str

    def encode(self, value: Any, notify: Notify) -> Any:
        """JSON values that ``decode`` converts to an equal value.

        ``notify`` gets parts whose form changes.
        """
        ...

    def decode(self, data: Any) -> Any: ...


def codec_for(typ: Any, serializer: Serializer | None = None) -> Codec | None:
    """The codec of a type; ``None`` if the type needs none.

    It needs none if its values are JSON values, or if any value belongs to it. ``serializer`` converts types that
    msgspec and pydantic do not know. Raises ``TypeUnsupportedError``, and ``NameError`` for a type with annotations
    that cannot be resolved.
    """
    try:
        found: Codec | str | None = _cached_codec(typ)
    except TypeError:  # not hashable, like Annotated with a list
        found = _find_codec(typ)
    if not isinstance(found, str):
        return found
    if serializer is not None:
        return SerializerCodec(serializer, typ)
    raise TypeUnsupportedError(found)


def checking_codec_for(typ: Any, serializer: Serializer | None = None) -> Codec | None:
    """The codec of a type for data from outside, which checks values of plain types too; ``None`` for ``Any``.

    Raises the errors of ``codec_for``.
    """
    if typ is Any or typ is object:
        return None
    return codec_for(typ, serializer) or _hashable(_plain_codec, typ)


def json_schema(typ: Any) -> dict[str, Any] | None:
    """The JSON schema of a type, which is not to be changed; ``None`` if it has none."""
    found: dict[str, Any] | None = _hashable(_schema_of, typ)
    return found


def _hashable(function: Any, typ: Any) -> Any:
    """The result of a function with a cache, also for a type that cannot be hashed."""
    try:
        return function(typ)
    except TypeError:
        return function.__wrapped__(typ)


@functools.lru_cache(128)
def _plain_codec(typ: Any) -> Codec:
    return _MsgspecCodec(typ)


@functools.lru_cache(128)
def _schema_of(typ: Any) -> dict[str, Any] | None:
    try:
        if isinstance(codec_for(typ), _PydanticCodec):
            return dict(importlib.import_module("pydantic").TypeAdapter(typ).json_schema())
        return msgspec.json.schema(typ)
    except Exception:  # pydantic's errors have no common base class
        return None


def _find_codec(typ: Any) -> Codec | str | None:
    """The codec of a type, or the reason why there is none."""
    if is_plain(typ):
        return None
    try:
        return _MsgspecCodec(typ)
    except TypeUnsupportedError as error:
        reason = str(error)
    except (TypeError, RecursionError) as error:
        reason = str(error).partition(" - type `")[0]
    try:
        return _PydanticCodec(typ)
    except ImportError:
        return f'{reason} (pip install "durably[pydantic]" for more types)'
    except Exception as error:  # pydantic's errors about schemas have no common base class
        if isinstance(error, NameError) or type(error).__name__ == "PydanticUndefinedAnnotation":
            raise NameError(str(error)) from None
        return reason


_cached_codec = functools.lru_cache(_MAX_CACHED)(_find_codec)


def type_name(typ: Any) -> str:
    return typ.__qualname__ if isinstance(typ, type) and not get_args(typ) else str(typ).replace("typing.", "")


# -- types that JSON has


def is_plain(typ: Any, seen: frozenset[int] = frozenset()) -> bool:
    """Whether values of the type are stored unchanged, without a check."""
    with contextlib.suppress(TypeError):  # not hashable
        if typ in _PLAIN:
            return True
    origin = get_origin(typ)
    if isinstance(typ, TypeVar):
        return True
    if type(typ).__name__ == "TypeAliasType":  # typing's, of Python 3.12, or typing_extensions'
        return id(typ) in seen or is_plain(typ.__value__, seen | {id(typ)})
    if (supertype := getattr(typ, "__supertype__", None)) is not None:  # NewType
        return is_plain(supertype, seen)
    if origin is None:
        return is_typed_dict(typ) and _is_plain_typed_dict(typ, seen)
    args = get_args(typ)
    if origin in (Union, types.UnionType):
        return all(is_plain(arg, seen) for arg in args)
    if origin is Literal:
        return all(type(arg) in (str, int, bool, type(None)) for arg in args)
    if origin is typing.Annotated:
        return len(args) == 2 and isinstance(args[1], str) and is_plain(args[0], seen)
    if origin in (typing.Required, typing.NotRequired, typing.Final):
        return is_plain(args[0], seen)
    if origin in _PLAIN_LISTS:
        return is_plain(args[0], seen)
    return origin in _PLAIN_DICTS and args[0] in (str, Any) and is_plain(args[1], seen)


def is_typed_dict(typ: Any) -> bool:
    return isinstance(typ, type) and issubclass(typ, dict) and hasattr(typ, "__total__")


def _is_plain_typed_dict(typ: Any, seen: frozenset[int]) -> bool:
    if id(typ) in seen:
        return True
    hints = typing.get_type_hints(typ, include_extras=True)
    return all(is_plain(hint, seen | {id(typ)}) for hint in hints.values())


# -- codecs


class _CheckedCodec(Codec):
    """Stores a value only if the decoded value is equal."""

    def encode(self, value: Any, notify: Notify) -> Any:
        data = self._to_json(value)
        try:
            returned = self.decode(data)
        except ValueRefusedError as error:
            for loss in find_changes(value, data):
                if loss.stored == "null":  # nan: our encoder has written the null that does not match
                    raise ValueRefusedError(describe_loss(loss)) from None
            found = f"; it is {describe(value)}" if str(error).endswith("`$`") else ""
            raise ValueRefusedError(f"the value does not fit {self.name}: {error}{found}") from None
        if not is_same(value, returned):
            change = worst_change(value, returned)
            if change is not None and change.is_loss:
                raise ValueRefusedError(describe_loss(change))
            if change is not None:
                notify(change)
        return data

    def _to_json(self, value: Any) -> Any:
        raise NotImplementedError


class _MsgspecCodec(_CheckedCodec):
    def __init__(self, typ: Any) -> None:
        self.name = type_name(typ)
        self._type = typ
        for cls in _classes_of(msgspec.inspect.type_info(typ)):
            if not (cls is object or (isinstance(cls, type) and issubclass(cls, pathlib.PurePath))):
                raise TypeUnsupportedError(f"JSON cannot be converted to {type_name(cls)}")
        msgspec.json.Decoder(typ)

    def _to_json(self, value: Any) -> Any:
        try:
            return msgspec.json.decode(msgspec.json.encode(value, enc_hook=_to_json_values))
        except (TypeError, ValueError, OverflowError, RecursionError, UnicodeError) as error:
            raise ValueRefusedError(f"{error} - at `{failing_path(value, enc_hook=_to_json_values)}`") from None

    def decode(self, data: Any) -> Any:
        try:
            return msgspec.convert(data, self._type, dec_hook=_from_json_values, str_keys=True)
        except (msgspec.ValidationError, RecursionError) as error:
            problem = str(error)
            raise ValueRefusedError(problem if " at `" in problem else f"{problem} - at `$`") from None


class _PydanticCodec(_CheckedCodec):
    def __init__(self, typ: Any) -> None:
        pydantic = importlib.import_module("pydantic")
        self.name = type_name(typ)
        self._adapter = pydantic.TypeAdapter(typ)
        self._error: type[Exception] = pydantic.ValidationError

    def _to_json(self, value: Any) -> Any:
        """The JSON of a value, with the fields' aliases.

        The fields' names are used if the model cannot read its own output by alias.
        """
        data = self._dump(value, by_alias=True)
        try:
            self.decode(data)
        except ValueRefusedError:
            by_name = self._dump(value, by_alias=False)
            with contextlib.suppress(ValueRefusedError):
                self.decode(by_name)
                return by_name
        return data

    def _dump(self, value: Any, *, by_alias: bool) -> Any:
        try:
            dumped = self._adapter.dump_python(value, mode="json", by_alias=by_alias, round_trip=True, warnings=False)
            # nan is a number for pydantic, and null in JSON.
            return msgspec.json.decode(encode_json(dumped))
        except Exception as error:  # a user's serializer may raise anything
            raise ValueRefusedError(f"{type(error).__name__}: {error}") from error

    def decode(self, data: Any) -> Any:
        try:
            return self._adapter.validate_json(msgspec.json.encode(data))
        except self._error as error:
            raise ValueRefusedError(_first_of(error)) from error


class SerializerCodec:
    """Leaves values to a client's serializer, and raises its errors."""

    def __init__(self, serializer: Serializer, typ: Any) -> None:
        self.name = type_name(typ)
        self._serializer = serializer
        self._type = typ

    def encode(self, value: Any, notify: Notify) -> Any:
        return self._serializer.serialize(value, self._type)

    def decode(self, data: Any) -> Any:
        try:
            return self._serializer.deserialize(data, self._type)
        except Exception as error:
            raise ValueRefusedError(_first_of(error) if hasattr(error, "errors") else str(error)) from error


def _first_of(error: Any) -> str:
    """pydantic's first error, in the form of msgspec's."""
    try:
        first = error.errors()[0]
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
        return f"{first['msg']} - at `${path}`"
    except (TypeError, LookupError):
        return str(error)


# -- types that msgspec does not convert


def _classes_of(info: Any) -> Iterator[type]:
    """The classes in a type that msgspec does not support.

    Classes that msgspec supports without their validators are included.
    """
    seen: set[int] = set()
    stack = [info]
    while stack:
        current = stack.pop()
        if isinstance(current, tuple):
            stack += current
        elif isinstance(current, msgspec.inspect.Field):
            stack.append(current.type)
        elif isinstance(current, msgspec.inspect.Type) and id(current) not in seen:
            seen.add(id(current))
            cls = getattr(current, "cls", None)
            if isinstance(current, msgspec.inspect.CustomType) or hasattr(cls, "__pydantic_validator__"):
                yield typing.cast(type, cls)
            stack += [getattr(current, name) for name in current.__struct_fields__ if name != "cls"]


def _to_json_values(value: Any) -> Any:
    """msgspec's ``enc_hook``."""
    if isinstance(value, pathlib.PurePath):
        return str(value)
    for base in (str, int, float):  # subclasses, such as Django's SafeString
        if isinstance(value, base):
            return base(value)
    if (dump := getattr(value, "model_dump", None)) is not None:
        return dump(mode="json")
    raise TypeError(f"a value of type {type(value).__name__} cannot be stored as JSON")


def _from_json_values(cls: type, data: Any) -> Any:
    """msgspec's ``dec_hook``."""
    if cls is object:
        return data
    if not isinstance(data, str):
        raise ValueError(f"Expected `str`, got `{type(data).__name__}`")
    return cls(data)
