"""From JSON to the arguments of a workflow's handlers, and to its id.

Handlers are the run method, signals, queries and updates. Their code is inspected, never run. A single parameter that
is an object (a model, dataclass, ``TypedDict`` or mapping) is the JSON body itself. Otherwise the body is an object
with a member for each parameter. A handler without parameters takes no body or an empty object.
"""

import dataclasses
import datetime as dt
import inspect
import math
import re
import string
import types
import typing
from collections.abc import Callable, Mapping
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, PydanticUserError, TypeAdapter, ValidationError, create_model
from pydantic_core import to_json

from durably.temporal.errors import TemporalSettingsError

from .problems import bad_request

_MAY_BE_INFINITE = re.compile(rb"nan|inf|e\+?\d{3}|\d{300}", re.IGNORECASE)


class JsonBody:
    """The JSON body of an endpoint: its type, and whether it is required or always empty."""

    def __init__(self, type: Any, *, is_required: bool, is_empty: bool = False) -> None:
        self.type, self.is_required, self.is_empty = type, is_required, is_empty
        self._adapter: TypeAdapter[Any] = TypeAdapter(type)

    @classmethod
    def of_model(cls, model: type[BaseModel]) -> "JsonBody":
        return cls(model, is_required=any(each.is_required() for each in model.model_fields.values()))

    def parse(self, body: bytes) -> Any:
        """The validated value, whose numbers a workflow can read again.

        Pydantic writes ``inf`` and ``nan`` as ``null``, unless a model specifies otherwise. A workflow whose input
        cannot be read repeats its first task forever. Raises a problem, and pydantic's ``ValidationError``.
        """
        if not body.strip():
            if self.is_required:
                raise bad_request("a JSON body is needed")
            body = b"{}"
        value = self._adapter.validate_json(body)
        if _MAY_BE_INFINITE.search(body) and _has_infinite(value):
            try:
                self._adapter.validate_json(to_json(value))
            except ValidationError:
                raise bad_request(
                    "the input has a number that is infinite or not a number (NaN), which cannot be stored"
                ) from None
        return value

    def parse_strings(self, values: Mapping[str, str]) -> Any:
        """The value of query parameters. Raises pydantic's ``ValidationError``."""
        return self._adapter.validate_strings(dict(values))


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


def field_names(type: Any) -> set[str]:
    """The names of the fields of inputs of a type."""
    fields = getattr(type, "model_fields", None) or getattr(type, "__dataclass_fields__", None)
    return set(fields or getattr(type, "__annotations__", {}))


_PLAIN = (str, int, float, Decimal, Enum, UUID, dt.date, dt.timedelta)
"""Types that a query parameter can have."""


class Handler:
    """A run method, signal, query or update that is exposed.

    ``doc`` is the first paragraph of its docstring. ``title`` names the type of the body, and ``model`` replaces it.
    Raises ``TemporalSettingsError``.
    """

    def __init__(
        self, name: str, function: Callable[..., Any], *, title: str, doc: str | None = None, model: Any = None
    ) -> None:
        shown = getattr(function, "__qualname__", str(function))
        try:
            hints = typing.get_type_hints(function, include_extras=True)
        except (NameError, TypeError) as error:
            raise TemporalSettingsError(f"the type hints of {shown} cannot be read: {error}") from error
        parameters = list(inspect.signature(function).parameters.values())[1:]
        for each in parameters:
            if each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD):
                raise TemporalSettingsError(f"{shown} takes *{each.name}, which cannot be exposed")
        self.name = name
        self.doc = doc or first_paragraph(function)
        self.parameters = [each.replace(annotation=hints.get(each.name, Any)) for each in parameters]
        self.result = hints.get("return", Any)
        only = self.parameters[0].annotation if len(parameters) == 1 else None
        fields: dict[str, Any] = {
            each.name: (each.annotation, Field() if each.default is each.empty else each.default)
            for each in self.parameters
        }
        config = ConfigDict(extra="forbid", protected_namespaces=())
        self._takes_body = only is not None and (_is_object(only) or model == only)
        if model is not None and not (self._takes_body and model == only):
            self._check_model(title, model)
        try:
            self.body = JsonBody(
                model or (only if self._takes_body else create_model(title, __config__=config, **fields)),
                is_required=model is not None or any(each.default is each.empty for each in parameters),
                is_empty=not parameters and model is None,
            )
        except (NameError, PydanticUserError) as error:
            raise TemporalSettingsError(f"{title} cannot be a JSON object: {error}") from error

    def _check_model(self, title: str, model: Any) -> None:
        fields = getattr(model, "model_fields", {})
        missing = [each.name for each in self.parameters if each.default is each.empty and each.name not in fields]
        hint = self.parameters[0].annotation if len(self.parameters) == 1 else None
        is_subclass = isinstance(hint, type) and isinstance(model, type) and issubclass(model, hint)
        if not fields or (missing and not is_subclass):
            raise TemporalSettingsError(
                f"the input model of {title} is not a pydantic model with a field for each parameter: "
                f"{', '.join(missing) or model}"
            )

    @property
    def fits_in_url(self) -> bool:
        """Whether query parameters can have the types of its parameters."""
        hints = [each.annotation for each in self.parameters]
        return all(isinstance(hint, type) and issubclass(hint, _PLAIN) for hint in hints)

    @property
    def as_field(self) -> tuple[Any, Any]:
        """Its body as a field of another body."""
        return (self.body.type, ... if self.body.is_required else Field(default_factory=dict))

    def spread(self, value: Any) -> list[Any]:
        """The arguments of a parsed body. A parameter that the body leaves out has its default."""
        if self.body.is_empty:
            return []
        if self._takes_body or (len(self.parameters) == 1 and self.parameters[0].name not in fields_of(value)):
            return [value]
        return [getattr(value, each.name) for each in self.parameters]


