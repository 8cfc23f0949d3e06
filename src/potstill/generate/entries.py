"""What goes into the journal of a served teacher and what comes out of it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SCHEMA = """
CREATE TABLE IF NOT EXISTS requests (key TEXT PRIMARY KEY, family TEXT NOT NULL, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS attempts (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL,           -- messages, model, schema, sampling, number of the sample
    family TEXT NOT NULL,        -- the same without the limit of tokens
    most INTEGER NOT NULL,       -- the limit of tokens
    endpoint TEXT NOT NULL,
    model TEXT NOT NULL,
    payer TEXT NOT NULL,
    state TEXT NOT NULL,         -- sent, batched, received, answered, rejected, failed, unknown
    sent_at REAL NOT NULL,       -- seconds since 1970
    reserved_tokens INTEGER NOT NULL,
    reserved_money REAL,         -- null: the price is unknown
    seconds REAL,
    status INTEGER,
    request_id TEXT,
    reply BLOB,                  -- as it came, without keys that it repeats
    reason TEXT,
    finish TEXT,
    echoed TEXT,                 -- the model that the reply names
    tokens_in INTEGER,
    tokens_out INTEGER,
    cost REAL,                   -- null: unknown
    currency TEXT
);
CREATE TABLE IF NOT EXISTS consents (payer TEXT PRIMARY KEY, money REAL NOT NULL);
CREATE TABLE IF NOT EXISTS batches (
    name TEXT PRIMARY KEY,       -- stands in the provider's metadata, so that the batch is found again
    endpoint TEXT NOT NULL,
    api TEXT NOT NULL,
    payer TEXT NOT NULL,
    state TEXT NOT NULL,         -- intended, submitted, joined
    created REAL NOT NULL,       -- seconds since 1970
    file TEXT,                   -- the provider's id of what was uploaded
    batch TEXT                   -- the provider's id of the batch
);
CREATE TABLE IF NOT EXISTS batched (attempt INTEGER PRIMARY KEY, batch TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS by_batch ON batched (batch);
CREATE INDEX IF NOT EXISTS by_model ON attempts (model);
CREATE INDEX IF NOT EXISTS by_payer ON attempts (payer);
"""


@dataclass(frozen=True)
class Intent:
    """A request that is about to be sent."""

    key: str
    family: str
    body: Mapping[str, Any]
    most: int
    endpoint: str
    model: str
    payer: str
    reserved_tokens: int
    reserved_money: float | None
    currency: str


@dataclass(frozen=True)
class Kept:
    """What the journal holds of a request that is answered or rejected for good."""

    id: int
    key: str
    family: str
    state: str
    most: int
    endpoint: str
    finish: str
    echoed: str
    tokens_out: int | None
    reason: str
    sent_at: float
    cost: float | None


@dataclass(frozen=True)
class Unread:
    """A reply that arrived and was never read."""

    id: int
    payer: str
    model: str
    status: int | None
    reply: bytes


@dataclass(frozen=True)
class Spent:
    """What was sent for a payer; what nobody stated counts with what was reserved for it."""

    requests: int = 0
    tokens: int = 0
    money: float = 0.0
    tokens_in: int = 0
    tokens_out: int = 0
    known: float = 0.0  # money of replies that state their usage
    unknown: int = 0  # requests of which nobody stated what they used


def intend(db: sqlite3.Connection, intent: Intent, now: float, state: str = "sent") -> int:
    """Write down a request that is about to be sent."""
    body = json.dumps(intent.body, sort_keys=True)
    db.execute("INSERT OR IGNORE INTO requests VALUES (?, ?, ?)", (intent.key, intent.family, body))
    cursor = db.execute(
        "INSERT INTO attempts (key, family, most, endpoint, model, payer, state, sent_at, "
        "reserved_tokens, reserved_money, currency) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            intent.key, intent.family, intent.most, intent.endpoint, intent.model, intent.payer, state, now,
            intent.reserved_tokens, intent.reserved_money, intent.currency,
        ),
    )  # fmt: skip
    return int(cursor.lastrowid or 0)
