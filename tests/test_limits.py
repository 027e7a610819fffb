"""docs/reference/limits.md against the code, both ways: each row's value, and a row for each limit."""

import datetime as dt
import inspect
import re
from pathlib import Path

from durably import Embedded, browser_streams, streams
from durably.client import Client
from durably.comm import requests
from durably.embedded import embedded
from durably.engine.api.http import application, syncs
from durably.engine.api.http import requests as http
from durably.engine.api.http.connections import ConnectionLimits
from durably.engine.api.interface import EventLimit, RunLimit
from durably.engine.core.expressions import syntax
from durably.engine.core.flow import admission, config
from durably.engine.model import channels, runs
from durably.engine.model.settings import EngineSettings
from durably.engine.sqlite import changes, statistics
from durably.engine.sqlite.queries import search
from durably.engine.sqlite.transactions import operations
from durably.engine.temporal import records, support, workers
from durably.engine.temporal.routing import bucket, workflows
from durably.engine.temporal.runs import contents, sizes
from durably.events import MAX_ATTEMPTS as SEND_ATTEMPTS
from durably.functions import publishing
from durably.io import http_connections, worker_threads
from durably.protocol import channels as protocol_channels
from durably.protocol import limits, stream_tokens

PAGE = (Path(__file__).parents[1] / "docs" / "reference" / "limits.md").read_text()
SETTINGS, CONNECTIONS = EngineSettings(), ConnectionLimits()


def size(count: int) -> str:
    unit, amount = ("MiB", count / 1024**2) if count >= 1024**2 else ("KiB", count / 1024)
    assert amount == int(amount)
    return f"{amount:.0f} {unit}"


def time(span: dt.timedelta | float) -> str:
    seconds = span.total_seconds() if isinstance(span, dt.timedelta) else span
    for unit, length, least in (("days", 86400, 172800), ("h", 3600, 3600), ("min", 60, 300)):
        if seconds % length == 0 and seconds >= least:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:g} s"


def default(function: object, parameter: str) -> object:
    return inspect.signature(function).parameters[parameter].default  # type: ignore[arg-type]


def maximum(kind: object) -> str:
    """The greatest number of an annotated type."""
    [constraint] = kind.__metadata__  # type: ignore[attr-defined]
    return f"{constraint.le}"