def first_paragraph(documented: Any) -> str:
    return inspect.cleandoc(documented.__doc__ or "").partition("\n\n")[0].replace("\n", " ")


def _is_object(hint: Any) -> bool:
    if typing.get_origin(hint) is Annotated:
        return _is_object(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return all(_is_object(option) for option in typing.get_args(hint))
    hint = typing.get_origin(hint) or hint
    if not isinstance(hint, type):
        return False
    return dataclasses.is_dataclass(hint) or typing.is_typeddict(hint) or issubclass(hint, (BaseModel, Mapping))


PRINCIPAL = "principal"


class IdTemplate:
    """``order-{order_id}``: the id of a workflow from fields of its input. ``{principal}`` is the owner.

    Different values give different ids. In all fields except the last one, ``~`` and the first special character of
    the text that follows are escaped: with ``{shop}-{order}``, ``-`` in the shop becomes ``~2D``. UUIDs are not. Raises
    ``TemporalSettingsError`` for a name that is not in ``names``, and for fields without a separator.
    """

    def __init__(self, template: str, names: set[str], title: str, *, has_owner: bool) -> None:
        what = f'the id template "{template}"'
        try:
            parts = list(string.Formatter().parse(template))
        except ValueError as error:
            raise TemporalSettingsError(f"{what} is not a format string: {error}") from None
        fields = [(name, spec, conversion) for _, name, spec, conversion in parts if name is not None]
        self._names = [name for name, _, _ in fields]
        if not fields or not all(name.isidentifier() for name in self._names):
            raise TemporalSettingsError(f"{what} must name fields of the input, such as order-{{order_id}}")
        if has_owner and PRINCIPAL in names and PRINCIPAL in self._names:
            raise TemporalSettingsError(
                f"{what} names {PRINCIPAL}, which is the owner and a field of {title}: give id= as a function of the "
                "input and the principal"
            )
        for name in self._names:
            if name not in names and not (has_owner and name == PRINCIPAL):
                hint = f"; {{{PRINCIPAL}}} needs owner=, which gives its value" if name == PRINCIPAL else ""
                raise TemporalSettingsError(f"{what} names {name}, which is not a field of {title}{hint}")
        self._fields = [
            "{" + name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "") + "}"
            for name, spec, conversion in fields
        ]
        self._prefix, self._suffix = parts[0][0], parts[-1][0] if parts[-1][1] is None else ""
        self._separators = [literal for literal, name, _, _ in parts[1:] if name is not None]
        for text in self._separators:
            if text.isalnum() or not text:
                raise TemporalSettingsError(
                    f"{what} has two fields with {f'only {text!r}' if text else 'nothing'} between them, so that "
                    "different values could give one id: separate them by a character such as -"
                )

    @property
    def has_principal(self) -> bool:
        """Whether each owner has separate ids."""
        return PRINCIPAL in self._names

    def fill(self, value: Any, principal: Any = None, owner: str | None = None) -> str:
        """The id; ``owner`` is ``{principal}``. Raises a problem for an empty field."""
        fields = {**({} if owner is None else {PRINCIPAL: owner}), **fields_of(value)}
        texts = []
        for name, field in zip(self._names, self._fields, strict=True):
            if fields.get(name) in (None, ""):
                raise bad_request(f"the workflow's id is made from {name}, which must not be empty")
            texts.append(field.format(**{name: fields[name]}))
        made = texts.pop()
        for text, separator in zip(reversed(texts), reversed(self._separators), strict=True):
            made = _escape(text, separator, made) + separator + made
        return self._prefix + made + self._suffix


_UUID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"


def _escape(text: str, separator: str, rest: str) -> str:
    """A field without the first special character of the separator after it, or a UUID as it is.

    ``rest`` is the part of the id after the separator. Another field that looks like a UUID there is escaped too.
    """
    if re.fullmatch(_UUID, text):
        return text
    key = next(character for character in separator if not character.isalnum())
    mark = "~" if key != "~" else "!"
    escaped = text
    for character in (mark, key):
        escaped = escaped.replace(character, _escaped(mark, character))
    if re.match(_UUID + re.escape(separator), escaped + separator + rest):
        escaped = _escaped(mark, escaped[0]) + escaped[1:]
    return escaped


def _escaped(mark: str, character: str) -> str:
    return "".join(f"{mark}{byte:02X}" for byte in character.encode())


_MAXIMUM_ID_BYTES = 900
"""The server's own limit is 1000 by default."""

_UNFIT_FOR_IDS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029/\\?#]")


def check_id(id: str, what: str = "the workflow id") -> str:
    """An id that fits in a URL and that the server accepts. Raises a problem."""
    if not id or id in (".", ".."):
        raise bad_request(f"{what} must not be empty or dots")
    try:
        size = len(id.encode())
    except UnicodeEncodeError:
        raise bad_request(f"{what} is not valid Unicode") from None
    if size > _MAXIMUM_ID_BYTES:
        raise bad_request(f"{what} is longer than {_MAXIMUM_ID_BYTES} bytes")
    if _UNFIT_FOR_IDS.search(id):
        raise bad_request(f"{what} must not contain control characters, slashes, ? or #")
    return id
