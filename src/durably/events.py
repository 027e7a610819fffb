"""Events, and event types: a name bound to a pydantic model of the data."""

from collections.abc import Mapping
from typing import Any, Generic, Protocol, Self, TypeVar

from durably.protocol.events import Event

_ENGINES_FIELD = "_inngest"

__all__ = ["Event", "EventType", "as_data"]


class Model(Protocol):
    """What is needed of a pydantic model; Durably itself does not import pydantic."""

    def model_dump(self, *, mode: str) -> dict[str, Any]: ...

    @classmethod
    def model_validate(cls, obj: Any) -> Self: ...


M = TypeVar("M", bound=Model)


class EventType(Generic[M]):
    """An event name with the pydantic model of its data, so that senders and functions agree on it.

    ``placed = EventType("shop/order.placed", Order)``, then ``placed(Order(...))`` makes an ``Event``,
    ``placed.trigger()`` a trigger, and ``placed.data(ctx.event)`` the validated model.
    """

    def __init__(self, name: str, model: type[M]) -> None:
        self.name = name
        self.model = model

    def __call__(self, data: M, *, id: str = "", ts: int = 0, user: Any = None, v: str | None = None) -> Event:
        return Event(name=self.name, data=as_data(data) or {}, id=id, ts=ts, user=user, v=v)

    def data(self, event: Event) -> M:
        """The event's data as the model; raises pydantic's ``ValidationError``.

        The engine's own field in the data of some events (of an invoked function's, for example) is left out.
        """
        return self.model.model_validate({name: value for name, value in event.data.items() if name != _ENGINES_FIELD})

    def trigger(self, if_exp: str | None = None, *, expression: str | None = None) -> Any:
        """The trigger; ``expression`` is another name of ``if_exp``."""
        from durably.protocol.options import TriggerEvent

        return TriggerEvent(event=self.name, if_exp=if_exp, expression=expression)


def as_data(data: Mapping[str, Any] | Model | None) -> Mapping[str, Any] | None:
    """Event data as a mapping; pydantic models are dumped in JSON mode. Raises ``TypeError`` for anything else."""
    if data is None or isinstance(data, Mapping):
        return data
    if isinstance(data, Event) or not hasattr(data, "model_dump"):
        raise TypeError(f"data is a dictionary or a pydantic model, not {type(data).__name__}")
    return data.model_dump(mode="json")
