"""The functions that apps have synced, the checks of a sync, and events that match none of them."""

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec
from yarl import URL

from durably.engine.core.expressions import Expression, compile_expression
from durably.engine.core.flow.config import Flow, check_triggers, read_flow
from durably.protocol.engine_errors import ConfigInvalidError, FunctionNotFoundError
from durably.protocol.events import patterns_of
from durably.protocol.headers import Query
from durably.protocol.limits import DEFAULT_RETRIES, MAX_FUNCTION_ID_LENGTH, MAX_RETRIES
from durably.protocol.signatures import VERSION as WHOLE_ANSWERS
from durably.protocol.sync import FunctionConfig, StepConfig, SyncRequest, decode_function
from durably.protocol.text import get_logger, redact_url, suggest

from .events import ReceivedEvent

_logger = get_logger("durably.engine")


_MOST_EXPLAINED = 10
"""The maximum number of names of one request that are explained, because the search costs time."""
_MOST_NAMES = 1000
"""The maximum number of event names: reported, searched for the nearest, and whose triggers are remembered."""
_LONGEST = 200
_DIALLED = ("ws://", "wss://")


class KnownNames(msgspec.Struct, frozen=True):
    """Names of events, and patterns of them.

    ``triggering`` trigger functions; runs have waited for ``awaited``.
    """

    triggering: Collection[str] = ()
    awaited: Collection[str] = ()
    has_functions: bool = False


class UnmatchedEvents:
    """Explains events, and logs each name once.

    ``are_stored``: the engine stores events that match no trigger and no wait.
    """

    def __init__(self, *, are_stored: bool = True) -> None:
        self._what = "stored" if are_stored else "received"
        self._said: set[str] = set()

    def explain(self, names: Iterable[str], known: KnownNames) -> dict[str, str]:
        """The reason why each event starts no run, as the end of a sentence.

        It is logged once for each name.
        """
        found = {}
        for name in [*names][:_MOST_EXPLAINED]:
            found[name] = explain_unmatched(name, known)
            if name not in self._said and len(self._said) < _MOST_NAMES:
                self._said.add(name)
                _logger.warning("the event %r was %s, but %s", name[:_LONGEST], self._what, found[name])
        return found


def explain_unmatched(name: str, known: KnownNames) -> str:
    names = sorted({*known.triggering, *known.awaited})[:_MOST_NAMES]
    if not known.has_functions:
        return "no app has synced a function with this engine yet"
    nearest = difflib.get_close_matches(name[:_LONGEST], names, n=1)
    if not nearest:
        # Names that differ only in their prefix or in case are similar too.
        same = [other for other in names if _core(other) == _core(name)]
        nearest = same[:1]
    text = "no function is triggered by it, and no run waits for it now"
    if not nearest:
        return text
    use = "one is triggered by" if nearest[0] in known.triggering else "a run has waited for"
    return f"{text}; the nearest event that {use} is {nearest[0]!r}"


def _core(name: str) -> str:
    return name.rpartition("/")[2].casefold()


class SyncedFunction(msgspec.Struct, frozen=True):
    """A function that an app has synced.

    ``is_active`` is false if the app's last sync did not include it; its runs continue. ``flow`` is its flow control;
    ``is_plain`` is true if it has none. ``max_attempts`` is that of each of its steps. ``app_version`` is the app's
    version at its last sync.
    """

    id: str
    app_id: str
    is_active: bool
    config: FunctionConfig
    flow: Flow
    is_plain: bool
    max_attempts: int
    app_version: str | None = None

    @classmethod
    def from_config(cls, config: FunctionConfig, app_id: str, app_version: str | None = None) -> "SyncedFunction":
        """Compile a synced function.

        Raises ``ConfigInvalidError``, which names the function and the option.
        """
        flow = read_flow(config)
        return cls(config.id, app_id, True, config, flow, flow.is_plain, _max_attempts(config), app_version)

    @classmethod
    def from_row(
        cls, function_id: str, app_id: str, is_active: bool, encoded: bytes, app_version: str | None = None
    ) -> "SyncedFunction":
        function = cls.from_config(decode_function(encoded), app_id, app_version)
        return msgspec.structs.replace(function, is_active=is_active)

    @property
    def signs_whole_answers(self) -> bool:
        """Whether its app announced at the sync that it signs whole answers."""
        return next(iter(self.config.steps.values())).runtime.answer_signature == WHOLE_ANSWERS

    @property
    def is_connected(self) -> bool:
        """Whether its app dials the engine, and gets its calls over this connection."""
        return next(iter(self.config.steps.values())).runtime.url.startswith(_DIALLED)

    def url_of(self, step_id: str) -> URL:
        """The URL of a call: of a discovery, or of one step."""
        return _url_of(next(iter(self.config.steps.values())).runtime.url, self.id, step_id)


