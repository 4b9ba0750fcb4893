"""
The tables of the state, as scripts that lead from one schema version to the next.

They are written for SQLite; ``for_postgresql`` makes the same tables of them there.
"""

from __future__ import annotations

import re

# One entry per schema version, applied in order; never change one that was released, append.
MIGRATIONS = (
    """
    CREATE TABLE functions (
        name           TEXT PRIMARY KEY,
        last_version   INTEGER NOT NULL,            -- the high-water mark; stays when the function is removed
        active_version INTEGER                      -- NULL: removed
    ) STRICT;
    CREATE TABLE versions (
        function      TEXT NOT NULL REFERENCES functions(name),
        version       INTEGER NOT NULL,
        kind          TEXT NOT NULL,
        wasm_digest   TEXT NOT NULL,
        artifact_key  TEXT NOT NULL,
        bundle_digest TEXT NOT NULL,
        manifest      TEXT NOT NULL,
        created_at    REAL NOT NULL,
        PRIMARY KEY (function, version)
    ) STRICT;
    CREATE TABLE routes (                           -- of active versions only
        function TEXT NOT NULL REFERENCES functions(name),
        route    TEXT NOT NULL,
        PRIMARY KEY (function, route)
    ) STRICT;
    CREATE TABLE changes (                          -- append-only: who served when
        seq      INTEGER PRIMARY KEY AUTOINCREMENT,
        at       REAL NOT NULL,
        action   TEXT NOT NULL CHECK (action IN ('deploy', 'remove')),
        function TEXT NOT NULL,
        version  INTEGER NOT NULL
    ) STRICT;
    """,
    """
    CREATE TABLE models (                           -- files are referred to, never copied
        name     TEXT PRIMARY KEY,
        path     TEXT NOT NULL,
        digest   TEXT NOT NULL,
        bytes    INTEGER NOT NULL,
        added_at REAL NOT NULL
    ) STRICT;
    CREATE TABLE fingerprints (                     -- so that gigabytes are hashed once
        path     TEXT PRIMARY KEY,
        bytes    INTEGER NOT NULL,
        mtime_ns INTEGER NOT NULL,
        digest   TEXT NOT NULL
    ) STRICT;
    CREATE TABLE keys (
        name              TEXT PRIMARY KEY,
        sha256            TEXT NOT NULL UNIQUE,
        tokens_per_minute INTEGER NOT NULL,
        added_at          REAL NOT NULL
    ) STRICT;
    """,
    """
    CREATE TABLE aliases (                          -- every function that serves has the alias live
        function TEXT NOT NULL REFERENCES functions(name),
        alias    TEXT NOT NULL,
        version  INTEGER NOT NULL,
        other    INTEGER NOT NULL,                  -- a second version; 0: none
        weight   REAL NOT NULL,                     -- percent of the requests that go to it
        sticky   TEXT NOT NULL,
        PRIMARY KEY (function, alias)
    ) STRICT;
    INSERT INTO aliases (function, alias, version, other, weight, sticky)
        SELECT name, 'live', active_version, 0, 0.0, '' FROM functions WHERE active_version IS NOT NULL;
    ALTER TABLE functions DROP COLUMN active_version;
    CREATE TABLE canaries (                         -- the last one of each function's alias
        function TEXT NOT NULL REFERENCES functions(name),
        alias    TEXT NOT NULL,
        version  INTEGER NOT NULL,                  -- the old one
        other    INTEGER NOT NULL,                  -- the new one
        plan     TEXT NOT NULL,                     -- JSON
        phase    TEXT NOT NULL,
        step     INTEGER NOT NULL,
        since    REAL NOT NULL,                     -- when the step, or the end, began
        reason   TEXT NOT NULL,
        PRIMARY KEY (function, alias)
    ) STRICT;
    CREATE TABLE history (                          -- what live named before, the last one at the greatest depth
        function TEXT NOT NULL REFERENCES functions(name),
        depth    INTEGER NOT NULL,
        version  INTEGER NOT NULL,
        PRIMARY KEY (function, depth)
    ) STRICT;
    INSERT INTO history (function, depth, version)
        SELECT v.function, v.version, v.version FROM versions v JOIN aliases a ON a.function = v.function
        WHERE v.version < a.version;
    DROP TABLE routes;
    CREATE TABLE audit (                            -- append-only: who changed what, when
        seq      INTEGER PRIMARY KEY AUTOINCREMENT,
        at       REAL NOT NULL,
        actor    TEXT NOT NULL,
        action   TEXT NOT NULL,
        function TEXT NOT NULL,
        detail   TEXT NOT NULL                      -- JSON
    ) STRICT;
    INSERT INTO audit (at, actor, action, function, detail)
        SELECT at, '', action, function, '{"version":' || version || '}' FROM changes ORDER BY seq;
    DROP TABLE changes;
    CREATE TABLE blobs (                            -- files for all hosts, where several share the database
        digest   TEXT PRIMARY KEY,
        n_bytes  INTEGER NOT NULL,
        added_at REAL NOT NULL
    ) STRICT;
    CREATE TABLE blob_parts (
        digest  TEXT NOT NULL REFERENCES blobs(digest),
        number  INTEGER NOT NULL,
        content BLOB NOT NULL,
        PRIMARY KEY (digest, number)
    ) STRICT;
    CREATE TABLE tokens (                           -- of the admin API
        name     TEXT PRIMARY KEY,
        sha256   TEXT NOT NULL UNIQUE,
        role     TEXT NOT NULL,
        added_at REAL NOT NULL
    ) STRICT;
    CREATE TABLE invoke_keys (
        function            TEXT NOT NULL,
        name                TEXT NOT NULL,
        sha256              TEXT NOT NULL UNIQUE,
        requests_per_minute INTEGER NOT NULL,
        added_at            REAL NOT NULL,
        PRIMARY KEY (function, name)
    ) STRICT;
    CREATE TABLE kv (
        store      TEXT NOT NULL,                   -- the function that it belongs to
        key        TEXT NOT NULL,
        value      BLOB NOT NULL,
        revision   INTEGER NOT NULL,
        expires_at REAL,                            -- NULL: never
        bytes      INTEGER NOT NULL,                -- of key and value
        PRIMARY KEY (store, key)
    ) STRICT;
    CREATE INDEX kv_expiring ON kv (expires_at) WHERE expires_at IS NOT NULL;
    CREATE INDEX kv_expiring_in ON kv (store, expires_at) WHERE expires_at IS NOT NULL;
    CREATE TABLE kv_stores (                        -- what each of them holds; a row stays when its keys go
        store    TEXT PRIMARY KEY,
        keys     INTEGER NOT NULL,
        bytes    INTEGER NOT NULL,
        revision INTEGER NOT NULL                   -- the last one that an entry got
    ) STRICT;
    CREATE TABLE kv_grants (
        store     TEXT NOT NULL,
        function  TEXT NOT NULL,
        read_only INTEGER NOT NULL,
        added_at  REAL NOT NULL,
        PRIMARY KEY (store, function)
    ) STRICT;
    CREATE TABLE config_values (
        function TEXT NOT NULL,
        name     TEXT NOT NULL,
        value    TEXT NOT NULL,
        bytes    INTEGER NOT NULL,
        set_at   REAL NOT NULL,
        PRIMARY KEY (function, name)
    ) STRICT;
    CREATE TABLE secrets (
        function TEXT NOT NULL,
        name     TEXT NOT NULL,
        sealed   BLOB NOT NULL,
        key_id   TEXT NOT NULL,                     -- which key sealed it
        bytes    INTEGER NOT NULL,
        set_at   REAL NOT NULL,
        PRIMARY KEY (function, name)
    ) STRICT;
    CREATE TABLE jobs (                             -- asynchronous invocations
        id          TEXT PRIMARY KEY,
        function    TEXT NOT NULL,
        qualifier   TEXT NOT NULL,
        source      TEXT NOT NULL,
        state       TEXT NOT NULL,
        created_at  REAL NOT NULL,
        due_at      REAL NOT NULL,
        expires_at  REAL NOT NULL,
        finished_at REAL NOT NULL,
        keep_until  REAL NOT NULL,                  -- 0: not finished
        n_attempts  INTEGER NOT NULL,
        n_counted   INTEGER NOT NULL,
        n_lost      INTEGER NOT NULL,
        n_postponed INTEGER NOT NULL,               -- in a row: the guest never began
        status      INTEGER NOT NULL,
        reason      TEXT NOT NULL,
        policy      TEXT NOT NULL,                  -- JSON
        callback    TEXT NOT NULL,
        method      TEXT NOT NULL,
        target      TEXT NOT NULL,
        schedule    TEXT NOT NULL,
        holder      TEXT NOT NULL,                  -- the host that runs it
        lease_until REAL NOT NULL
    ) STRICT;
    CREATE INDEX jobs_due ON jobs (state, function, due_at, id);
    CREATE INDEX jobs_expiring ON jobs (state, expires_at);
    CREATE INDEX jobs_kept ON jobs (keep_until);
    CREATE INDEX jobs_newest ON jobs (created_at);
    CREATE TABLE job_requests (                     -- apart, so that a change of state does not write bodies again
        job     TEXT PRIMARY KEY,
        request BLOB NOT NULL                       -- msgpack
    ) STRICT;
    CREATE TABLE job_results (
        job  TEXT PRIMARY KEY,
        head BLOB NOT NULL,                         -- msgpack
        body BLOB NOT NULL
    ) STRICT;
    CREATE TABLE job_attempts (
        job      TEXT NOT NULL,
        number   INTEGER NOT NULL,
        began_at REAL NOT NULL,
        ended_at REAL NOT NULL,                     -- 0: it runs
        version  INTEGER NOT NULL,
        outcome  TEXT NOT NULL,
        status   INTEGER NOT NULL,
        reason   TEXT NOT NULL,
        PRIMARY KEY (job, number)
    ) STRICT;
    CREATE TABLE job_keys (                         -- what tells a job from a repetition
        function    TEXT NOT NULL,
        key         TEXT NOT NULL,
        fingerprint TEXT NOT NULL,
        job         TEXT NOT NULL,
        until       REAL NOT NULL,
        forgotten   INTEGER NOT NULL,               -- 1: the job is not kept any more
        PRIMARY KEY (function, key)
    ) STRICT;
    CREATE INDEX job_keys_kept ON job_keys (forgotten, until);
    CREATE INDEX job_keys_of ON job_keys (job);
    CREATE TABLE job_callbacks (                    -- word of finished jobs
        job         TEXT PRIMARY KEY,
        url         TEXT NOT NULL,
        state       TEXT NOT NULL,
        due_at      REAL NOT NULL,                  -- while it is being sent: when it is taken for lost
        expires_at  REAL NOT NULL,
        n_tries     INTEGER NOT NULL,
        reason      TEXT NOT NULL
    ) STRICT;
    CREATE INDEX job_callbacks_due ON job_callbacks (state, due_at);
    CREATE TABLE deliveries (                       -- of webhooks that are served at once
        function TEXT NOT NULL,
        delivery TEXT NOT NULL,
        done     INTEGER NOT NULL,                  -- 0: it is being served
        until    REAL NOT NULL,
        PRIMARY KEY (function, delivery)
    ) STRICT;
    CREATE INDEX deliveries_kept ON deliveries (until);
    CREATE TABLE schedules (                        -- of active functions only
        function    TEXT NOT NULL,
        schedule    TEXT NOT NULL,
        spec        TEXT NOT NULL,                  -- cron expression and time zone
        handled     REAL NOT NULL,                  -- whatever was due up to here has been enqueued or left out
        paused      INTEGER NOT NULL,
        last_due    REAL NOT NULL,
        last_job    TEXT NOT NULL,
        n_fired     INTEGER NOT NULL,
        n_skipped   INTEGER NOT NULL,               -- the run before was not over
        n_missed    INTEGER NOT NULL,               -- no host ran
        PRIMARY KEY (function, schedule)
    ) STRICT;
    """,
)

_RULES = (
    (re.compile(r"INTEGER PRIMARY KEY AUTOINCREMENT"), "BIGSERIAL PRIMARY KEY"),
    (re.compile(r"\bINTEGER\b"), "BIGINT"),
    (re.compile(r"\bREAL\b"), "DOUBLE PRECISION"),
    (re.compile(r"\bBLOB\b"), "BYTEA"),
    (re.compile(r"\bTEXT\b"), 'TEXT COLLATE "C"'),  # compared byte by byte, as SQLite does
    (re.compile(r"\) STRICT;"), ");"),
)


def for_postgresql(script: str) -> str:
    """Return *script*, one of ``MIGRATIONS``, in PostgreSQL's words."""
    for pattern, word in _RULES:
        script = pattern.sub(word, script)
    return script
