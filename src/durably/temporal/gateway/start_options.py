"""Values that a start derives from its input: id, memo, attributes, delay.

They are options of ``expose``: functions of the validated input, or of the input and the principal.
"""

import inspect
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from temporalio.common import SearchAttributeKey, SearchAttributePair, TypedSearchAttributes, WorkflowIDConflictPolicy

from durably.execution.step import is_async
from durably.temporal.declarations import check_memo
from durably.temporal.errors import TemporalSettingsError

from .handlers import fields_of
from .problems import bad_request


@dataclass(frozen=True)
class StartOptions:
    """The results of these functions for one start."""

    memo: Mapping[str, Any] = field(default_factory=dict)
    search_attributes: TypedSearchAttributes | None = None
    start_delay: timedelta | None = None


def memo_function(memo: Callable[..., Mapping[str, Any]], title: str) -> Callable[[Any, Any], Mapping[str, Any]]:
    """``memo=`` of ``expose``. It and its result raise ``TemporalSettingsError``."""
    called = input_function(memo, "memo=")
    return lambda value, principal: check_memo(called(value, principal), f"expose({title})")


def delay_function(delay: timedelta | Callable[..., timedelta]) -> Callable[[Any, Any], timedelta]:
    """``start_delay=`` as a function. Raises ``TemporalSettingsError``."""
    if isinstance(delay, timedelta):
        fixed = _check_delay(delay, "start_delay= of expose()")
        return lambda value, principal: fixed
    if not callable(delay):
        raise TemporalSettingsError(f"start_delay= of expose() is {delay!r}: give a timedelta, or a function")
    called = input_function(delay, "start_delay=")
    return lambda value, principal: _check_delay(called(value, principal), "what expose(start_delay=…) returned")


def _check_delay(delay: Any, what: str) -> timedelta:
    if not isinstance(delay, timedelta):
        raise TemporalSettingsError(f"{what} is of the type {type(delay).__name__}: it must be a timedelta")
    if delay < timedelta():
        raise TemporalSettingsError(f"{what} is negative: {delay}")
    return delay


MakeAttributes = Callable[[Any, Any], TypedSearchAttributes]

GivenAttributes = Callable[..., TypedSearchAttributes] | Mapping[SearchAttributeKey[Any], Callable[..., Any]]


@dataclass(frozen=True)
class AttributesByKey:
    """Search attributes by key. A value of ``None`` is left out."""

    functions: Mapping[SearchAttributeKey[Any], Callable[[Any, Any], Any]]

    def __call__(self, value: Any, principal: Any) -> TypedSearchAttributes:
        """Raises ``TemporalSettingsError`` for a value that does not have its key's type."""
        made = [(key, function(value, principal)) for key, function in self.functions.items()]
        return TypedSearchAttributes([_pair(key, each) for key, each in made if each is not None])


def declare_attributes(given: GivenAttributes | None, title: str) -> MakeAttributes | None:
    """``search_attributes=`` as one function. Raises ``TemporalSettingsError``."""
    if not isinstance(given, Mapping):
        return given and input_function(given, "search_attributes=")
    for key in given:
        if not isinstance(key, SearchAttributeKey):
            raise TemporalSettingsError(
                f"search_attributes= of {title} has the key {key!r}: keys are made with SearchAttributeKey, such as "
                'SearchAttributeKey.for_keyword("CustomerId")'
            )
    return AttributesByKey(
        {key: input_function(each, f"search_attributes= ({key.name})") for key, each in given.items()}
    )


def declared_keys(make: MakeAttributes | None) -> tuple[SearchAttributeKey[Any], ...]:
    """The keys that are known before a start: none for a single function."""
    return tuple(make.functions) if isinstance(make, AttributesByKey) else ()


def _pair(key: SearchAttributeKey[Any], value: Any) -> SearchAttributePair[Any]:
    expected = (int, float) if key.origin_value_type is float else key.origin_value_type
    if not isinstance(value, expected) or (isinstance(value, bool) and key.origin_value_type is not bool):
        wanted = key.origin_value_type.__name__
        raise TemporalSettingsError(
            f"search_attributes= has {type(value).__name__} for {key.name}, which takes {wanted}"
        )
    return SearchAttributePair(key, value)


