"""Keep the likeliest tokens that a served teacher states beside those of its answers, and leave them as a capture.

They stand with the answers, by conversation and draw. The signals of the rows that are trained on are a folder of
captured signals like any other, so training needs no teacher. Where ids are not certain the text is the signal: all
mass is on its own tokens, and forward KL is the cross-entropy of the text.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from potstill.cache.header import Header
from potstill.cache.keys import key_of as cache_key
from potstill.cache.reader import Cache
from potstill.cache.writer import Writer
from potstill.filters._patterns import masked
from potstill.generate.alternatives import Prover, Uncertain, read
from potstill.generate.served import Given
from potstill.signals.topk import TopK
from potstill.stages import _rows
from potstill.stages._artifact import produce
from potstill.stages._captured import prepared
from potstill.stages._context import Context, State
from potstill.stages._conversations import Draw
from potstill.stages._plan import each_once
from potstill.stages._rows import ANSWERS
from potstill.store.artifacts import Artifact, key_of
from potstill.store.disk import write_sealed
from potstill.store.lines import read_lines, write_lines
from potstill.teachers.cached import (
    ABOUT,
    GREEDY,
    PROBE_ROWS,
    PROBES,
    SIGNALS,
    TOKENIZER,
    WRITTEN,
    keys_of,
    reading_of,
)
from potstill.types import Example

STAGE = "signals"
VERSION = 1  # raised when signals change their meaning
KEPT = "alternatives"
BLOCK = 64  # answers or rows
SAMPLES, SHOWN = 3, 200  # of the answers refused for a reason, and characters of one
OTHER_SOURCE, OTHER_IDS = "rows of another source", "the student reads the answer as other ids"
UNCERTAIN = "ids that are not certain"


def draw_key(prompt: str, draw: int) -> bytes:
    """The key of an answer's alternatives: by its conversation and the number of the draw."""
    return hashlib.blake2b(f"{prompt} {draw}".encode(), digest_size=16).digest()


class Alternatives:
    """Writes the alternatives of answers as they are read, and counts those whose ids are not certain.

    Args:
        folder: of the answers.
        teacher: with the reader of its tokenizer in `words`.
        prompts: what identifies each conversation.
    """

    def __init__(self, folder: Path, teacher: Any, prompts: Sequence[str]) -> None:
        self._folder, self._teacher, self._prompts = folder / KEPT, teacher, prompts
        self._writer: Writer | None = None
        self._waiting = list[tuple[bytes, TopK]]()
        self._refused: Counter[str] = Counter()
        self._samples: dict[str, list[dict[str, Any]]] = {}
        self.ids: dict[Draw, tuple[int, ...]] = {}  # of the answers that are certain
        self._prover = None if teacher.words is None else Prover(teacher.words)
        self._stated = 0

    def __enter__(self) -> Alternatives:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def keep(self, given: Given, reply: bytes) -> None:
        """Keep what a reply states beside the answer that was read from it."""
        assert self._prover is not None
        try:
            proven = self._prover.prove(read(reply), given.text)
        except Uncertain as error:
            reason = str(error)
            self._refused[kind_of(reason)] += 1
            some = self._samples.setdefault(kind_of(reason), [])
            if len(some) < SAMPLES:
                some.append({"reason": reason, "text": masked(given.text)[:SHOWN]})
            return
        self.ids[given.index, given.sample] = proven.ids
        self._stated += int((proven.signal.ids >= 0).sum())
        self._waiting.append((draw_key(self._prompts[given.index], given.sample), proven.signal))
        if len(self._waiting) >= BLOCK:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        if self._writer is None:
            self._writer = Writer(self._folder, header_of(self._teacher))
        self._writer.add_block(self._waiting)
        self._waiting = []

    def finish(self, name: str, context: Context) -> dict[str, Any]:
        """Write the index and say what is kept; the facts of it."""
        self._flush()
        if self._writer is not None:
            self._writer.finish()
        tokens, kept = sum(map(len, self.ids.values())), len(self.ids)
        of = kept + self._refused.total()
        each = f", {self._stated / tokens:.1f} ids a token" if tokens else ""
        context.console.say(f"{name}: alternatives with certain ids are kept of {kept} of {of} answers{each}")
        if self._refused:
            words = ", ".join(f"{count} {reason}" for reason, count in self._refused.most_common())
            context.console.warn(f"{name}: of {of - kept} answers the text alone is used: {words}")
        return {
            "alternatives": {
                "answers": of,
                "kept": kept,
                "tokens": tokens,
                "ids": self._stated,
                "refused": dict(self._refused),
                "samples": self._samples,
            }
        }


def kind_of(reason: str) -> str:
    """A reason without what it says of one answer."""
    return reason.partition(" (")[0]


def header_of(teacher: Any) -> Header:
    """The description of a cache of alternatives: as many ids as come, in floats."""
    setting = {"threshold": 0.0, "most": 255, "bits": 32}
    return Header("topk", setting, teacher.fingerprint, teacher.words.vocabulary.size)


def signals_of(name: str, state: State, context: Context) -> Artifact:
    """The signals of all rows that stages behind `generate` train and validate on, as a captured teacher reads them."""
    rows = _rows.training(state, context)
    answered = [
        row for split in ("train", "validation") for row in _rows.examples(state, context, split).examples
    ]
    examples = each_once([*rows.validation, *rows.train])
    assert state.written is not None
    teacher: Any = context.setup.teacher
    inputs = {
        "version": VERSION,
        "teacher": teacher.fingerprint,
        "written": state.written.key,  # of this teacher, and the tokenizer that proved its ids
        "rows": [[row.id, row.input_ids, row.scored] for row in examples],
        "answered": [row.id for row in answered],  # filters and tasks leave answers out
    }
    job = Signals(name, examples, answered, state.written, context, key_of(STAGE, inputs))
    return produce(context, STAGE, f"{name}, signals", inputs, job.build)