EXPECTED = {
    "size of an event, as JSON": size(SETTINGS.max_event_bytes),
    "size of an event under `durably dev`": size(limits.MAX_DEV_EVENT_BYTES),
    "name of an event": f"{limits.MAX_EVENT_NAME_LENGTH} characters",
    "events in one request": f"{limits.MAX_EVENTS_PER_POST:,}",
    "time for which an event's `id` is recognised": time(limits.IDEMPOTENCY_PERIOD),
    "attempts of `client.send`": f"{SEND_ATTEMPTS}",
    "id of a function, with the app's": f"{limits.MAX_FUNCTION_ID_LENGTH} characters",
    "triggers of a function": f"{limits.MAX_TRIGGERS}",
    "`cancel` entries": f"{limits.MAX_CANCELS}",
    "`concurrency` entries": f"{limits.MAX_CONCURRENCY}",
    "`retries`": f"{limits.MAX_RETRIES}",
    "any count in flow control": f"{limits.MAX_COUNT:,}",
    "`batch_events.max_size`": f"{limits.MAX_BATCH_SIZE:,} events",
    "bytes of a batch": size(admission.MAX_BATCH_BYTES),
    "`debounce.period`": f"{time(limits.MIN_PERIOD)} to {time(limits.MAX_PERIOD)}",
    "`throttle.period`": f"{time(limits.MIN_PERIOD)} to {time(limits.MAX_PERIOD)}",
    "`rate_limit.period`": f"{time(limits.MIN_PERIOD)} to {time(limits.MAX_RATE_PERIOD)}",
    "jitter of a cron trigger": time(limits.MAX_JITTER),
    "length of a cron trigger": f"{config.MAX_LENGTH} characters",
    "priority": f"{admission.MAX_PRIORITY_SECONDS} s either way",
    "length of an expression": f"{syntax.MAX_LENGTH:,} characters",
    "nesting of an expression": f"{syntax.MAX_DEPTH} levels",
    "nesting of arrays and objects in JSON": f"{limits.MAX_NESTING} levels",
    "steps of a run": f"{SETTINGS.max_steps:,}",
    "depth of functions that invoke each other": f"{SETTINGS.max_depth}",
    "arguments of a step that are shown": size(limits.MAX_STEP_INPUT_BYTES),
    "output of a step": size(limits.MAX_STEP_OUTPUT_BYTES),
    "all outputs of a run": size(limits.MAX_RUN_STATE_BYTES),
    "message of an error, and its traceback": f"{limits.MAX_ERROR_CHARACTERS:,} characters each",
    "memos and events in a call's body": size(limits.MAX_CALL_BODY_BYTES),
    "a sleep, or a wait": time(limits.MAX_WAIT),
    "`invoke` and `wait_for_signal` without a timeout": time(limits.DEFAULT_LONG_TIMEOUT),
    "one call of a function": time(SETTINGS.call_timeout),
    "delay that `RetryAfterError` asks for": f"{time(limits.RETRY_AFTER_MIN)} to {time(limits.RETRY_AFTER_MAX)}",
    "delay between attempts": (
        f"{time(limits.BACKOFF_SECONDS[0])} to {time(limits.BACKOFF_SECONDS[-1])}, "
        f"and up to {limits.BACKOFF_JITTER_SECONDS} s at random"
    ),
    "functions that a run defers": f"{limits.MAX_DEFERRED}",
    "data of deferred functions": size(limits.MAX_DEFERRED_BYTES),
    "metadata of a run": size(operations.MAX_METADATA_BYTES),
    "spans of all runs": size(operations.MAX_TRACES_BYTES),
    "text of `ctx.progress`": f"{runs.MAX_PROGRESS_TEXT:,} characters",
    "data of a message": f"{size(protocol_channels.MAX_MESSAGE_BYTES)} as JSON",
    "messages kept of a run or another channel": (
        f"{channels.MAX_KEPT_MESSAGES:,}, and {size(channels.MAX_KEPT_BYTES)}"
    ),
    "messages kept of all channels": size(channels.MAX_TOTAL_BYTES),
    "messages that wait for one listener": f"{streams.MAX_QUEUED:,}, and {size(streams.MAX_QUEUED_BYTES)}",
    "unsent messages of an app's process": size(publishing.MAX_PENDING_BYTES),
    "calls under way": f"{SETTINGS.max_calls}",
    "connections to the API": f"{CONNECTIONS.max_connections:,}",
    "time for the head of a request": time(CONNECTIONS.head_timeout),
    "time for a body": (
        f"{time(http._GRACE_SECONDS)}, more if {size(http._LEAST_BYTES_PER_SECOND)} arrive each second"
    ),
    "time between two requests of a connection": time(CONNECTIONS.keep_alive),
    "time in which a client takes nothing of an answer": time(CONNECTIONS.write_timeout),
    "body of a request": size(limits.MAX_REQUEST_BYTES),
    "form of the dashboard": size(limits.MAX_FORM_BYTES),
    "runs in one list": maximum(RunLimit),
    "runs that one request of a search looks at": f"{search.PORTION:,}, or {search.ID_PORTION:,} ids",
    "events in one list": maximum(EventLimit),
    "numbers of runs over time": (
        f"{statistics.DAYS_KEPT} days: by minute for {statistics.MINUTES_FOR // 60} h, by quarter of an hour for "
        f"{statistics.QUARTERS_FOR // statistics.DAY} days"
    ),
    "clients that wait for changes": f"{changes.MOST_WAITERS:,}",
    "one wait for changes": time(changes.LONGEST_WAIT_SECONDS),
    "time to connect to an app": time(SETTINGS.connect_timeout),
    "time for an app to answer a sync": time(syncs.TIMEOUT_SECONDS),
    "time for calls to finish after SIGTERM": time(SETTINGS.close_grace),
    "time for `/ready`": time(application.READY_SECONDS),
    "functions with metrics of their own": f"{limits.MAX_METRIC_FUNCTIONS}",
    "a request to the engine": time(Client(app_id="app").request_timeout),
    "connections to an engine, of a process": f"{http_connections.MAX_CONNECTIONS}",
    "age of a signature": time(limits.SIGNATURE_TOLERANCE),
    "body that is tried in canonical form": size(limits.MAX_CANONICAL_BYTES),
    "CPU for canonical forms of badly signed bodies": (
        f"{limits.CANONICAL_CPU_SHARE:.0%} of one CPU, {limits.CANONICAL_CPU_BURST:g} s at once"
    ),
    "time between two spaces of a streamed answer": time(requests.KEEP_ALIVE_SECONDS),
    "time for which a function may block the event loop": time(worker_threads.BLOCKED_SECONDS),
    "silence of a process with an engine in it": (
        f"{time(embedded._LEASE)}; {time(embedded._LEASE_WITH_LOG)} with a commit log"
    ),
    "calls that such a process takes at a time": f"{default(Embedded.__init__, 'max_calls')}",
    "open streams of a process, on an event loop": f"{browser_streams.MAX_LISTENERS:,}",
    "open streams of a process, under another WSGI server": f"{browser_streams._MAX_LISTENERS_OF_POOL}",
    "channels of a stream": f"{browser_streams.MAX_CHANNELS}",
    "duration of a stream": time(browser_streams._LONGEST_SECONDS),
    "length of a token": f"{stream_tokens.MAX_TOKEN_LENGTH:,} characters",
    "an event on Temporal": f"{sizes.MAX_EVENT_BYTES:,} bytes",
    "an output of a step or a run on Temporal": f"{sizes.MAX_OUTPUT_BYTES:,} bytes",
    "history of a run": f"{sizes.MAX_HISTORY_EVENTS:,} events, {sizes.MAX_HISTORY_BYTES:,} bytes",
    "events, signals and slots that reach a run": f"{sizes.MAX_SIGNALS:,}",
    "bytes of a batch on Temporal": size(bucket.MAX_BATCH_BYTES),
    "slashes and dots before the wildcard of a trigger": f"{support.MAX_PATTERNS}",
    "paths of waits for one event name that are indexed": f"{records.MAX_PATHS}",
    "a condition, with what it reads of the run's event": size(workflows.MAX_CONDITION_BYTES),
    "waits for one event and one value, or none": f"about {workflows.FULL_BYTES // 25:,}",
    "runs that a process keeps in memory, for each app": f"{workers.MAX_CACHED_RUNS:,}",
    "events and outputs that a process keeps for calls": size(contents.MAX_CACHE_BYTES),
}
OF_OTHERS = {
    "threads for sync functions and handlers": "CPUs plus 4, at most 32",  # ThreadPoolExecutor's default
    "open streams of a process, under gunicorn (WSGI)": "its threads less one",
}


