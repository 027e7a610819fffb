"""From JSON to the arguments of a workflow, signal, query or update, by their own type hints.

A single parameter that is an object (a model, a dataclass, a ``TypedDict``, a mapping) is the body itself; otherwise
the body is an object with a member for each parameter. What has no parameter takes no body, or an empty object.
"""

import dataclasses
import datetime as dt
import inspect
import re
import string
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, PydanticUserError, TypeAdapter, create_model

from durably.temporal.errors import TemporalSettingsError
from durably.temporal.surroundings import is_async

from .definitions import Handler, Parameter
from .problems import bad_request

_PLAIN = (str, int, float, Decimal, Enum, UUID, dt.date, dt.timedelta)
"""What a query parameter can be."""

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)', re.DOTALL)
"""A JSON string. One without an end reaches to that of the document, so that the search is linear."""

_MAXIMUM_ID_BYTES = 900
"""Of a workflow's id; the server's own limit is 1000 by default."""


class Arguments:
    """What a handler takes. ``type`` is the body's, for documents; ``is_required`` whether there must be a body."""

    def __init__(self, title: str, handler: Handler, model: Any = None) -> None:
        self._parameters = handler.parameters
        self._takes_body = len(self._parameters) == 1 and (
            _is_object(self._parameters[0].type) or (model is not None and model == self._parameters[0].type)
        )
        if model is not None:
            self._check_model(title, model)
            self.type = model
        elif self._takes_body:
            self.type = self._parameters[0].type
        else:
            self.type = _model_of(title, self._parameters)
        self.is_empty = not self._parameters and model is None
        self.is_required = any(parameter.is_required for parameter in self._parameters) or model is not None
        try:
            self._adapter: TypeAdapter[Any] = TypeAdapter(self.type)
        except PydanticUserError as error:
            raise TemporalSettingsError(f"{title} cannot be validated: {error.message}") from error

    def _check_model(self, title: str, model: Any) -> None:
        if self._takes_body and model == self._parameters[0].type:
            return
        fields = getattr(model, "model_fields", {})
        missing = [p.name for p in self._parameters if p.is_required and p.name not in fields]
        if not fields or (missing and not (len(self._parameters) == 1 and self._takes_model(model))):
            raise TemporalSettingsError(
                f"the input model of {title} is no pydantic model with a field for each parameter: "
                f"{', '.join(missing) or model}"
            )

    def _takes_model(self, model: Any) -> bool:
        hint = self._parameters[0].type
        return isinstance(hint, type) and isinstance(model, type) and issubclass(model, hint)

    @property
    def parameters(self) -> Sequence[Parameter]:
        return self._parameters

    @property
    def fit_in_url(self) -> bool:
        return all(
            isinstance(parameter.type, type) and issubclass(parameter.type, _PLAIN) for parameter in self._parameters
        )

    def parse(self, body: bytes) -> Any:
        """Raises pydantic's ``ValidationError``."""
        if not body.strip():
            if self.is_required:
                raise bad_request("a JSON body is needed")
            body = b"{}"
        return self._adapter.validate_json(body)

    def parse_strings(self, values: Mapping[str, str]) -> Any:
        """From query parameters."""
        return self._adapter.validate_strings(dict(values))

    def spread(self, value: Any) -> list[Any]:
        """The handler's arguments. A trailing parameter that was left out keeps its default."""
        if self.is_empty:
            return []
        if self._takes_body:
            return [value]
        if len(self._parameters) == 1 and self._parameters[0].name not in fields_of(value):
            return [value]
        return [getattr(value, parameter.name) for parameter in self._parameters]


def has_more_values(body: bytes, limit: int) -> bool:
    """Whether a JSON document has more elements than that. Pydantic makes an error for each wrong one before it reports
    any: a million of them take a second and 400 MB."""
    return body.count(b",") >= limit and _STRING.sub(b"", body).count(b",") >= limit


