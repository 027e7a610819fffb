"""What user code holds: the context and its steps. Groups of steps are in ``durably.groups``.

``Step`` and ``StepSync`` differ in their types alone; what each step means stands in ``durably.steps``.
"""

import datetime as dt
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, ParamSpec, TypeVar, overload

from durably.functions.config import FunctionDefinition
from durably.protocol.durations import Duration
from durably.protocol.events import Event

from . import steps
from .app import App
from .execution import AsyncCall, SyncCall
from .groups import Group, GroupSync
from .serializers import Unset
from .steps import AIAdapter, FetchResponse, Signal

T = TypeVar("T")
P = ParamSpec("P")
OnConflict = Literal["fail", "replace"]
Events = Event | Sequence[Event]


@dataclass
class Context:
    """The argument of an async function.

    ``event`` triggered the run (``events`` are all of a batch); ``attempt`` counts from 0; ``logger`` is
    silent while memos are replayed; ``request_id`` and ``job_id`` name the call to the engine.
    """

    event: Event
    events: list[Event]
    run_id: str
    attempt: int
    logger: Any
    step: "Step"
    group: Group
    request_id: str | None = None
    job_id: str | None = None


@dataclass
class ContextSync:
    """The argument of a sync function; its fields are those of ``Context``."""

    event: Event
    events: list[Event]
    run_id: str
    attempt: int
    logger: Any
    step: "StepSync"
    group: GroupSync
    request_id: str | None = None
    job_id: str | None = None


