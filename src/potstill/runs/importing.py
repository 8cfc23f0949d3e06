"""Somebody else's top-k rows as a cache: taken only where ids and positions are proven to fit.

A row has ids (`input_ids`), which of them are scored (a mask, `labels` with -100, or `prompt_length`; else all but the
first), and for each position ids with natural log-probabilities: two lists of lists, or vLLM's `prompt_logprobs`.
Positions may be those of all tokens, of all but the first, or of the scored ones. Which token an entry is about is not
believed but counted: the row's own token is among the likeliest far more often where the alignment is right.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from potstill.cache.header import Header
from potstill.cache.keys import key_of as cache_key
from potstill.cache.writer import Writer
from potstill.data.files import read_files
from potstill.data.reader import Reader, reader_of
from potstill.data.template import Templater
from potstill.errors import DataError, SignalError
from potstill.models import loading
from potstill.runs.foreign import ImportedRow, read_row
from potstill.signals.support import NEG_INF
from potstill.signals.topk import TopK
from potstill.stages._captured import tokenizer_identity, vocabulary_hash
from potstill.store.artifacts import key_of
from potstill.store.disk import discard, move_into_place, write_sealed
from potstill.store.lines import write_lines
from potstill.teachers.cached import ABOUT, GREEDY, PROBE_ROWS, PROBES, SIGNALS, TOKENIZER, WRITTEN

LEAST_HITS, CLEARER = 0.3, 1.5  # of own tokens among the likeliest ids, and against any other alignment
BLOCK = 64  # rows
REJECTED = "rejected.jsonl"


@dataclass(frozen=True)
class Imported:
    """What became of a file's rows."""

    folder: Path
    rows: int
    tokens: int
    rejected: Mapping[str, int]
    hits: float  # share of scored tokens that are among their entry's ids
    shift: int
    most: int
    least: int

    def text(self) -> str:
        """The result in lines."""
        lines = [
            f"{self.folder}: {self.rows} rows, {self.tokens} scored tokens, {self.least} to {self.most} ids each; "
            f"{self.hits:.1%} of the rows' own tokens are among the likeliest"
        ]
        if self.shift:
            lines.append("an entry is about the token behind its position: read so")
        lines += [f"rejected: {count} rows, {reason}" for reason, count in self.rejected.items()]
        return "\n".join([*lines, f"use it as teacher: {{cache: {self.folder}}}"])

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "folder": str(self.folder), "rejected": dict(self.rejected)}


def import_rows(file: Path, to: Path, *, tokenizer: str, teacher: str) -> Imported:
    """Write the rows of a file as a cache in the new folder `to`.

    Raises:
        DataError: no row fits, or entries are not about the tokens that stand there.
    """
    if to.exists():
        raise DataError("exists already.", path=str(to), fix="Name a new folder.")
    reader = _reader(tokenizer)
    rows, rejected = list[ImportedRow](), list[dict[str, str]]()
    for record in read_files([str(file)], keep_nan=True):
        try:
            if record.value is None:
                if record.problem:
                    raise DataError(record.problem)
                continue
            rows.append(read_row(record.source, record.value, reader))
        except DataError as error:
            rejected.append({"row": record.source, "reason": error.message.rstrip(".")})
    if not rows:
        reason = f": {rejected[0]['reason']}" if rejected else ""
        raise DataError(
            f"none of its {len(rejected)} rows can be used{reason}.",
            path=str(file),
            fix="Look at its first row.",
        )
    shift, share = _alignment(rows, file)
    work = to.with_name(f".{to.name}.importing")
    discard(work)  # of an import that was killed
    sizes = [len(entry) for row in rows for entry in row.at(shift) if entry is not None]
    setting = {"threshold": 0.0, "most": max(sizes), "bits": 32}
    fingerprint = f"{teacher} imported {_identity(rows, shift)[:16]}"
    facts = {"teacher": teacher, "tokenizer": vocabulary_hash(reader), "source": file.name}
    header = Header("topk", setting, fingerprint, reader.vocabulary.size, facts)
    probes = list[dict[str, Any]]()
    with Writer(work / SIGNALS, header) as writer:
        for start in range(0, len(rows), BLOCK):
            block = []
            for row in rows[start : start + BLOCK]:
                try:
                    block.append((cache_key(row.ids, row.scored), _signal(row, shift)))
                    probes.append({"ids": row.ids, "scored": row.scored})
                except (DataError, SignalError) as error:
                    rejected.append({"row": row.where, "reason": error.message.rstrip(".")})
            writer.add_block(block)
            del probes[PROBE_ROWS:]
        stats = writer.finish()
    if not stats["examples"]:
        raise DataError(f"none of its rows can be used: {rejected[0]['reason']}.", path=str(file))
    reader.tokenizer.save_pretrained(work / TOKENIZER)
    write_sealed(work / PROBES, {"rows": probes})
    _describe(work, reader, fingerprint, teacher)
    write_lines(work / REJECTED, rejected)
    move_into_place(work, to)
    reasons = Counter(one["reason"] for one in rejected)
    return Imported(to, stats["examples"], stats["tokens"], reasons, share, shift, max(sizes), min(sizes))


