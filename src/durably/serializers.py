"""Serializers: from Python objects to JSON values and back.

They serve outputs with an ``output_type``.
"""

from typing import Any, Protocol, runtime_checkable


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
        self._make_adapter = pydantic.TypeAdapter
        self._adapters: dict[Any, Any] = {}

    def serialize(self, obj: object, typ: Any) -> object:
        return self._adapter(typ).dump_python(obj, mode="json")

    def deserialize(self, obj: object, typ: Any) -> object:
        return self._adapter(typ).validate_python(obj)

    def _adapter(self, typ: Any) -> Any:
        """The adapter of a type, from a bounded cache.

        Creating an adapter is slow. Types can be created at run time, so the cache is bounded.
        """
        try:
            adapter = self._adapters.get(typ)
        except TypeError:
            return self._make_adapter(typ)
        if adapter is None:
            if len(self._adapters) >= 512:
                self._adapters.clear()
            adapter = self._adapters[typ] = self._make_adapter(typ)
        return adapter


class Unset:
    """The type of an ``output_type`` that was not given.

    The serializer does not get such outputs.
    """
