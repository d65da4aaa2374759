-- The experience store, version 1. No user text: fingerprints, numbers and short names only.
-- A number that is NaN arrives as NULL and is refused by NOT NULL; infinities are refused by the ranges.

CREATE TABLE task (
    fingerprint TEXT PRIMARY KEY,
    features TEXT NOT NULL,              -- JSON: meta-features of the data
    added_s INTEGER NOT NULL             -- seconds since 1970
) WITHOUT ROWID;

CREATE TABLE model (
    fingerprint TEXT PRIMARY KEY,
    features TEXT NOT NULL,              -- JSON: parameters, width, layers, vocabulary, family
    added_s INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE hardware (
    fingerprint TEXT PRIMARY KEY,
    features TEXT NOT NULL,              -- JSON: cores, memory, accelerator
    added_s INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE config (
    fingerprint TEXT PRIMARY KEY,
    method TEXT NOT NULL,
    settings TEXT NOT NULL               -- JSON: the whole flat configuration
) WITHOUT ROWID;

CREATE TABLE run (
    id TEXT PRIMARY KEY,
    task TEXT NOT NULL REFERENCES task,
    model TEXT NOT NULL REFERENCES model,
    hardware TEXT NOT NULL REFERENCES hardware,
    config TEXT NOT NULL REFERENCES config,
    seed INTEGER NOT NULL,
    horizon INTEGER NOT NULL CHECK (horizon >= 1),
    arm TEXT NOT NULL,                   -- what it was started for; in a study, the condition
    study TEXT NOT NULL,                 -- the study it belongs to, or ''
    pair TEXT NOT NULL,                  -- runs to be compared with each other share it, or ''
    versions TEXT NOT NULL,              -- JSON: version of every library that matters
    status TEXT NOT NULL,                -- 'running', or how it ended
    started_s INTEGER NOT NULL,
    finished_s INTEGER,
    peak_bytes INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;

CREATE INDEX run_by_task ON run (task, model);
CREATE INDEX run_by_hardware ON run (hardware);
CREATE INDEX run_by_study ON run (study, pair);

CREATE TABLE observation (
    run TEXT NOT NULL REFERENCES run,
    step INTEGER NOT NULL CHECK (step >= 0),
    split TEXT NOT NULL,
    metric TEXT NOT NULL,
    value REAL NOT NULL CHECK (value BETWEEN -1.0e300 AND 1.0e300),
    se REAL NOT NULL CHECK (se BETWEEN 0.0 AND 1.0e300),
    n_eval INTEGER NOT NULL CHECK (n_eval >= 0),
    train_s REAL NOT NULL CHECK (train_s BETWEEN 0.0 AND 1.0e300),   -- since the observation before
    eval_s REAL NOT NULL CHECK (eval_s BETWEEN 0.0 AND 1.0e300),
    tokens INTEGER NOT NULL CHECK (tokens >= 0),                    -- trained since the observation before
    PRIMARY KEY (run, step, split, metric)
) WITHOUT ROWID;

CREATE TABLE lease (
    run TEXT PRIMARY KEY,                -- of a run that may not have been started yet
    owner TEXT NOT NULL,
    attempt INTEGER NOT NULL CHECK (attempt >= 1),
    until_s REAL NOT NULL
) WITHOUT ROWID;

CREATE TABLE forecast (
    run TEXT NOT NULL,                   -- a run, or a whole job
    phase TEXT NOT NULL,                 -- plan, probe, trial, evaluation, export
    quantity TEXT NOT NULL,              -- seconds, memory_bytes, disk_bytes
    predicted REAL NOT NULL CHECK (predicted BETWEEN -1.0e300 AND 1.0e300),
    low REAL NOT NULL CHECK (low <= predicted AND low >= -1.0e300),
    high REAL NOT NULL CHECK (high >= predicted AND high <= 1.0e300),
    measured REAL CHECK (measured BETWEEN -1.0e300 AND 1.0e300),
    PRIMARY KEY (run, phase, quantity)
) WITHOUT ROWID;
