"""The database's schema: one script for each version.

Times are milliseconds since the epoch. ``key`` columns are rowids, for joins; ``id`` columns are public.
``PRAGMA user_version`` is the number of applied migrations.
"""

_FIRST = """
CREATE TABLE owner (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    epoch INTEGER NOT NULL,
    -- Whether all JSON in here is in canonical form (RFC 8785), as signed calls have to be.
    is_canonical INTEGER NOT NULL
);
INSERT INTO owner (id, epoch, is_canonical) VALUES (1, 0, 1);

CREATE TABLE apps (
    id TEXT PRIMARY KEY,
    url TEXT NOT NULL,
    sdk TEXT,
    framework TEXT,
    version TEXT,
    synced_at INTEGER NOT NULL
) WITHOUT ROWID;

-- A function that its app does not sync any more is kept, inactive: runs of it may be under way.
CREATE TABLE functions (
    id TEXT PRIMARY KEY,
    app_id TEXT NOT NULL,
    position INTEGER NOT NULL,
    is_active INTEGER NOT NULL,
    config BLOB NOT NULL
) WITHOUT ROWID;

-- sender_id is the id that an event came with, if any; body the event as functions get it, JSON.
CREATE TABLE events (
    key INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    sender_id TEXT,
    name TEXT NOT NULL,
    received_at INTEGER NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX events_by_name ON events (name, key);
CREATE INDEX events_by_sender_id ON events (sender_id, received_at) WHERE sender_id IS NOT NULL;

CREATE TABLE runs (
    key INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    function_id TEXT NOT NULL,
    app_id TEXT NOT NULL,
    event_key INTEGER NOT NULL,
    status TEXT NOT NULL,
    max_attempts INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    started_at INTEGER,
    ended_at INTEGER,
    output BLOB,
    rerun_of TEXT
);
CREATE INDEX runs_by_event ON runs (event_key);
CREATE INDEX runs_by_function ON runs (function_id, key);

-- The states of runs that have not ended. is_moving: the run has a call or a request outstanding.
CREATE TABLE heads (
    run_key INTEGER PRIMARY KEY,
    is_moving INTEGER NOT NULL,
    head BLOB NOT NULL
);
CREATE INDEX heads_moving ON heads (run_key) WHERE is_moving;

-- What finished steps came to; never changed. seq is their order within the run.
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
    PRIMARY KEY (run_key, step_id)
) WITHOUT ROWID;

-- Outstanding steps that wait for something other than a call, which comes by `topic`: an event's name, a
-- signal, an invoked run's id. `path` and `value` narrow event waits down: where the wait's expression wants a
-- place of the newcomer to equal something, they say which place, and what.
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
    PRIMARY KEY (run_key, step_id)
) WITHOUT ROWID;
CREATE INDEX waits_by_topic ON waits (op, topic, path, value) WHERE topic IS NOT NULL;
CREATE INDEX waits_by_due ON waits (due) WHERE due IS NOT NULL;

-- Every place by which waits for an event were ever narrowed down.
CREATE TABLE wait_paths (
    event TEXT NOT NULL,
    path TEXT NOT NULL,
    PRIMARY KEY (event, path)
) WITHOUT ROWID;

-- Calls that are to be made later: retries.
CREATE TABLE delayed_calls (
    run_key INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    due INTEGER NOT NULL,
    PRIMARY KEY (run_key, generation)
) WITHOUT ROWID;
CREATE INDEX delayed_calls_by_due ON delayed_calls (due);
"""

