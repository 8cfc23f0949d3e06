"""Write down what the teacher says of rows, and everything else that is needed once it is gone.

The folder holds the cache of the rows that are trained and validated on (`signals`), that of the rows to measure on
(`heldout`, always of whole distributions), the tokenizer, the teacher's answers, and what is known of it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from potstill.cache.header import Header
from potstill.cache.reader import Cache
from potstill.devices import ranks
from potstill.objectives.token import Divergence
from potstill.recipe.specs import seconds_of
from potstill.stages import _kept, _leaving, _measure, _rows, _signals
from potstill.stages._artifact import produce
from potstill.stages._captured import vocabulary_hash
from potstill.stages._context import Context, State
from potstill.stages._entries import Entries
from potstill.stages._kept import Kept
from potstill.stages._later import Needs, asked_later, compared_of, cuts, needs_of
from potstill.stages._mending import (
    ALIKE,
    KEPT,
    LATE,
    PLACES,
    STAGE,
    begin_repair,
    end_repair,
    noted,
    take_over,
)
from potstill.stages._passes import pass_through
from potstill.stages._plan import Plan, drawn_order, each_once, plan_of
from potstill.stages._states import dtype_of, kept_by
from potstill.stages._vectors import FrozenHead, frozen_head
from potstill.stages._workers import require_workers, workers_of
from potstill.stages._writing import Writing, in_bytes
from potstill.stages.capture import Capture
from potstill.store.artifacts import Artifact, key_of
from potstill.store.disk import read_sealed, write_sealed, write_text
from potstill.teachers.cached import HELDOUT, SIGNALS
from potstill.types import Example

VERSION = 1  # raised when a capture changes its meaning
WHOLE = 0, 1  # the share of a process alone
SAMPLE_TOKENS = 512  # scored tokens of the rows on which settings are measured


def capture(spec: Capture, state: State, context: Context) -> Artifact:
    """The cache of every row that later stages train on, validate on or measure on.

    Raises:
        MachineError: the disk is too small; says by how many bytes. What is written stays.
    """
    return made(job_of(spec, state, context))


def made(job: Job) -> Artifact:
    """The artifact of a capture."""
    return produce(job.context, STAGE, job.spec.name, job.inputs, job.build, together=True, goes_on=PLACES)


def repaired(spec: Capture, state: State, context: Context) -> tuple[Artifact, list[str]]:
    """A finished capture whose every byte is right, and what was damaged: the rows of damaged blocks alone are asked
    about again, and the files are those of an undisturbed one. One that is not finished is finished.

    Rows that a deadline left out stay left out (see `_mending`). A repair that was stopped is gone on with.

    Raises:
        MachineError: the disk is too small.
    """
    job = job_of(spec, state, context)
    damage = begin_repair(job)
    artifact = made(job)
    end_repair(job)
    return artifact, damage


def capture_share(spec: Capture, state: State, context: Context, share: tuple[int, int]) -> bool:
    """Write the share (i, n) of the parts, beside other processes that write theirs; whether all of it is written.

    The stage itself, run when all are done, finds them and finishes the cache; where a share came to its deadline, it
    asks about no further row. Of a finished cache nothing is written.

    Raises:
        ArtifactError: the finished cache is damaged.
    """
    job = job_of(spec, state, context)
    if context.store.find(STAGE, job.key) is not None:
        return True
    folder = context.store.work(STAGE, job.key)
    take_over(job, folder)
    late = folder / f"{LATE}{share[0]}"
    whole = job.write(folder, share).whole
    if whole:
        late.unlink(missing_ok=True)
    else:
        write_text(late, "")
    return whole


def job_of(spec: Capture, state: State, context: Context) -> Job:
    """The rows and prompts that a capture asks its teacher about."""
    training, seed = _rows.training(state, context), context.setup.data_seed
    # Validation rows come first: what a deadline cuts off is training.
    validation = drawn_order(each_once(training.validation), seed)
    rows = each_once([*validation, *drawn_order(each_once(training.train), seed)])
    heldout = drawn_order(each_once(_rows.examples(state, context, "heldout").examples), seed)
    needs = needs_of(context.stages or (spec,), spec.name, partial=cuts(context.setup))
    return Job(spec, state, context, tuple(rows), tuple(heldout), needs)


@dataclass(frozen=True)
class Written:
    """What a process has written, or found: the plan of each cache, and whether all of it is there."""

    kept: Kept
    plans: Mapping[str, Plan]
    whole: bool


@dataclass(frozen=True)
class Job:
    """One capture: its rows in the order in which they are asked about."""

    spec: Capture
    state: State
    context: Context
    rows: tuple[Example, ...]
    heldout: tuple[Example, ...]
    needs: Needs

    @property
    def teacher(self) -> Any:
        return self.context.setup.teacher

    @property
    def device(self) -> torch.device:
        """Where signals are read."""
        return self.context.setup.device

    @property
    def key(self) -> str:
        return key_of(STAGE, self.inputs)

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """What the folder depends on."""
        answers, asked = self.state.answers, self.asked
        inputs = {
            "version": VERSION,
            "teacher": self.teacher.fingerprint,
            "settings": self.spec.model_dump(mode="json", exclude={"verb", "name", "deadline", "engine"}),
            "needs": asdict(self.needs),
            "rows": [_row(row) for row in self.rows],
            "heldout": [_row(row) for row in self.heldout],
            "asked": asked and [[question.teacher_prompt_ids for question in asked[0]], asked[1]],
            "answers": None if answers is None else answers.key,
            **({} if self.student is None else {"student_head": self.student.name}),
        }
        return {**inputs, ALIKE: key_of(STAGE, inputs), "deadline": self.spec.deadline}

    @cached_property
    def asked(self) -> tuple[Sequence[Any], int] | None:
        """The held-out prompts that the teacher answers in text, and the most tokens of an answer."""
        return asked_later(self.context, self.spec.name, self.state) if self.heldout else None

    def build(self, folder: Path) -> Mapping[str, Any]:
        """Write what `folder` does not hold yet."""
        ranks.by_first(lambda: take_over(self, folder))
        written = self.write(folder)
        greedy = self._greedy()
        facts = ranks.by_first(lambda: _leaving.finish(self, folder, written, greedy))
        self.teacher.close()
        return facts

    def write(self, folder: Path, share: tuple[int, int] = WHOLE) -> Written:
        """Ask about the rows of this process's parts that are not there yet; all processes call it."""
        require_workers(self.spec, self.teacher)
        if hasattr(self.teacher, "prepare"):
            pass_through(self, share)
        ends, damaged = self._ends(folder, share), ranks.by_first(lambda: noted(folder))
        left_out = frozenset[str]() if damaged is None else damaged.left_out or frozenset()
        if damaged is not None and damaged.left_out is not None:
            ends = None  # what was captured comes back, however long that takes
        kept = self._kept(folder)
        caches = {HELDOUT: (self.heldout, kept.whole(self.dtype)), SIGNALS: (self.rows, kept)}
        plans = {place: self._plan(rows, how) for place, (rows, how) in caches.items()}
        plans[SIGNALS] = plans[SIGNALS].without(left_out)
        self._say(kept, sum(how.size(plans[place].count) for place, (_, how) in caches.items()))
        whole, mending = True, damaged is not None
        with workers_of(self) as workers:
            for place, (_, how) in caches.items():
                writing = Writing(self, folder / place, self.header(how), plans[place], how.bytes_per_token)
                # Without all of its rows an evaluation says nothing, and they are few.
                end = None if place == HELDOUT else ends
                whole = writing.go(share, end, mending=mending, workers=workers) and whole
        self.context.stop_together()
        return Written(kept, plans, not ranks.anyone(not whole))

    def _ends(self, folder: Path, share: tuple[int, int]) -> float | None:
        """The time of `time.monotonic` at which this process's deadline is; it is over where that of a share was."""
        if share == WHOLE and ranks.by_first(lambda: any(folder.glob(f"{LATE}*"))):
            return -math.inf
        return None if self.spec.deadline is None else time.monotonic() + seconds_of(self.spec.deadline)

    @cached_property
    def student(self) -> FrozenHead | None:
        """The student's head, where later stages leave it as it is and vectors of it may be kept."""
        wanted = self.spec.signal == "kl_vector"
        chosen = self.spec.signal in ("auto", "smallest") and bool(self.divergences)
        if "kl_vector" not in self.needs.kinds or not (wanted or chosen):
            return None
        return frozen_head(self.state, self.context, wanted=wanted)

    @property
    def divergences(self) -> Sequence[Divergence]:
        """What later stages compare, where they can read anything but whole distributions."""
        return compared_of(self.context.stages, self.spec.name, self.needs)

    @property
    def dtype(self) -> str:
        """The number format in which the teacher computes, and in which its hidden states are read again."""
        return dtype_of(self.teacher)

    @cached_property
    def kept_states(self) -> Cache | None:
        """What the teacher drew the rows' answers from, where it was kept."""
        return kept_by(self.state.written, self.teacher)

    @cached_property
    def entries(self) -> Entries:
        """Who is asked about rows in this process."""
        padding = self.context.setup.readers.padding
        return Entries(self.teacher, self.device, padding, self.student, self.kept_states)

    def _plan(self, rows: Sequence[Example], kept: Kept) -> Plan:
        assert self.spec.batch_tokens != "auto"
        return plan_of(
            rows,
            batch_tokens=self.spec.batch_tokens,
            bytes_per_token=kept.bytes_per_token,
            part_bytes=self.spec.shard_bytes,
        )

    def header(self, kept: Kept) -> Header:
        reader = self.context.setup.readers.teacher_reader
        facts = {
            "teacher": self.teacher.name,
            "template": reader.templater.fingerprint[:16],
            "tokenizer": vocabulary_hash(reader),
            "measured": dict(kept.measured),
            "why": kept.why,
        }
        return Header(kept.kind, kept.setting, self.teacher.fingerprint, reader.vocabulary.size, facts)

    def _kept(self, folder: Path) -> Kept:
        """What is kept of a position: measured on the first rows, once for all processes and interruptions."""
        file = folder / KEPT
        if not ranks.by_first(file.is_file):
            few = _signals.sample_of(self, SAMPLE_TOKENS)
            signals = [signal for row in few for _, signal in self.entries.ask([row])]
            ranks.by_first(lambda: write_sealed(file, asdict(_kept.choose(self, signals))))
        return ranks.by_first(lambda: Kept(**read_sealed(file)))

    def _say(self, kept: Kept, size: float) -> None:
        """What is to be written, before anything is."""
        every = (*self.rows, *self.heldout)
        rows, count = len(every), sum(row.count for row in every)
        if self.kept_states is not None:
            self.context.console.say(f"{self.spec.name}: {_signals.words_of(self, kept.kind)}")
        self.context.console.say(
            f"{self.spec.name}: {rows} rows with {count} scored tokens, {in_bytes(size)} in all; of a token "
            f"{kept.words} ({kept.why})"
        )

    def _greedy(self) -> Artifact | None:
        """The teacher's answers to held-out prompts, which a later evaluation finds in the store as well."""
        if self.asked is None or not hasattr(self.teacher, "loaded"):
            return None
        reader, name = self.context.setup.readers.teacher_reader, self.spec.name
        teacher = self.teacher
        model = _measure.Model(name, "teacher", teacher.fingerprint, teacher.loaded, reader, self.context)
        return _measure.answers_of(model, *self.asked)[1]


def _row(row: Example) -> list[Any]:
    """What identifies a row, and the teachers that are asked about it where there are several."""
    return [row.input_ids, row.scored, *([] if row.domain is None else [row.domain])]