def input_function(function: Callable[..., Any], what: str) -> Callable[[Any, Any], Any]:
    """A function of the input, or of input and principal, as one of both.

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
    """Whether ``input_function`` passes the principal to it."""
    return sum(p.default is p.empty for p in _parameters(function)) == 2


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return []


PRINCIPAL = "principal"


class IdTemplate:
    """``order-{order_id}``: the id of a workflow from fields of its input.

    ``{principal}`` is the owner. Different values give different ids: see ``_encode``.
    """

    def __init__(self, template: str) -> None:
        self._template = template
        try:
            parts = list(string.Formatter().parse(template))
        except ValueError as error:
            raise TemporalSettingsError(f'the id template "{template}" is not a format string: {error}') from None
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
            hint = f"; {{{PRINCIPAL}}} needs owner=, which gives its value" if unknown[0] == PRINCIPAL else ""
            raise TemporalSettingsError(
                f'the id template "{self._template}" names {unknown[0]}, which is not a field of {title}{hint}'
            )

    @property
    def has_principal(self) -> bool:
        """Whether each owner has separate ids."""
        return PRINCIPAL in self._names

    def fill(self, value: Any, principal: Any = None, owner: str | None = None) -> str:
        """The id; ``owner`` is ``{principal}``. Raises a problem for an empty field."""
        fields = {**({} if owner is None else {PRINCIPAL: owner}), **fields_of(value)}
        missing = [name for name in self._names if fields.get(name) in (None, "")]
        if missing:
            raise bad_request(f"the workflow's id is made from {missing[0]}, which must not be empty")
        texts = [field.format(**{name: fields[name]}) for field, name in zip(self._fields, self._names, strict=True)]
        return self._prefix + _encode(texts, self._separators) + self._suffix


_UUID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"


@dataclass(frozen=True)
class _Separator:
    """The string between two fields of an id. ``key`` is its first special character.

    An escaped field does not contain ``key``: the first ``key`` of an id is the end of the field.
    """

    text: str
    key: str

    @classmethod
    def checked(cls, text: str, template: str) -> "_Separator":
        """Raises ``TemporalSettingsError`` for a string that cannot separate two fields."""
        key = next((character for character in text if not character.isalnum()), None)
        if key is None:
            raise TemporalSettingsError(
                f'the id template "{template}" has two fields with {f"only {text!r}" if text else "nothing"} between '
                "them, so that different values could give one id: separate them by a character such as -"
            )
        return cls(text, key)

    def escape(self, field: str, rest: str) -> str:
        """The field, escaped. ``rest`` is the part of the id after this separator.

        A UUID is not changed. If another field looks like a UUID, its first character is escaped.
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
    """The fields of an id, joined. Different fields never give the same id.

    All fields except the last one are escaped: ``-`` becomes ``~2D`` if it is also the separator.
    """
    made = texts[-1]
    for text, separator in zip(reversed(texts[:-1]), reversed(separators), strict=True):
        made = separator.escape(text, made) + separator.text + made
    return made


def id_function(function: Callable[..., Any]) -> Callable[[Any, Any, str | None], str]:
    """A function ``id=`` with the parameters of ``IdTemplate.fill``."""
    called = input_function(function, "id=")

    def fill(value: Any, principal: Any, owner: str | None) -> str:
        made = called(value, principal)
        if not isinstance(made, str):
            raise TemporalSettingsError(f"expose(id=…) returned {type(made).__name__}: it must return a string")
        return made

    return fill


def check_attach(attach: bool, id: Any, policy: WorkflowIDConflictPolicy, title: str) -> bool:
    """Whether starts attach to running workflows. Raises ``TemporalSettingsError``."""
    uses_existing = policy is WorkflowIDConflictPolicy.USE_EXISTING
    if attach and id is None:
        raise TemporalSettingsError(
            f"{title} has attach= without id=: the ids of its workflows are random, so no id is ever in use"
        )
    if attach and not uses_existing and policy is not WorkflowIDConflictPolicy.FAIL:
        raise TemporalSettingsError(
            f"{title} has attach= and id_conflict_policy={policy.name}, which cannot be combined"
        )
    return attach or uses_existing


_MAXIMUM_ID_BYTES = 900
"""The server's own limit is 1000 by default."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029/\\?#]")


def check_id(workflow_id: str, what: str = "the workflow id") -> str:
    """An id that fits in a URL and that the server accepts. Raises a problem."""
    if not workflow_id or workflow_id in (".", ".."):
        raise bad_request(f"{what} must not be empty or dots")
    try:
        size = len(workflow_id.encode())
    except UnicodeEncodeError:
        raise bad_request(f"{what} is not valid Unicode") from None
    if size > _MAXIMUM_ID_BYTES:
        raise bad_request(f"{what} is longer than {_MAXIMUM_ID_BYTES} bytes")
    if _CONTROL.search(workflow_id):
        raise bad_request(f"{what} must not contain control characters, slashes, ? or #")
    return workflow_id