def _identity(rows: Sequence[ImportedRow], shift: int) -> str:
    """What the rows say: students that were trained on other log-probabilities of the same ids are others."""
    digest = hashlib.sha256(f"{shift}".encode())
    for row in rows:
        entries = [entry and sorted(entry.items()) for entry in row.entries]
        digest.update(json.dumps([row.ids, row.scored, entries]).encode())
    return digest.hexdigest()


def _reader(tokenizer: str) -> Reader:
    loaded = loading.load_tokenizer(loading.find_source(tokenizer, base=Path.cwd()))
    return reader_of(loaded, Templater(loaded))


def _describe(folder: Path, reader: Reader, fingerprint: str, teacher: str) -> None:
    write_lines(folder / WRITTEN, [])
    write_lines(folder / GREEDY, [])
    about = {
        "name": teacher, "key": key_of("import", {"teacher": fingerprint}), "fingerprint": fingerprint,
        "dtype": "float32", "layers": None, "context_length": None, "number_format": None, "licence": "",
        "sizes": {}, "end_ids": list(reader.stop_ids), "provides": {SIGNALS: ["topk"]}, "writes": None,
        "answered": 0, "writing_seconds": 0.0, "prepared": {"tokenizer": tokenizer_identity(reader)},
    }  # fmt: skip
    write_sealed(folder / ABOUT, about)


def _alignment(rows: Sequence[ImportedRow], file: Path) -> tuple[int, float]:
    """By how many places entries stand before the token that they are about, and the share of own tokens in them.

    Raises:
        DataError: no alignment is clearly right.
    """
    shares = {}
    for shift in (-1, 0, 1):
        hits, count = map(sum, zip(*(row.hits(shift) for row in rows), strict=True))
        shares[shift] = hits / max(1, count)
    # Entries of all tokens may be numbered by the token that they are about, or by the one before it.
    every = all(len(row.entries) == len(row.ids) for row in rows)
    best = max((0, -1) if every else (0,), key=lambda shift: shares[shift])
    others = max(share for shift, share in shares.items() if shift != best)
    if shares[best] < LEAST_HITS or shares[best] < CLEARER * others:
        said = ", ".join(
            f"{share:.0%} when read {shift:+d} places off" for shift, share in shares.items() if shift
        )
        raise DataError(
            f"its log-probabilities are not of the tokens that stand there: {shares[0]:.0%} of the rows' own "
            f"tokens are among the likeliest ids of their position, {said}.",
            path=str(file),
            fix="Write an entry for each scored token, of the distribution that this token was drawn from.",
        )
    return best, shares[best]


def _signal(row: ImportedRow, shift: int) -> TopK:
    """The row's scored positions.

    Raises:
        DataError: one has no entry.
    """
    entries = row.at(shift)
    if any(entry is None for entry in entries):
        raise DataError("has a scored token without log-probabilities.")
    width = max(len(entry) for entry in entries if entry is not None)
    ids = torch.full((len(entries), width), -1)
    lp = torch.full((len(entries), width), NEG_INF)
    for place, entry in enumerate(entries):
        ranked = sorted((entry or {}).items(), key=lambda one: -one[1])
        ids[place, : len(ranked)] = torch.tensor([token for token, _ in ranked])
        lp[place, : len(ranked)] = torch.tensor([min(value, 0.0) for _, value in ranked])
    return TopK(ids, lp).checked()