def _max_attempts(config: FunctionConfig) -> int:
    retries = next((step.retries for step in config.steps.values()), None)
    attempts = DEFAULT_RETRIES if retries is None or retries.attempts is None else retries.attempts
    return min(max(attempts, 0), MAX_RETRIES) + 1


@lru_cache(maxsize=1024)
def _url_of(synced: str, function_id: str, step_id: str) -> URL:
    url = URL(synced)
    return url.update_query({Query.FUNCTION_ID: url.query.get(Query.FUNCTION_ID, function_id), Query.STEP_ID: step_id})


class _Triggered(msgspec.Struct, frozen=True):
    function: SyncedFunction
    expression: Expression | None


FOLLOWED_FOR = 3_600_000
"""Milliseconds for which a bulk cancellation also cancels runs that cancelled runs start."""
CANCELLED_IN_BULK = "the run was cancelled: a bulk cancellation applies to it"


class FunctionControls(msgspec.Struct, frozen=True):
    """A function's pause, and the bulk cancellations that apply to its new runs."""

    is_paused: bool = False
    cancellations: tuple["BulkCancellation", ...] = ()


class BulkCancellation(msgspec.Struct, frozen=True):
    """A bulk cancellation of a function's runs.

    Runs created from ``since`` until ``until`` are cancelled, if the condition is true for their event. Runs that
    descend from a cancelled run are also cancelled, for an hour after ``created_at``.
    """

    since: int | None
    until: int
    condition: Expression | None
    created_at: int

    def is_in_time(self, now: int) -> bool:
        return (self.since is None or self.since <= now) and now < self.until

    def is_followed(self, now: int) -> bool:
        return now < self.created_at + FOLLOWED_FOR

    def holds_for(self, event: Mapping[str, object], now: int) -> bool:
        return self.condition is None or self.condition.matches(event, now=now)


_NO_CONTROLS = FunctionControls()


class Registry:
    """The functions that apps have synced. Immutable.

    ``functions`` are all functions by id, active or not. ``controls`` are those of functions that have any.
    """

    @classmethod
    def from_rows(
        cls,
        rows: Iterable[tuple[str, str, bool, bytes, str | None]],
        all_controls: Mapping[str, FunctionControls] | None = None,
    ) -> "Registry":
        """Create it from stored rows.

        A row is an id, an app, whether it is active, the configuration as JSON, and the app's version.
        """
        return cls((SyncedFunction.from_row(*row) for row in rows), all_controls or {})

    def __init__(self, functions: Iterable[SyncedFunction], all_controls: Mapping[str, FunctionControls]) -> None:
        self.functions: Mapping[str, SyncedFunction] = {function.id: function for function in functions}
        self.controls = all_controls
        self._by_pattern: dict[str, list[_Triggered]] = {}
        self._by_name: dict[str, list[_Triggered]] = {}
        self._cancelling: set[str] = set()
        self.has_functions = False
        for function in self.functions.values():
            if function.is_active:
                self.has_functions = True
                self._cancelling.update(cancel.event for cancel in function.flow.options.cancel or ())
                self._index(function)

    def _index(self, function: SyncedFunction) -> None:
        for trigger in function.config.triggers:
            if not trigger.event:
                continue
            expression = compile_expression(trigger.expression) if trigger.expression else None
            self._by_pattern.setdefault(trigger.event, []).append(_Triggered(function, expression))

    def with_app(self, app_id: str, functions: Sequence[SyncedFunction]) -> "Registry":
        """This registry, after an app has synced.

        Functions of the app that the sync left out are inactive.
        """
        synced = {function.id for function in functions}
        others = [function for function in self.functions.values() if function.id not in synced]
        kept = [
            msgspec.structs.replace(function, is_active=False) if function.app_id == app_id else function
            for function in others
        ]
        return Registry([*kept, *functions], self.controls)

    def with_controls(self, function_id: str, controls: FunctionControls) -> "Registry":
        all_controls = {**self.controls, function_id: controls}
        if controls == _NO_CONTROLS:
            del all_controls[function_id]
        return Registry(self.functions.values(), all_controls)

    def find_active(self, function_id: str) -> SyncedFunction | None:
        function = self.functions.get(function_id)
        return function if function is not None and function.is_active else None

    def get_active(self, function_id: str) -> SyncedFunction:
        """The active function of this id. Raises ``FunctionNotFoundError``."""
        if (function := self.find_active(function_id)) is None:
            raise self.not_found(function_id)
        return function

    def not_found(self, function_id: str) -> FunctionNotFoundError:
        known = suggest(function_id, (function.id for function in self.functions.values() if function.is_active))
        return FunctionNotFoundError(f"no app that has synced has a function with the id {function_id!r}{known}")

    @property
    def event_names(self) -> Collection[str]:
        """The names of events, and patterns of names, that trigger functions."""
        return self._by_pattern.keys()

    def known_names(self, awaited: Collection[str] = ()) -> KnownNames:
        """Names for suggestions.

        ``awaited`` are names of events that runs have waited for.
        """
        return KnownNames(self.event_names, awaited, self.has_functions)

    def knows_event(self, name: str) -> bool:
        """Whether events of a name trigger or cancel a function.

        A trigger counts even if it has an expression, which may be false.
        """
        return name in self._cancelling or bool(self._triggers_of(name))

    def triggers_any(self, name: str) -> bool:
        """Whether events of a name trigger a function, if its conditions are true."""
        return any(pattern in self._by_pattern for pattern in patterns_of(name))

    def triggered_by(self, event: ReceivedEvent, now: int) -> list[SyncedFunction]:
        """The active functions that an event triggers.

        Each occurs once, even if several of its triggers match.
        """
        found: dict[str, SyncedFunction] = {}
        for triggered in self._triggers_of(event.name):
            if triggered.function.id not in found and (
                triggered.expression is None or triggered.expression.matches(event.fields, now=now)
            ):
                found[triggered.function.id] = triggered.function
        return list(found.values())

    def _triggers_of(self, name: str) -> list[_Triggered]:
        """The triggers that match an event's name, if their expressions are true."""
        found = self._by_name.get(name)
        if found is None:
            found = [triggered for pattern in patterns_of(name) for triggered in self._by_pattern.get(pattern, ())]
            if len(self._by_name) == _MOST_NAMES:
                self._by_name.clear()
            self._by_name[name] = found
        return found

    def refused_by_condition(self, fields: Mapping[str, Any], name: str, now: int) -> list[str]:
        """Ids of active functions with a matching trigger whose conditions are all false."""
        named = self._triggers_of(name)
        matching = {
            triggered.function.id
            for triggered in named
            if triggered.expression is None or triggered.expression.matches(fields, now=now)
        }
        return sorted({triggered.function.id for triggered in named} - matching)