class Signals:
    """Signals on their way from the alternatives of answers to a folder of captured ones.

    Args:
        examples: all rows that are trained and validated on, each once.
        answered: those that hold answers of this teacher; rows that are mixed in may have ids like theirs.
    """

    def __init__(
        self,
        name: str,
        examples: Sequence[Example],
        answered: Sequence[Example],
        written: Artifact,
        context: Context,
        key: str,
    ) -> None:
        self._name, self._examples, self._context, self._key = name, examples, context, key
        teacher: Any = context.setup.teacher
        self._teacher, self._prover = teacher, Prover(teacher.words)
        place = written.path / KEPT
        self._kept = Cache.open(place) if place.is_dir() else None
        lines = {(line["row_id"], line["sample"]): line for line in read_lines(written.path / ANSWERS)}
        self._lines = defaultdict[bytes, list[dict[str, Any]]](list)
        for row in answered:
            (read,) = keys_of([reading_of(row)])
            self._lines[read].append(lines[row.row_id, _sample(row)])

    def build(self, folder: Path) -> Mapping[str, Any]:
        """Write the signal of every row, and all that a captured teacher is asked for."""
        as_text: Counter[str] = Counter()
        probes: list[dict[str, Any]] = []
        with Writer(folder / SIGNALS, header_of(self._teacher)) as writer:
            for start in range(0, len(self._examples), BLOCK):
                block = []
                for row in self._examples[start : start + BLOCK]:
                    key = cache_key(row.input_ids, row.scored)
                    signal, why, own = self._best(row, self._lines.get(key, ()))
                    as_text.update([why] if why else [])
                    if own and len(probes) < PROBE_ROWS:
                        probes.append({"ids": row.input_ids, "scored": row.scored, "own": own})
                    block.append((key, signal))
                writer.add_block(block)
            stats = writer.finish()
        write_sealed(folder / PROBES, {"rows": probes})
        self._describe(folder)
        of, name = len(self._examples), self._name
        self._context.console.say(
            f"{name}: signals of {of - as_text.total()} of {of} rows are the teacher's own"
        )
        if as_text:
            words = ", ".join(f"{count} {reason}" for reason, count in as_text.most_common())
            self._context.console.warn(
                f"{name}: {as_text.total()} of {of} rows are trained on as text, as hard labels: {words}"
            )
        return {"rows": of, "tokens": stats["tokens"], "as_text": dict(as_text)}

    def _best(self, row: Example, lines: Sequence[Mapping[str, Any]]) -> tuple[TopK, str, int]:
        """The signal of a row's scored positions, why it is the text's alone, "" where it is not, and of how many
        positions it is the teacher's own. Of several draws of one text the first serves whose ids are certain."""
        targets = [index for index, scored in zip(row.input_ids, row.scored, strict=True) if scored]
        why = OTHER_SOURCE
        for line in lines:
            signal, why, own = self._signal(targets, line)
            if not why:
                return signal, "", own
        return hard_labels(targets), why, 0

    def _signal(self, targets: Sequence[int], line: Mapping[str, Any]) -> tuple[TopK, str, int]:
        """The signal that an answer gives to its own targets, as `_best` says it."""
        text = hard_labels(targets)
        if not line["ids"]:
            return text, UNCERTAIN, 0
        own = self._prover.own(line["ids"])
        if targets[: len(own)] != list(own):
            return text, OTHER_IDS, 0
        assert self._kept is not None
        # The end of the turn is the student's; it is the teacher's where both end by one token.
        known = next(
            (
                place
                for place, (target, index) in enumerate(zip(targets, line["ids"], strict=False))
                if target != index
            ),
            min(len(targets), len(line["ids"])),
        )
        stored: Any = self._kept.batch([draw_key(line["prompt"], line["draw"])])
        return _joined(stored.at(torch.arange(known)), text.at(slice(known, None))), "", known

    def _describe(self, folder: Path) -> None:
        """Write what a captured teacher says of itself."""
        teacher = self._teacher
        teacher.words.tokenizer.save_pretrained(folder / TOKENIZER)
        for file in (WRITTEN, GREEDY):
            write_lines(folder / file, [])
        about = {
            "name": teacher.name, "key": self._key, "fingerprint": teacher.fingerprint, "dtype": "float32",
            "layers": None, "context_length": None, "number_format": None, "licence": teacher.licence, "sizes": {},
            "end_ids": list(teacher.words.stop_ids), "provides": {SIGNALS: ["topk"]}, "writes": None, "answered": 0,
            "writing_seconds": 0.0, "prepared": prepared(self._context.setup),
        }  # fmt: skip
        write_sealed(folder / ABOUT, about)


def hard_labels(targets: Sequence[int]) -> TopK:
    """The text itself as a signal: all mass on its own tokens."""
    return TopK(torch.tensor(targets, dtype=torch.long).unsqueeze(1), torch.zeros(len(targets), 1))


def _joined(first: Any, second: TopK) -> TopK:
    """The positions of two signals, one behind the other."""
    width = max(first.ids.shape[1], second.ids.shape[1])
    parts = [
        (
            torch.nn.functional.pad(one.ids, (0, width - one.ids.shape[1]), value=-1),
            torch.nn.functional.pad(one.lp, (0, width - one.lp.shape[1]), value=-torch.inf),
        )
        for one in (first, second)
    ]
    ids, lp = (torch.cat(columns) for columns in zip(*parts, strict=True))
    return TopK(ids, lp)


def _sample(row: Example) -> int:
    """Which answer to its row an example holds."""
    return 0 if row.part_of is None else int(row.id.rpartition("#")[2])