_FLOW_CONTROL = """
-- A run may be started by several events: event_key is then the first, and run_events has all of them.
ALTER TABLE runs ADD COLUMN is_batch INTEGER NOT NULL DEFAULT 0;
CREATE TABLE run_events (
    run_key INTEGER NOT NULL,
    event_key INTEGER NOT NULL,
    PRIMARY KEY (run_key, event_key)
) WITHOUT ROWID;
CREATE INDEX run_events_by_event ON run_events (event_key);

-- ticket is what a run carries with it about flow control, if its function has any. step_input, if any, is the step
-- that a person gave another input, and that input: {"<hashed step id>": {"input": ...}}.
ALTER TABLE heads ADD COLUMN ticket BLOB;
ALTER TABLE heads ADD COLUMN step_input BLOB;

-- What options count, such as a rate limit's level for one value of its key. due is when something is to be done about
-- a bucket, expires from when on its state means the same as none.
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
CREATE TABLE held_events (
    bucket_id TEXT NOT NULL,
    event_key INTEGER NOT NULL,
    PRIMARY KEY (bucket_id, event_key)
) WITHOUT ROWID;
CREATE INDEX held_events_by_event ON held_events (event_key);

-- Calls that wait for room, in lanes; see durably.engine.core.flow.queue. Of those that were let through, holds
-- has the concurrency slots that they take, and since when.
CREATE TABLE lanes (
    id TEXT PRIMARY KEY,
    function_id TEXT NOT NULL,
    gate TEXT NOT NULL,
    gate_limit INTEGER NOT NULL,
    place INTEGER NOT NULL,
    run_key INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    lane BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX lanes_by_gate ON lanes (gate, gate_limit, place, run_key, generation);
CREATE INDEX lanes_by_function ON lanes (function_id);
CREATE TABLE queued_calls (
    lane_id TEXT NOT NULL,
    place INTEGER NOT NULL,
    run_key INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    PRIMARY KEY (lane_id, place, run_key, generation)
) WITHOUT ROWID;
CREATE UNIQUE INDEX queued_calls_by_run ON queued_calls (run_key, generation);
CREATE TABLE slots_used (
    id TEXT PRIMARY KEY,
    used INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE holds (
    run_key INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    bucket_ids BLOB NOT NULL,
    made_at INTEGER NOT NULL,
    PRIMARY KEY (run_key, generation)
) WITHOUT ROWID;
CREATE TABLE levels (
    id TEXT PRIMARY KEY,
    level BLOB NOT NULL,
    expires INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX levels_by_expiry ON levels (expires);
CREATE TABLE openings (
    id TEXT PRIMARY KEY,
    opens_at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX openings_by_time ON openings (opens_at);

-- Events that cancel a run, narrowed down as in waits; until is the last time at which they do.
CREATE TABLE cancels (
    run_key INTEGER NOT NULL,
    position INTEGER NOT NULL,
    event TEXT NOT NULL,
    path TEXT,
    value TEXT,
    expression TEXT,
    until INTEGER,
    PRIMARY KEY (run_key, position)
) WITHOUT ROWID;
CREATE INDEX cancels_by_event ON cancels (event, path, value);

-- When a run is cancelled if it has not started, or not ended, by then; kind says which.
CREATE TABLE deadlines (
    run_key INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    due INTEGER NOT NULL
);
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

CREATE TABLE pauses (
    function_id TEXT PRIMARY KEY,
    paused_at INTEGER NOT NULL
) WITHOUT ROWID;

-- What a person asked to be done about many runs of a function: those created from started_after to started_before with
-- one of the statuses (a JSON array; any where NULL), for whose event the expression holds. Runs are looked at in the
-- order of their keys; cursor is the last that was, until_key the last to look at.
CREATE TABLE sweeps (
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
CREATE INDEX sweeps_open ON sweeps (id) WHERE ended_at IS NULL;

-- From now on all that waits for an event has a row in wait_paths, with an empty path where it is not narrowed down.
INSERT OR IGNORE INTO wait_paths (event, path)
SELECT DISTINCT topic, '' FROM waits WHERE op = 'WaitForEvent' AND topic IS NOT NULL AND path IS NULL;

-- Who invokes waits for the event of the invocation, whichever run that starts, and whenever.
UPDATE waits SET topic = (
    SELECT events.id FROM runs JOIN events ON events.key = runs.event_key WHERE runs.id = waits.topic
) WHERE op = 'InvokeFunction' AND topic IS NOT NULL;
"""

_RETENTION = """
-- By which runs that ended long ago are found.
CREATE INDEX runs_by_end ON runs (ended_at) WHERE ended_at IS NOT NULL;
"""

_RARE_ENDS = """
-- By which runs that failed, were cancelled or skipped are listed; those that complete, which are most, are not in it.
CREATE INDEX runs_by_rare_end ON runs (status, key) WHERE ended_at IS NOT NULL AND status <> 'Completed';
"""

_ORIGINS = """
-- Of an event that a run sent: which run, and how many runs led to it. A JSON array; see durably.engine.core.run_state.
ALTER TABLE events ADD COLUMN origin BLOB;
"""

