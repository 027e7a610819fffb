"""The search attributes of an exposure: by key, so that a missing one is found at start, or made by one function."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from temporalio.common import SearchAttributeKey, SearchAttributePair, TypedSearchAttributes

from durably.temporal.errors import TemporalSettingsError

from .inputs import input_function

Make = Callable[[Any, Any], TypedSearchAttributes]
"""Of the validated input and the principal."""

Given = Callable[..., TypedSearchAttributes] | Mapping[SearchAttributeKey[Any], Callable[..., Any]]


@dataclass(frozen=True)
class AttributesByKey:
    """What a mapping of keys to functions makes; a value of ``None`` is left out."""

    functions: Mapping[SearchAttributeKey[Any], Callable[[Any, Any], Any]]

    def __call__(self, value: Any, principal: Any) -> TypedSearchAttributes:
        """Raises ``TemporalSettingsError`` for a value that is not of its key's type."""
        made = [(key, function(value, principal)) for key, function in self.functions.items()]
        return TypedSearchAttributes([_pair(key, each) for key, each in made if each is not None])


def declare_attributes(given: Given | None, title: str) -> Make | None:
    """From ``search_attributes=`` of ``expose``. Raises ``TemporalSettingsError``."""
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


def declared_keys(make: Make | None) -> tuple[SearchAttributeKey[Any], ...]:
    """The keys that are known before a workflow is started: none for a function that makes all of them."""
    return tuple(make.functions) if isinstance(make, AttributesByKey) else ()


def _pair(key: SearchAttributeKey[Any], value: Any) -> SearchAttributePair[Any]:
    expected = (int, float) if key.origin_value_type is float else key.origin_value_type
    if not isinstance(value, expected) or (isinstance(value, bool) and key.origin_value_type is not bool):
        wanted = key.origin_value_type.__name__
        raise TemporalSettingsError(
            f"search_attributes= has {type(value).__name__} for {key.name}, which takes {wanted}"
        )
    return SearchAttributePair(key, value)
