"""Options and settings on Temporal that differ, do nothing, or are refused.

An option that cannot be applied exactly is refused by an error that names the function and the option.
``docs/reference/options-on-temporal.md`` has the table of ``SUPPORT``.
"""

from collections.abc import Iterator, Sequence
from enum import StrEnum

import msgspec

from durably.engine.core.expressions.syntax import Literal, parse
from durably.engine.core.flow.config import Flow
from durably.engine.model.functions import SyncedFunction
from durably.protocol.engine_errors import ConfigInvalidError
from durably.protocol.sync import FunctionConfig

_PRIORITY_ALONE = (
    "orders calls that wait for concurrency or throttle, and the function has neither: on Temporal, calls that wait "
    "for a worker are made in the order of the task queue. Give the function a concurrency limit, or remove the "
    "priority"
)
_TWO_SCOPES = (
    "counts calls of several functions, so the engine on Temporal can combine it with another limit or a throttle only "
    "if its key is a constant such as '\"payments\"', or the other limit has the same key. Remove one of the limits"
)
_TWO_SHARED = (
    "is a second limit that functions share: the engine on Temporal counts the calls of a function in one place, so "
    "it can share one limit with others. Remove one of the limits"
)
_CANCEL = (
    "use `temporal workflow cancel --query \"DurablyFunction = 'FUNCTION' AND ExecutionStatus = 'Running'\" "
    "--reason TEXT`"
)
_RERUN = "run each again, by `durably runs rerun RUN`"
_EVENTS = "Temporal keeps events in the runs that they start: use `durably events show ID`, or the lists of runs"
_COUNTS = "use the lists of runs, the metrics, or Temporal's own UI"
UNSUPPORTED = {
    "cancel_runs": _CANCEL,
    "count_matching_runs": _CANCEL,
    "count_runs": _COUNTS,
    "delete_cancellation": _CANCEL,
    "function_loads": _COUNTS,
    "get_cancellation": _CANCEL,
    "get_replay": _RERUN,
    "inspect_function": _COUNTS,
    "list_cancellations": _CANCEL,
    "list_events": _EVENTS,
    "list_questions": "give the run's id, or look at the page of the run",
    "list_replays": _RERUN,
    "list_runs.status.Scheduled": "select running runs",
    "list_schedules": "each is a Schedule in Temporal's own UI, and in `temporal schedule list`",
    "overview": _COUNTS,
    "publish_messages": "Temporal has no place for messages: store them, or use an engine of Durably",
    "read_messages.channels": "follow a run by its id",
    "replay_runs": _RERUN,
    "report_outbox": "read the table durably_outbox",
    "run_traces": "use OpenTelemetry",
    "search_events": _EVENTS,
    "search_runs.if_exp": _COUNTS,
    "search_runs.status.Scheduled": "select running runs",
    "skip_delays": "develop with `durably dev`, whose engine has its own timers",
}
"""The operations that Temporal's own UI and command line do, and the arguments that its index does not know.

Each has what to use in its place.
"""
MAX_PATTERNS = 16
"""Maximum number of wildcard patterns for an event name. Each pattern costs every such event a request."""
UNUSED_SETTINGS = {
    "clock": "the Temporal server has the timers",
    "durability": "the Temporal server's database decides",
    "entropy": "ids of runs are made from those of events",
    "retention": "that of Temporal's namespace decides: `temporal operator namespace update --retention`",
}
"""Settings that are not used, each with the reason."""


class Support(StrEnum):
    SAME = "same"
    DIFFERENT = "different"
    REFUSED = "refused"


class OptionSupport(msgspec.Struct, frozen=True):
    option: str
    support: Support
    reason: str = ""


SUPPORT: Sequence[OptionSupport] = (
    OptionSupport("idempotency", Support.SAME),
    OptionSupport("rate_limit", Support.SAME),
    OptionSupport("debounce", Support.SAME),
    OptionSupport(
        "batch_events",
        Support.DIFFERENT,
        "A batch closes when its events have 1 MiB, not 10 MiB, because a payload of Temporal has at most 2 MB",
    ),
    OptionSupport("singleton", Support.SAME),
    OptionSupport(
        "throttle",
        Support.DIFFERENT,
        "It is exact. Runs of one key, or of a function with other limits too, wait in one workflow, which starts a "
        "few dozen of them a second",
    ),
    OptionSupport(
        "concurrency",
        Support.DIFFERENT,
        "It is exact. Each call takes its slot from one workflow for each value of the key, or for the function if it "
        "has no key or several limits. A slot costs about four actions, and a run keeps it for calls that follow one "
        "another within a second. One queue serves some 65 calls a second on two cores. The slots of a run that is "
        "terminated in Temporal's UI are free within a minute. A call that does not reach its app keeps its slot until "
        "it does. A changed set of limits applies to runs that start after the sync; changed numbers apply to waiting "
        "calls within a minute",
    ),
    OptionSupport(
        "concurrency of scope env or account, with another limit or a throttle", Support.REFUSED, f"It {_TWO_SCOPES}"
    ),
    OptionSupport("two limits of scope env or account", Support.REFUSED, f"It {_TWO_SHARED}"),
    OptionSupport("priority", Support.SAME, "The function has concurrency or throttle"),
    OptionSupport("priority without concurrency and throttle", Support.REFUSED, f"It {_PRIORITY_ALONE}"),
    OptionSupport("timeouts", Support.SAME),
    OptionSupport(
        "cancel",
        Support.SAME,
        "Each entry is a wait for its event, which is registered before the run starts",
    ),
    OptionSupport(
        "cron triggers",
        Support.DIFFERENT,
        "Each is a Schedule of Temporal, which is paused with the function. A time that the clocks skip has no tick. "
        "If no process has workers, the last of the missed ticks is fired when one starts. Ticks that are due while "
        "the Temporal server is down are fired when it is back, if they are at most an hour old",
    ),
)


def check_support(functions: Sequence[SyncedFunction]) -> None:
    """Raises ``ConfigInvalidError``, which names the function and the option."""
    for function in functions:
        for option, problem in (*find_refusals(function.flow), *_find_long_patterns(function.config)):
            raise ConfigInvalidError.at(function.id, option, problem)


def find_refusals(flow: Flow) -> Iterator[tuple[str, str]]:
    """The options that the engine on Temporal refuses, each with the reason."""
    if flow.options.priority is not None and not flow.concurrency and flow.throttle is None:
        yield "priority", _PRIORITY_ALONE
    limits = flow.options.concurrency or []
    shared = [index for index, limit in enumerate(limits) if (limit.scope or "fn") != "fn"]
    if len(shared) > 1:
        yield f"concurrency[{shared[1]}]", _TWO_SHARED
    elif shared:
        key = limits[shared[0]].key or ""
        others = {limit.key for limit in limits if limit is not limits[shared[0]]}
        if flow.throttle is not None and flow.options.throttle is not None:
            others.add(flow.options.throttle.key)
        if not isinstance(parse(key), Literal) and others - {key}:
            yield f"concurrency[{shared[0]}]", _TWO_SCOPES


def _find_long_patterns(config: FunctionConfig) -> Iterator[tuple[str, str]]:
    for index, trigger in enumerate(config.triggers):
        depth = sum(character in "/." for character in trigger.event or "")
        if (trigger.event or "").endswith("*") and depth > MAX_PATTERNS:
            yield (
                f"triggers[{index}]",
                f"has a wildcard after {depth} slashes and dots; on Temporal at most {MAX_PATTERNS} are allowed",
            )