_FAILED_ATTEMPTS = """
-- Attempts that failed and were followed by another one. The last error of a step is in its memo, that of a run in its
-- output. An attempt that is repeated because the app did not answer keeps its number: the newest error counts.
CREATE TABLE failed_attempts (
    run_key INTEGER NOT NULL,
    step_id TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    name TEXT NOT NULL,
    ended_at INTEGER NOT NULL,
    error TEXT NOT NULL,
    PRIMARY KEY (run_key, step_id, attempt)
) WITHOUT ROWID;
"""

_DEFERS = """
-- Functions that a run has deferred, to be started once it has ended: the app's id of the defer, and the event's data.
CREATE TABLE defers (
    run_key INTEGER NOT NULL,
    step_id TEXT NOT NULL,
    function_id TEXT NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (run_key, step_id)
);
"""

_ANNOTATIONS = """
-- Reports of SDKs: metadata of runs, as received (JSON), and exports of spans, of any runs.
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
"""

_RUN_LINKS = """
-- By which the runs are found that a run started: the origin's first item is the key of the run that sent an event.
-- The events of ordinary ends, which are most, are not in it.
CREATE INDEX events_by_sender_run ON events (CAST(substr(origin, 2) AS INTEGER), key)
    WHERE origin IS NOT NULL AND name <> 'inngest/function.finished';
CREATE INDEX runs_by_rerun_of ON runs (rerun_of) WHERE rerun_of IS NOT NULL;
"""

_TRACES = """
-- The trace context (W3C) of an event's sender. The runs that the event starts continue its trace.
ALTER TABLE events ADD COLUMN traceparent TEXT;
"""

_STATISTICS = """
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
CREATE TABLE statistics (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    counted_until INTEGER
);
INSERT INTO statistics (id, counted_until) VALUES (1, NULL);

-- The last sync of each app: JSON in the form of durably.engine.model.reports.SyncReport.
CREATE TABLE app_syncs (
    app_id TEXT PRIMARY KEY,
    sync BLOB NOT NULL
) WITHOUT ROWID;

-- How many waits and runs an event has ended; NULL if none.
ALTER TABLE events ADD COLUMN ended INTEGER;
-- Of earlier events that is not known: they may have.
UPDATE events SET ended = 1 WHERE name IN (SELECT event FROM wait_paths);
"""

_RUN_REPORTS = """
-- What reports of runs show besides. called_at is the time of the call in which a row was written; ran_from and ran_for
-- are when an app executed a step, in microseconds, since the epoch and as a duration. topic is that of the step's
-- wait, arguments are those of the step (JSON). is_copied: the memo is that of the run that a rerun repeats.
ALTER TABLE memos ADD COLUMN called_at INTEGER;
ALTER TABLE memos ADD COLUMN ran_from INTEGER;
ALTER TABLE memos ADD COLUMN ran_for INTEGER;
ALTER TABLE memos ADD COLUMN topic TEXT;
ALTER TABLE memos ADD COLUMN arguments BLOB;
ALTER TABLE memos ADD COLUMN is_copied INTEGER;
ALTER TABLE waits ADD COLUMN called_at INTEGER;
-- queued_at is when the call of the attempt was due, retry_at when that of the next was; data is the whole error, JSON.
ALTER TABLE failed_attempts ADD COLUMN queued_at INTEGER;
ALTER TABLE failed_attempts ADD COLUMN called_at INTEGER;
ALTER TABLE failed_attempts ADD COLUMN ran_from INTEGER;
ALTER TABLE failed_attempts ADD COLUMN ran_for INTEGER;
ALTER TABLE failed_attempts ADD COLUMN retry_at INTEGER;
ALTER TABLE failed_attempts ADD COLUMN data BLOB;
-- app_version is that at the run's creation, unfinished the steps that had not ended at its end; see UnfinishedStep.
ALTER TABLE runs ADD COLUMN app_version TEXT;
ALTER TABLE runs ADD COLUMN last_called_at INTEGER;
ALTER TABLE runs ADD COLUMN unfinished BLOB;
"""

_RUN_LOGS = """
-- Lines of ctx.logger, from apps in development; at is microseconds since the epoch.
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
"""

MIGRATIONS = (
    _FIRST,
    _FLOW_CONTROL,
    _RETENTION,
    _RARE_ENDS,
    _ORIGINS,
    _FAILED_ATTEMPTS,
    _DEFERS,
    _ANNOTATIONS,
    _RUN_LINKS,
    _TRACES,
    _STATISTICS,
    _RUN_REPORTS,
    _RUN_LOGS,
)
"""Scripts in order; each raises the version by one. Statements of released scripts never change."""