def _is_object(hint: Any) -> bool:
    if typing.get_origin(hint) is Annotated:
        return _is_object(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return all(_is_object(option) for option in typing.get_args(hint))
    hint = typing.get_origin(hint) or hint
    if not isinstance(hint, type):
        return False
    return dataclasses.is_dataclass(hint) or typing.is_typeddict(hint) or issubclass(hint, (BaseModel, Mapping))


def _model_of(title: str, parameters: Sequence[Parameter]) -> type[BaseModel]:
    fields: dict[str, Any] = {
        parameter.name: (parameter.type, Field() if parameter.is_required else parameter.default)
        for parameter in parameters
    }
    try:
        return create_model(title, __config__=ConfigDict(extra="forbid", protected_namespaces=()), **fields)
    except (NameError, PydanticUserError) as error:
        raise TemporalSettingsError(f"{title} cannot be a JSON object: {error}") from error


def model_with_start(title: str, start: "Arguments", signal: "Arguments") -> type[BaseModel]:
    """The body of signal-with-start: what the workflow takes, and what the signal takes."""
    fields: dict[str, Any] = {"input": _field_of(start), "signal": _field_of(signal)}
    config = ConfigDict(extra="forbid", validate_default=True)
    return create_model(title, __config__=config, **fields)


def batch_model(title: str, base: type[BaseModel], signal: "Arguments") -> type[BaseModel]:
    """The body of a batch of signals: that of other batches, and what the signal takes."""
    fields: dict[str, Any] = {"signal": _field_of(signal)}
    return create_model(title, __base__=base, __doc__=base.__doc__, **fields)


def _field_of(arguments: "Arguments") -> tuple[Any, Any]:
    """Arguments as a field of a body."""
    return (arguments.type, ...) if arguments.is_required else (arguments.type, Field(default_factory=dict))


def fields_of(value: Any) -> Mapping[str, Any]:
    """What an id template may name: the input's own fields."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, BaseModel):
        return {name: getattr(value, name) for name in type(value).model_fields}
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return {}


PRINCIPAL = "principal"


class IdTemplate:
    """``order-{order_id}``: a workflow's id from its input, so that one order has one workflow.

    ``{principal}`` stands for the owner's text, so that each owner has one. Different texts give different ids: see
    ``_encode``.
    """

    def __init__(self, template: str) -> None:
        self._template = template
        try:
            parts = list(string.Formatter().parse(template))
        except ValueError as error:
            raise TemporalSettingsError(f'the id template "{template}" is no format string: {error}') from None
        self._names = [name for _, name, _, _ in parts if name is not None]
        if not self._names or not all(name.isidentifier() for name in self._names):
            raise TemporalSettingsError(
                f'the id template "{template}" must name fields of the input, such as order-{{order_id}}'
            )
        self._fields = [
            "{" + name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "") + "}"
            for _, name, spec, conversion in parts
            if name is not None
        ]
        self._prefix = parts[0][0]
        self._separators = [
            _Separator.checked(literal, template) for literal, name, _, _ in parts[1:] if name is not None
        ]
        self._suffix = parts[-1][0] if parts[-1][1] is None else ""

    def check(self, names: set[str], title: str, *, has_owner: bool) -> None:
        if PRINCIPAL in self._names and PRINCIPAL in names and has_owner:
            raise TemporalSettingsError(
                f'the id template "{self._template}" names {PRINCIPAL}, which is the owner and a field of {title}: '
                "give id= as a function of the input and the principal"
            )
        known = names | {PRINCIPAL} if has_owner else names
        if unknown := [name for name in self._names if name not in known]:
            hint = f"; {{{PRINCIPAL}}} needs owner=, whose text it stands for" if unknown[0] == PRINCIPAL else ""
            raise TemporalSettingsError(
                f'the id template "{self._template}" names {unknown[0]}, no field of {title}{hint}'
            )

    @property
    def has_principal(self) -> bool:
        """Whether each owner has ids of its own."""
        return PRINCIPAL in self._names

    def fill(self, value: Any, principal: Any = None, owner: str | None = None) -> str:
        """``owner`` is the owner's text, for ``{principal}``. Raises a problem for a field that is empty."""
        fields = {**({} if owner is None else {PRINCIPAL: owner}), **fields_of(value)}
        missing = [name for name in self._names if fields.get(name) in (None, "")]
        if missing:
            raise bad_request(f"the workflow's id is made from {missing[0]}, which must not be empty")
        texts = [field.format(**{name: fields[name]}) for field, name in zip(self._fields, self._names, strict=True)]
        return self._prefix + _encode(texts, self._separators) + self._suffix


_UUID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"


@dataclass(frozen=True)
class _Separator:
    """The text between two fields of an id. ``key`` is its first character that is neither a letter nor a digit.

    A field before it does not contain ``key`` once it is escaped, so that the first ``key`` of an id ends the field.
    """

    text: str
    key: str

    @classmethod
    def checked(cls, text: str, template: str) -> "_Separator":
        """Raises ``TemporalSettingsError`` for a text that cannot separate two fields."""
        key = next((character for character in text if not character.isalnum()), None)
        if key is None:
            raise TemporalSettingsError(
                f'the id template "{template}" has two fields with {f"only {text!r}" if text else "nothing"} between '
                "them, so that different values could give one id: separate them by a character such as -"
            )
        return cls(text, key)

    def escape(self, field: str, rest: str) -> str:
        """The field as it stands before this separator and ``rest``, which is the id's remaining part.

        A UUID stays as it is. Nothing else can be taken for one: if it could, its first character is escaped too.
        """
        if re.fullmatch(_UUID, field):
            return field
        mark = "~" if self.key != "~" else "!"
        escaped = field.replace(mark, _escape(mark, mark)).replace(self.key, _escape(mark, self.key))
        if re.match(_UUID + re.escape(self.text), escaped + self.text + rest):
            escaped = _escape(mark, escaped[0]) + escaped[1:]
        return escaped


def _escape(mark: str, character: str) -> str:
    return "".join(f"{mark}{byte:02X}" for byte in character.encode())


def _encode(texts: Sequence[str], separators: Sequence[_Separator]) -> str:
    """The fields of an id, joined so that they can be told apart again: no two lists of texts give the same one.

    All fields but the last one are escaped, by ``~2D`` for a ``-`` that also separates.
    """
    made = texts[-1]
    for field, separator in zip(reversed(texts[:-1]), reversed(separators), strict=True):
        made = separator.escape(field, made) + separator.text + made
    return made


def id_function(function: Callable[..., Any]) -> Callable[[Any, Any, str | None], str]:
    """``id=`` as a function, called as a template is filled. Raises ``TemporalSettingsError``."""
    called = input_function(function, "id=")

    def fill(value: Any, principal: Any, owner: str | None) -> str:
        made = called(value, principal)
        if not isinstance(made, str):
            raise TemporalSettingsError(f"expose(id=…) returned {type(made).__name__}: it must return a text")
        return made

    return fill


def input_function(function: Callable[..., Any], what: str) -> Callable[[Any, Any], Any]:
    """A function of the input, or of the input and the principal, as one of both; its signature tells which it is.

    Parameters with defaults are not counted. Raises ``TemporalSettingsError``.
    """
    parameters = _parameters(function)
    required = [p for p in parameters if p.default is p.empty]
    if len(required) not in (1, 2) or any(p.kind not in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in required):
        raise TemporalSettingsError(
            f"{what} of expose() is a function of the input, or of the input and the principal: {function!r} takes "
            f"{', '.join(str(p) for p in parameters) or 'nothing'}"
        )
    if is_async(function):
        raise TemporalSettingsError(f"{what} of expose() is a plain function, not an asynchronous one")
    if len(required) == 2:
        return function
    return lambda value, principal: function(value)


def takes_principal(function: Callable[..., Any]) -> bool:
    """Whether ``input_function`` gives it the principal."""
    return sum(p.default is p.empty for p in _parameters(function)) == 2


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return []


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029/\\?#]")


def check_id(workflow_id: str, what: str = "the workflow id") -> str:
    """An id that fits in a URL's path and in the server. Raises a problem."""
    if not workflow_id or workflow_id in (".", ".."):
        raise bad_request(f"{what} must not be empty or dots")
    try:
        size = len(workflow_id.encode())
    except UnicodeEncodeError:
        raise bad_request(f"{what} is no valid Unicode") from None
    if size > _MAXIMUM_ID_BYTES:
        raise bad_request(f"{what} is longer than {_MAXIMUM_ID_BYTES} bytes")
    if _CONTROL.search(workflow_id):
        raise bad_request(f"{what} must not contain control characters, slashes, ? or #")
    return workflow_id
