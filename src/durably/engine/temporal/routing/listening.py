"""The waits of a run that are registered outside of it, and its events. Pure."""

from collections.abc import Sequence

from durably.engine.temporal.messages import Delivery, LeaveInput, RunInput, SignalRecord, WaitRecord

from .wait_keys import cancel_waits

Registered = WaitRecord | SignalRecord
MAX_IGNORED = 100
"""Events are delivered again soon, if at all."""


class Listening:
    """The registered waits of a run.

    An event may be delivered again after a crash. It ends no wait that began after its first delivery. No event that
    started the run ends its waits.
    """

    def __init__(self, run: RunInput) -> None:
        self._registered: dict[str, Registered] = {wait.step_id: wait for wait in cancel_waits(run)}
        self._got = [event.id for event in run.events]

    @property
    def got(self) -> tuple[str, ...]:
        """The ids of the last events that the run got."""
        return tuple(self._got[-MAX_IGNORED:])

    def begin(self, registered: Registered) -> None:
        self._registered[registered.step_id] = registered

    def note_delivered(self, delivery: Delivery) -> None:
        """Note that an event ends a wait. An exact wait was removed by the event itself."""
        self._got.append(delivery.event.id)
        registered = self._registered.get(delivery.step_id)
        if isinstance(registered, WaitRecord) and registered.is_exact:
            self.forget(delivery.step_id)

    def forget(self, step_id: str) -> None:
        """Forget a wait that was removed outside: it has timed out, or got its signal."""
        self._registered.pop(step_id, None)

    def close(self, step_id: str) -> LeaveInput | None:
        """End a wait. Returns what must be removed outside, if anything."""
        registered = self._registered.pop(step_id, None)
        return None if registered is None else _leaving([registered])

    def close_all(self) -> LeaveInput | None:
        registered = [*self._registered.values()]
        self._registered.clear()
        return _leaving(registered) if registered else None


def _leaving(registered: Sequence[Registered]) -> LeaveInput:
    return LeaveInput(
        tuple(each for each in registered if isinstance(each, WaitRecord)),
        tuple(each for each in registered if isinstance(each, SignalRecord)),
    )