def rows() -> list[list[str]]:
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in PAGE.splitlines()
        if line.startswith("| ") and not line.startswith("| what |")
    ]


def test_each_row_has_the_value_of_the_code() -> None:
    assert all(len(row) == 4 for row in rows())
    assert {row[0]: row[1] for row in rows()} == EXPECTED | OF_OTHERS


def test_each_limit_of_the_protocol_and_the_engine_has_a_row() -> None:
    """Finds new limits by the names that this module reads."""
    names = {name for name in vars(limits) if name.isupper()}
    source = Path(__file__).read_text()
    # Of these, the engine's settings are the values that count.
    by_settings = {"MAX_EVENT_BYTES", "MAX_STEPS", "MAX_DEPTH", "MAX_CALL_DURATION"}
    assert {name for name in names if f"limits.{name}" not in source} == by_settings
    assert f"default: {limits.DEFAULT_RETRIES}" in PAGE
    no_limits = {
        "server_kind",
        "signing_key",
        "signing_key_fallback",
        "unsigned_apps",
        "backoff",
        "unreached_backoff",
        "allow_private_addresses",
        "durability",
        "retention",
        "temporal_ui",
        "tracing",
        "log_runs",
        "clock",
        "entropy",
    }
    assert {name for name in EngineSettings.__struct_fields__ if f"SETTINGS.{name}" not in source} == no_limits
    assert all(f"CONNECTIONS.{name}" in source for name in ConnectionLimits.__struct_fields__)


def test_the_ways_to_change_a_limit_exist() -> None:
    for name in re.findall(r"EngineSettings\((\w+)=", PAGE):
        assert name in EngineSettings.__struct_fields__
    for name in re.findall(r"Embedded\((\w+)=", PAGE):
        assert name in inspect.signature(Embedded.__init__).parameters
    for name in re.findall(r"Client\((\w+)=", PAGE):
        assert name in inspect.signature(Client.__init__).parameters