class Step:
    """The steps of an async function; each is awaited.

    ``step_id`` names the step within its function; repeated ids are numbered in the order in which they
    are made. Durations are milliseconds or ``timedelta``. A step that failed for good raises ``StepError``.
    """

    # Coroutines are typed with None, not Any: where an argument's type has an Any in it, mypy gives up choosing among
    # the overloads of asyncio.gather and group.parallel, and infers Any.

    def __init__(self, app: App, call: AsyncCall, send: Callable[[Events], Awaitable[list[str]]]) -> None:
        self._app = app
        self._call = call
        self._send = send

    @property
    def ai(self) -> "AI":
        """Steps that call AI models."""
        return AI(self._app, self._call)

    @overload
    def run(
        self, step_id: str, handler: Callable[..., Awaitable[T]], *args: Any, output_type: Any, **kwargs: Any
    ) -> Coroutine[None, None, T]: ...
    @overload
    def run(
        self, step_id: str, handler: Callable[..., T], *args: Any, output_type: Any, **kwargs: Any
    ) -> Coroutine[None, None, T]: ...
    @overload
    def run(
        self, step_id: str, handler: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[None, None, T]: ...
    @overload
    def run(
        self, step_id: str, handler: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[None, None, T]: ...
    def run(
        self, step_id: str, handler: Callable[..., Any], *args: Any, output_type: Any = Unset, **kwargs: Any
    ) -> Coroutine[None, None, Any]:
        """Run ``handler(*args, **kwargs)`` until it succeeds once, and return its result.

        The result is stored as JSON, and is an instance of the handler's return annotation. ``output_type`` replaces
        the annotation. An async handler runs on the event loop, a sync one in a worker thread.
        """
        return self._call.step(steps.run(self._app, step_id, handler, args, kwargs, output_type))

    def sleep(self, step_id: str, duration: Duration) -> Coroutine[None, None, None]:
        """Sleep for at most 366 days. The app need not run until the sleep ends."""
        return self._call.step(steps.sleep(step_id, duration))

    def sleep_until(self, step_id: str, until: dt.datetime) -> Coroutine[None, None, None]:
        """Sleep until a moment (naive ones are local time)."""
        return self._call.step(steps.sleep_until(step_id, until))

    def wait_for_event(
        self, step_id: str, *, event: str, if_exp: str | None = None, timeout: Duration
    ) -> Coroutine[None, None, Event | None]:
        """The next event of that name, or ``None`` after ``timeout``.

        In ``if_exp`` the run's own event is ``event``, the newcomer ``async``.
        """
        return self._call.step(steps.wait_for_event(step_id, event, if_exp, timeout))

    def wait_for_signal(
        self, step_id: str, *, signal: str, timeout: Duration | None = None, on_conflict: OnConflict = "fail"
    ) -> Coroutine[None, None, Signal | None]:
        """The signal once it is sent, or ``None`` after ``timeout`` (default a year).

        One run at a time waits for a signal; ``on_conflict="replace"`` takes it over from another.
        """
        return self._call.step(steps.wait_for_signal(step_id, signal, timeout, on_conflict))

    def invoke(
        self,
        step_id: str,
        *,
        function: FunctionDefinition[T],
        data: Mapping[str, Any] | None = None,
        timeout: Duration | None = None,
        user: Any = None,
        v: str | None = None,
    ) -> Coroutine[None, None, T]:
        """Run another function with ``data`` as its event's data, and return what it returned."""
        return self._call.step(steps.invoke_function(self._app, step_id, function, data, timeout, v, user))

    def invoke_by_id(
        self,
        step_id: str,
        *,
        app_id: str | None = None,
        function_id: str,
        data: Mapping[str, Any] | None = None,
        timeout: Duration | None = None,
        user: Any = None,
        v: str | None = None,
    ) -> Coroutine[None, None, Any]:
        """``invoke`` of a function that is known by its id, of this app or another."""
        return self._call.step(steps.invoke(self._app, step_id, app_id, function_id, data, timeout, v, user))

    def send_event(self, step_id: str, events: Events) -> Coroutine[None, None, list[str]]:
        """Send events once; returns their ids."""
        return self.run(step_id, self._send, events)

    def fetch(
        self,
        step_id: str,
        url: str,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: Any = None,
    ) -> Coroutine[None, None, FetchResponse]:
        """Have the engine make an HTTP request; ``body`` is text, or anything that JSON expresses."""
        return self._call.step(steps.fetch(step_id, url, method, headers, body))


class AI:
    """Steps that call AI models."""

    def __init__(self, app: App, call: AsyncCall) -> None:
        self._app = app
        self._call = call

    def infer(self, step_id: str, *, adapter: AIAdapter, body: Mapping[str, Any]) -> Coroutine[None, None, Any]:
        """Have the engine make the request to the model; returns the provider's JSON."""
        return self._call.step(steps.infer(step_id, adapter, body))

    def wrap(
        self, step_id: str, handler: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[None, None, T]:
        """``run`` for a model's own client library; engines show such steps as AI calls."""
        return self._call.step(steps.ai_wrap(self._app, step_id, handler, args, kwargs))


class StepSync:
    """The steps of a sync function; the methods are those of ``Step``."""

    def __init__(self, app: App, call: SyncCall, send: Callable[[Events], list[str]]) -> None:
        self._app = app
        self._call = call
        self._send = send

    @property
    def ai(self) -> "AISync":
        """Steps that call AI models."""
        return AISync(self._app, self._call)

    @overload
    def run(self, step_id: str, handler: Callable[..., T], *args: Any, output_type: Any, **kwargs: Any) -> T: ...
    @overload
    def run(self, step_id: str, handler: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T: ...
    def run(
        self, step_id: str, handler: Callable[..., Any], *args: Any, output_type: Any = Unset, **kwargs: Any
    ) -> Any:
        """See ``Step.run``."""
        return self._call.step(steps.run(self._app, step_id, handler, args, kwargs, output_type))

    def sleep(self, step_id: str, duration: Duration) -> None:
        """See ``Step.sleep``."""
        self._call.step(steps.sleep(step_id, duration))

    def sleep_until(self, step_id: str, until: dt.datetime) -> None:
        """See ``Step.sleep_until``."""
        self._call.step(steps.sleep_until(step_id, until))

    def wait_for_event(self, step_id: str, *, event: str, if_exp: str | None = None, timeout: Duration) -> Event | None:
        """See ``Step.wait_for_event``."""
        return self._call.step(steps.wait_for_event(step_id, event, if_exp, timeout))  # type: ignore[no-any-return]

    def wait_for_signal(
        self, step_id: str, *, signal: str, timeout: Duration | None = None, on_conflict: OnConflict = "fail"
    ) -> Signal | None:
        """See ``Step.wait_for_signal``."""
        return self._call.step(steps.wait_for_signal(step_id, signal, timeout, on_conflict))  # type: ignore[no-any-return]

    def invoke(
        self,
        step_id: str,
        *,
        function: FunctionDefinition[T],
        data: Mapping[str, Any] | None = None,
        timeout: Duration | None = None,
        user: Any = None,
        v: str | None = None,
    ) -> T:
        """See ``Step.invoke``."""
        request = steps.invoke_function(self._app, step_id, function, data, timeout, v, user)
        return self._call.step(request)  # type: ignore[no-any-return]

    def invoke_by_id(
        self,
        step_id: str,
        *,
        app_id: str | None = None,
        function_id: str,
        data: Mapping[str, Any] | None = None,
        timeout: Duration | None = None,
        user: Any = None,
        v: str | None = None,
    ) -> Any:
        """See ``Step.invoke_by_id``."""
        return self._call.step(steps.invoke(self._app, step_id, app_id, function_id, data, timeout, v, user))

    def send_event(self, step_id: str, events: Events) -> list[str]:
        """See ``Step.send_event``."""
        return self.run(step_id, self._send, events)

    def fetch(
        self,
        step_id: str,
        url: str,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: Any = None,
    ) -> FetchResponse:
        """See ``Step.fetch``."""
        return self._call.step(steps.fetch(step_id, url, method, headers, body))  # type: ignore[no-any-return]


class AISync:
    """See ``AI``."""

    def __init__(self, app: App, call: SyncCall) -> None:
        self._app = app
        self._call = call

    def infer(self, step_id: str, *, adapter: AIAdapter, body: Mapping[str, Any]) -> Any:
        """See ``AI.infer``."""
        return self._call.step(steps.infer(step_id, adapter, body))

    def wrap(self, step_id: str, handler: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """See ``AI.wrap``."""
        return self._call.step(steps.ai_wrap(self._app, step_id, handler, args, kwargs))  # type: ignore[no-any-return]
