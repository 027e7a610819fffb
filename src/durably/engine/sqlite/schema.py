"""The database's schema, and the scripts that bring a database to it.

Times are milliseconds since the epoch. ``key`` columns are rowids, for joins; ``id`` columns are public.
"""

_TABLES = """
-- With a commit log: database_id tells databases apart, and log_sequence and log_token are those of the last entry that
-- this file contains. The token is empty in a database with which a log began.
CREATE TABLE owner (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    epoch INTEGER NOT NULL,
    database_id TEXT,
    log_sequence INTEGER NOT NULL DEFAULT 0,
    log_token BLOB
);
INSERT INTO owner (id, epoch) VALUES (1, 0);

CREATE TABLE apps (
    id TEXT PRIMARY KEY,
    url TEXT NOT NULL,
    sdk TEXT,
    framework TEXT,
    version TEXT,
    synced_at INTEGER NOT NULL
) WITHOUT ROWID;
-- The last sync of each app: JSON in the form of SyncReport.
CREATE TABLE app_syncs (app_id TEXT PRIMARY KEY, sync BLOB NOT NULL) WITHOUT ROWID;

-- A function that its app no longer syncs is kept, inactive: it may have runs that have not ended.
CREATE TABLE functions (
    id TEXT PRIMARY KEY,
    app_id TEXT NOT NULL,
    position INTEGER NOT NULL,
    is_active INTEGER NOT NULL,
    config BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE pauses (function_id TEXT PRIMARY KEY, paused_at INTEGER NOT NULL) WITHOUT ROWID;

-- sender_id is the id that the sender gave, if any; body the event as functions get it, JSON. origin is the run that
-- sent it (JSON, see run_state.Origin), traceparent the sender's trace context (W3C). ended is the number of waits and
-- runs that the event has ended, NULL if none; notes are sentences on that, and on runs that it did not start (JSON).
CREATE TABLE events (
    key INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    sender_id TEXT,
    name TEXT NOT NULL,
    received_at INTEGER NOT NULL,
    body BLOB NOT NULL,
    origin BLOB,
    traceparent TEXT,
    ended INTEGER,
    notes BLOB
);
CREATE INDEX events_by_name ON events (name, key);
CREATE INDEX events_by_sender_id ON events (sender_id, received_at) WHERE sender_id IS NOT NULL;
-- Finds the runs that a run started: the origin's first item is the key of the run that sent the event. It does not
-- have the events of ordinary ends, which are most.
CREATE INDEX events_by_sender_run ON events (CAST(substr(origin, 2) AS INTEGER), key)
    WHERE origin IS NOT NULL AND name <> 'inngest/function.finished';

-- A batch (is_batch) has several events: event_key is the first, and run_events has all of them. app_version is that at
-- the run's creation, unfinished the steps that had not ended at its end; see UnfinishedStep.
CREATE TABLE runs (
    key INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    function_id TEXT NOT NULL,
    app_id TEXT NOT NULL,
    event_key INTEGER NOT NULL,
    is_batch INTEGER NOT NULL,
    status TEXT NOT NULL,
    max_attempts INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    started_at INTEGER,
    ended_at INTEGER,
    output BLOB,
    rerun_of TEXT,
    app_version TEXT,
    last_called_at INTEGER,
    unfinished BLOB
);
CREATE INDEX runs_by_event ON runs (event_key);
CREATE INDEX runs_by_function ON runs (function_id, key);
CREATE INDEX runs_by_end ON runs (ended_at) WHERE ended_at IS NOT NULL;
-- Lists runs that failed, were cancelled or skipped. It does not have completed runs, which are most.
CREATE INDEX runs_by_rare_end ON runs (status, key) WHERE ended_at IS NOT NULL AND status <> 'Completed';
CREATE INDEX runs_by_rerun_of ON runs (rerun_of) WHERE rerun_of IS NOT NULL;
CREATE TABLE run_events (
    run_key INTEGER NOT NULL,
    event_key INTEGER NOT NULL,
    PRIMARY KEY (run_key, event_key)
) WITHOUT ROWID;
CREATE INDEX run_events_by_event ON run_events (event_key);

-- The states of runs that have not ended. is_runnable: the run has a call or a request outstanding. queue_entry is
-- what the run carries with it about flow control, if its function has any. step_input, if any, is the step that a
-- person gave another input, and that input: {"<hashed step id>": {"input": ...}}.
CREATE TABLE run_states (
    run_key INTEGER PRIMARY KEY,
    is_runnable INTEGER NOT NULL,
    state BLOB NOT NULL,
    queue_entry BLOB,
    step_input BLOB
);
CREATE INDEX run_states_runnable ON run_states (run_key) WHERE is_runnable;

-- The results of finished steps; never changed. seq is their order within the run. called_at is the time of the call
-- in which a row was written; ran_from and ran_for are when an app executed a step, in microseconds, since the epoch
-- and as a duration. topic is that of the step's wait, arguments are those of the step (JSON). is_copied: the memo is
-- that of the run that a rerun repeats.
CREATE TABLE memos (
    run_key INTEGER NOT NULL,
    step_id TEXT NOT NULL,
    seq INTEGER NOT NULL,
    name TEXT NOT NULL,
    op TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    ended_at INTEGER NOT NULL,
    memo BLOB NOT NULL,
    called_at INTEGER,
    ran_from INTEGER,
    ran_for INTEGER,
    topic TEXT,
    arguments BLOB,
    is_copied INTEGER,
    PRIMARY KEY (run_key, step_id)
) WITHOUT ROWID;

-- Attempts that failed and were followed by another one. The last error of a step is in its memo, that of a run in its
-- output. An attempt that is repeated because the app did not answer keeps its number: the newest error counts.
-- queued_at is when the call of the attempt was due, retry_at when that of the next was; data is the whole error,
-- JSON.
CREATE TABLE failed_attempts (
    run_key INTEGER NOT NULL,
    step_id TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    name TEXT NOT NULL,
    ended_at INTEGER NOT NULL,
    error TEXT NOT NULL,
    queued_at INTEGER,
    called_at INTEGER,
    ran_from INTEGER,
    ran_for INTEGER,
    retry_at INTEGER,
    data BLOB,
    PRIMARY KEY (run_key, step_id, attempt)
) WITHOUT ROWID;

-- Tokens of models in attempts at steps, and their sums by quarter of an hour, in minutes since the epoch.
CREATE TABLE step_usage (
    run_key INTEGER NOT NULL,
    step_id TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    model TEXT NOT NULL,
    input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    PRIMARY KEY (run_key, step_id, attempt, model)
) WITHOUT ROWID;
CREATE TABLE usage_counts (
    minute INTEGER NOT NULL,
    function_id TEXT NOT NULL,
    model TEXT NOT NULL,
    input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    PRIMARY KEY (function_id, minute, model)
) WITHOUT ROWID;
CREATE INDEX usage_counts_by_minute ON usage_counts (minute);

-- Outstanding steps that wait for something other than a call: topic is an event's name, a signal, or the id of the
-- event of an invocation. path and value are the key of an event wait in the wait index: the expression requires that
-- the later event has this value at this path. question describes the message for which a step waits; see QuestionInfo.
CREATE TABLE waits (
    run_key INTEGER NOT NULL,
    step_id TEXT NOT NULL,
    op TEXT NOT NULL,
    topic TEXT,
    path TEXT,
    value TEXT,
    expression TEXT,
    due INTEGER,
    created_at INTEGER NOT NULL,
    called_at INTEGER,
    question BLOB,
    PRIMARY KEY (run_key, step_id)
) WITHOUT ROWID;
CREATE INDEX waits_by_question ON waits (run_key, step_id) WHERE question IS NOT NULL;
CREATE INDEX waits_by_topic ON waits (op, topic, path, value) WHERE topic IS NOT NULL;
CREATE INDEX waits_by_due ON waits (due) WHERE due IS NOT NULL;
-- The paths of the wait index by event name; empty for waits without a key.
CREATE TABLE wait_paths (event TEXT NOT NULL, path TEXT NOT NULL, PRIMARY KEY (event, path)) WITHOUT ROWID;

-- Calls to make later: retries.
CREATE TABLE delayed_calls (
    run_key INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    due INTEGER NOT NULL,
    PRIMARY KEY (run_key, generation)
) WITHOUT ROWID;
CREATE INDEX delayed_calls_by_due ON delayed_calls (due);

-- Functions that a run has deferred, to be started when it has ended: the app's id of the step, the event's data, and
-- its sessions (JSON).
CREATE TABLE deferred_functions (
    run_key INTEGER NOT NULL,
    step_id TEXT NOT NULL,
    function_id TEXT NOT NULL,
    data BLOB NOT NULL,
    sessions BLOB NOT NULL,
    PRIMARY KEY (run_key, step_id)
);

-- What options count, such as a rate limit's level for one value of its key. due is the time of the bucket's timer,
-- expires the time from which its state has no effect.
CREATE TABLE buckets (
    id TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    function_id TEXT NOT NULL,
    key TEXT NOT NULL,
    state BLOB NOT NULL,
    due INTEGER,
    expires INTEGER
) WITHOUT ROWID;
CREATE INDEX buckets_by_due ON buckets (due) WHERE due IS NOT NULL;
CREATE INDEX buckets_by_expiry ON buckets (expires) WHERE expires IS NOT NULL;
-- Events that have yet to start their run: the one of a debounce, those of a batch.
CREATE TABLE pending_events (
    bucket_id TEXT NOT NULL,
    event_key INTEGER NOT NULL,
    PRIMARY KEY (bucket_id, event_key)
) WITHOUT ROWID;
CREATE INDEX pending_events_by_event ON pending_events (event_key);

-- The queue of calls; see durably.engine.core.flow.queue. A concurrency key waits at a limit, with its first call.
CREATE TABLE concurrency_keys (
    id TEXT PRIMARY KEY,
    function_id TEXT NOT NULL,
    limit_id TEXT NOT NULL,
    limit_maximum INTEGER NOT NULL,
    position INTEGER NOT NULL,
    run_key INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    state BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX concurrency_keys_by_limit ON concurrency_keys (limit_id, limit_maximum, position, run_key, generation);
CREATE INDEX concurrency_keys_by_function ON concurrency_keys (function_id);
CREATE TABLE queued_calls (
    key_id TEXT NOT NULL,
    position INTEGER NOT NULL,
    run_key INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    PRIMARY KEY (key_id, position, run_key, generation)
) WITHOUT ROWID;
CREATE UNIQUE INDEX queued_calls_by_run ON queued_calls (run_key, generation);
-- The concurrency slots that calls hold, and their number by bucket.
CREATE TABLE slots (
    run_key INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    bucket_ids BLOB NOT NULL,
    taken_at INTEGER NOT NULL,
    PRIMARY KEY (run_key, generation)
) WITHOUT ROWID;
CREATE TABLE slots_used (id TEXT PRIMARY KEY, used INTEGER NOT NULL) WITHOUT ROWID;
-- The levels of throttles, and the times at which calls that wait for them are checked.
CREATE TABLE throttle_levels (id TEXT PRIMARY KEY, level BLOB NOT NULL, expires INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX throttle_levels_by_expiry ON throttle_levels (expires);
CREATE TABLE throttle_times (id TEXT PRIMARY KEY, ready_at INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX throttle_times_by_time ON throttle_times (ready_at);

-- Events that cancel a run, with a key of the wait index; until is the last time at which they do.
CREATE TABLE cancel_events (
    run_key INTEGER NOT NULL,
    position INTEGER NOT NULL,
    event TEXT NOT NULL,
    path TEXT,
    value TEXT,
    expression TEXT,
    until INTEGER,
    PRIMARY KEY (run_key, position)
) WITHOUT ROWID;
CREATE INDEX cancel_events_by_event ON cancel_events (event, path, value);
-- When a run is cancelled if it has not started, or not ended, by then; kind says which.
CREATE TABLE deadlines (run_key INTEGER PRIMARY KEY, kind TEXT NOT NULL, due INTEGER NOT NULL);
CREATE INDEX deadlines_by_due ON deadlines (due);
-- The next tick of each cron schedule: at is the scheduled time, due the same with its jitter.
CREATE TABLE schedules (
    function_id TEXT NOT NULL,
    schedule TEXT NOT NULL,
    at INTEGER NOT NULL,
    due INTEGER NOT NULL,
    PRIMARY KEY (function_id, schedule)
) WITHOUT ROWID;
CREATE INDEX schedules_by_due ON schedules (due);

-- Cancellations and replays of many runs of a function: those created from started_after to started_before with one of
-- the statuses (a JSON array; any if NULL), for whose event the expression is true. Runs are processed in the order of
-- their keys; cursor is the last that was, until_key the last to process.
CREATE TABLE bulk_operations (
    id TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    function_id TEXT NOT NULL,
    started_after INTEGER,
    started_before INTEGER NOT NULL,
    expression TEXT,
    statuses TEXT,
    created_at INTEGER NOT NULL,
    ended_at INTEGER,
    cursor INTEGER NOT NULL,
    until_key INTEGER NOT NULL,
    affected INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX bulk_operations_open ON bulk_operations (id) WHERE ended_at IS NULL;

-- Reports of SDKs: metadata of runs as received (JSON), exports of spans of any runs, and lines of ctx.logger from
-- apps in development; at is microseconds since the epoch.
CREATE TABLE run_metadata (
    key INTEGER PRIMARY KEY,
    run_key INTEGER NOT NULL,
    received_at INTEGER NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX run_metadata_by_run ON run_metadata (run_key);
CREATE TABLE traces (
    key INTEGER PRIMARY KEY,
    received_at INTEGER NOT NULL,
    content_type TEXT NOT NULL,
    body BLOB NOT NULL
);
CREATE TABLE run_logs (
    key INTEGER PRIMARY KEY,
    run_key INTEGER NOT NULL,
    at INTEGER NOT NULL,
    level TEXT NOT NULL,
    message TEXT NOT NULL,
    step TEXT,
    attempt INTEGER
);
CREATE INDEX run_logs_by_run ON run_logs (run_key, at);

-- The last progress that a run has reported (JSON); see Progress.
CREATE TABLE run_progress (run_key INTEGER PRIMARY KEY, progress BLOB NOT NULL);

-- Numbers of runs by minute since the epoch, of those created then and of those that ended then. After some hours the
-- minutes of a quarter of an hour are joined into its first, and after some days those of an hour.
CREATE TABLE run_counts (
    minute INTEGER NOT NULL,
    function_id TEXT NOT NULL,
    created INTEGER NOT NULL,
    completed INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    cancelled INTEGER NOT NULL,
    skipped INTEGER NOT NULL,
    PRIMARY KEY (minute, function_id)
) WITHOUT ROWID;
-- run_counts has all minutes before counted_until, and none after; it is NULL before the first are stored.
CREATE TABLE statistics (id INTEGER PRIMARY KEY CHECK (id = 1), counted_until INTEGER);
INSERT INTO statistics (id, counted_until) VALUES (1, NULL);
"""

MIGRATIONS: tuple[str, ...] = (_TABLES,)
"""Scripts in order. ``PRAGMA user_version`` is the number of those applied. A released script never changes."""