_LONGEST_QUOTE = 200


def read_sync(request: SyncRequest, *, in_process: bool) -> list[SyncedFunction]:
    """The functions of an app. ``in_process``: its URLs are never called.

    Raises ``ConfigInvalidError``, which names the function and the option.
    """
    if not request.app_id.strip():
        raise ConfigInvalidError("the app has no id: set app_id where the client is made")
    functions: dict[str, SyncedFunction] = {}
    for config in request.functions:
        _check_id(config.id, request.app_id)
        if config.id in functions:
            raise ConfigInvalidError(f"app {request.app_id!r}: two functions have the id {config.id!r}")
        _check_steps(config, in_process, is_connected=request.deploy_type == "connect")
        check_triggers(config.id, config.triggers)
        functions[config.id] = SyncedFunction.from_config(config, request.app_id, request.app_version)
    return list(functions.values())


def _check_id(function_id: str, app_id: str) -> None:
    if not function_id.strip():
        raise ConfigInvalidError(f"app {app_id!r}: a function has no id")
    if len(function_id) > MAX_FUNCTION_ID_LENGTH:
        raise ConfigInvalidError(
            f"app {app_id!r}: the function id {function_id[:40]!r}… has more than {MAX_FUNCTION_ID_LENGTH} characters"
        )


def _check_steps(config: FunctionConfig, in_process: bool, *, is_connected: bool) -> None:
    if len(config.steps) != 1:
        reason = "there must be exactly one, with the URL at which to call the function"
        raise ConfigInvalidError.at(config.id, "steps", f"are {len(config.steps)}; {reason}")
    (step,) = config.steps.values()
    if not in_process:
        _check_runtime(config.id, step, is_connected=is_connected)
    attempts = step.retries.attempts if step.retries else None
    if attempts is not None and not 0 <= attempts <= MAX_RETRIES:
        raise ConfigInvalidError.at(config.id, "retries", f"is {attempts}; it must be from 0 to {MAX_RETRIES}")


def _check_runtime(function_id: str, step: StepConfig, *, is_connected: bool) -> None:
    schemes = ("ws", "wss") if is_connected else ("http", "https")
    if step.runtime.type not in ("http", "ws"):
        raise ConfigInvalidError.at(
            function_id, "runtime.type", f"is {step.runtime.type!r}; this engine calls functions over 'http' or 'ws'"
        )
    try:
        url = URL(step.runtime.url)
        is_good = url.scheme in schemes and bool(url.host) and url.port != 0
    except ValueError:  # a port that is not a number, an open bracket, an invalid name
        is_good = False
    if not is_good:
        # URLs may contain passwords.
        shown = redact_url(step.runtime.url)[:_LONGEST_QUOTE]
        raise ConfigInvalidError.at(
            function_id, "runtime.url", f"is {shown!r}; it must be an {schemes[0]} or {schemes[1]} URL"
        )
