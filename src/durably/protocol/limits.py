"""Sizes, times and counts of the protocol. The unit is bytes or seconds, as named."""

import datetime as dt

DEFAULT_RETRIES = 4
MAX_RETRIES = 20
BACKOFF_SECONDS = (15, 30, 60, 120, 300, 600, 1200, 2400, 3600, 7200)
BACKOFF_JITTER_SECONDS = 30
RETRY_AFTER_MIN = dt.timedelta(seconds=1)
RETRY_AFTER_MAX = dt.timedelta(hours=24)

MIN_PERIOD = dt.timedelta(seconds=1)
MAX_PERIOD = dt.timedelta(days=7)
"""The longest period of a debounce or a throttle."""
MAX_RATE_PERIOD = dt.timedelta(hours=24)
"""The longest period of a rate limit."""
MAX_JITTER = dt.timedelta(minutes=5)
"""The longest jitter of a cron trigger."""

MAX_EVENT_BYTES = 512 * 1024
MAX_DEV_EVENT_BYTES = 3 * 1024 * 1024
"""Development servers accept what any plan of the hosted service allows."""
MAX_EVENT_NAME_LENGTH = 512
MAX_EVENTS_PER_POST = 5000
MAX_STEP_OUTPUT_BYTES = 4 * 1024 * 1024
MAX_STEP_INPUT_BYTES = 16 * 1024
"""The largest arguments of a step that the app sends with its result."""
MAX_ERROR_CHARACTERS = 64 * 1024
"""The longest message, and the longest traceback, of an error. Of a longer one the two ends are kept."""
MAX_RUN_STATE_BYTES = 32 * 1024 * 1024
MAX_CALL_BODY_BYTES = 4 * 1024 * 1024
"""Above this an engine sends ``use_api`` instead of memos and events (spec §4.4.2)."""
MAX_REQUEST_BYTES = MAX_RUN_STATE_BYTES + 4 * 1024 * 1024
"""The largest body that either side reads; answered with 413 beyond it."""
MAX_FORM_BYTES = 10 * 1024 * 1024
"""The largest form of the dashboard. An event of ``MAX_DEV_EVENT_BYTES`` fits, with each byte as ``%xx``."""
MAX_NESTING = 200
"""Maximum depth of arrays and objects in JSON that an engine receives.

Python's own limit depends on its version and on the stack.
"""
MAX_STEPS = 1000
MAX_DEPTH = 100
"""The maximum depth of nested invocations, unless the engine is configured otherwise."""
MAX_DEFERRED = 20
MAX_DEFERRED_BYTES = 4 * 1024 * 1024
"""The number of functions that a run may defer, and the size of all their data."""
MAX_WAIT = dt.timedelta(days=366)
DEFAULT_LONG_TIMEOUT = dt.timedelta(days=365)
"""The timeout of an invoke or of a wait for a signal without one."""
MAX_CALL_DURATION = dt.timedelta(hours=2)
IDEMPOTENCY_PERIOD = dt.timedelta(hours=24)
MAX_COUNT = 1_000_000_000
"""The largest limit of a concurrency, throttle or rate limit, and the largest burst."""
MAX_BATCH_SIZE = 10_000
MAX_FUNCTION_ID_LENGTH = 512
MAX_TRIGGERS = 10
MAX_CANCELS = 5
MAX_CONCURRENCY = 2
SIGNATURE_TOLERANCE = dt.timedelta(minutes=5)
MAX_CANONICAL_BYTES = 64 * 1024
"""The largest request body whose RFC 8785 form is tried if the signature is not of its bytes. Other engines sign that
form, whatever they send. Creating it takes up to 0.2 s of CPU at this size, if the body is full of fractions.
"""
CANONICAL_CPU_SHARE = 0.05
CANONICAL_CPU_BURST = 0.25
"""The share of one CPU, and the seconds of it at once, that a process spends on RFC 8785 forms of bodies with invalid
signatures.
"""
MAX_METRIC_FUNCTIONS = 200
"""Number of functions with time series of their own in an engine's metrics. The others share one label."""
