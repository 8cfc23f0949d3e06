"""Write down what the teacher says of rows, and everything else that is needed once it is gone.

The folder holds the cache of the rows that are trained and validated on (`signals`), that of the rows to measure on
(`heldout`, always of whole distributions), the tokenizer, the teacher's answers, and what is known of it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch

from potstill.cache.header import Header
from potstill.cache.keys import key_of as cache_key
from potstill.cache.reader import Cache
from potstill.data.batch import collate
from potstill.devices import ranks
from potstill.errors import RecipeError
from potstill.objectives.token import Divergence
from potstill.recipe.specs import seconds_of
from potstill.stages import _kept, _leaving, _measure, _rows
from potstill.stages._artifact import produce
from potstill.stages._captured import vocabulary_hash
from potstill.stages._context import Context, State
from potstill.stages._kept import Kept
from potstill.stages._later import Needs, asked_later, divergences_of, needs_of
from potstill.stages._plan import Plan, drawn_order, each_once, plan_of
from potstill.stages._states import dtype_of, kept_by
from potstill.stages._writing import Writing, in_bytes
from potstill.stages.capture import Capture
from potstill.store.artifacts import Artifact, key_of
from potstill.store.disk import read_sealed, write_sealed
from potstill.teachers._shared import shares_prompts
from potstill.teachers.cached import HELDOUT, SIGNALS
from potstill.types import Example

VERSION = 1  # raised when a capture changes its meaning
STAGE = "capture"
ALIKE = "alike"  # all that a capture depends on, but for its deadline
KEPT = ".kept.json"
THOUSAND = 1000  # parts of a progress whose whole is not known beforehand
SAMPLE_TOKENS = 512  # scored tokens of the rows on which settings are measured


def capture(spec: Capture, state: State, context: Context) -> Artifact:
    """The cache of every row that later stages train on, validate on or measure on.

    Raises:
        MachineError: the disk is too small; says by how many bytes. What is written stays.
    """
    return made(job_of(spec, state, context))


def made(job: Job) -> Artifact:
    """The artifact of a capture."""
    places = SIGNALS, HELDOUT
    return produce(job.context, STAGE, job.spec.name, job.inputs, job.build, together=True, goes_on=places)


def capture_share(spec: Capture, state: State, context: Context, share: tuple[int, int]) -> bool:
    """Write the share (i, n) of the parts, beside other processes that write theirs; whether all of it is written.

    The stage itself, run when all are done, finds them and finishes the cache.
    """
    job = job_of(spec, state, context)
    return job.write(context.store.work(STAGE, job.key), share).whole


def job_of(spec: Capture, state: State, context: Context) -> Job:
    """The rows and prompts that a capture asks its teacher about."""
    training, seed = _rows.training(state, context), context.setup.data_seed
    # Validation rows come first: what a deadline cuts off is training.
    validation = drawn_order(each_once(training.validation), seed)
    rows = each_once([*validation, *drawn_order(each_once(training.train), seed)])
    heldout = drawn_order(each_once(_rows.examples(state, context, "heldout").examples), seed)
    needs = needs_of(context.stages or (spec,), spec.name, partial=context.setup.readers.partial)
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
            "settings": self.spec.model_dump(mode="json", exclude={"verb", "name", "deadline"}),
            "needs": asdict(self.needs),
            "rows": [_row(row) for row in self.rows],
            "heldout": [_row(row) for row in self.heldout],
            "asked": asked and [[question.teacher_prompt_ids for question in asked[0]], asked[1]],
            "answers": None if answers is None else answers.key,
        }
        return {**inputs, ALIKE: key_of(STAGE, inputs), "deadline": self.spec.deadline}

    @cached_property
    def asked(self) -> tuple[Sequence[Any], int] | None:
        """The held-out prompts that the teacher answers in text, and the most tokens of an answer."""
        return asked_later(self.context, self.spec.name, self.state) if self.heldout else None

    def build(self, folder: Path) -> Mapping[str, Any]:
        """Write what `folder` does not hold yet."""
        ranks.by_first(lambda: self._take_over(folder))
        written = self.write(folder)
        greedy = self._greedy()
        facts = ranks.by_first(lambda: _leaving.finish(self, folder, written, greedy))
        self.teacher.close()
        return facts

    def write(self, folder: Path, share: tuple[int, int] = (0, 1)) -> Written:
        """Ask about the rows of this process's parts that are not there yet; all processes call it."""
        if hasattr(self.teacher, "prepare"):
            self._require_alone(share)
            self._prepare()
        ends = None if self.spec.deadline is None else time.monotonic() + seconds_of(self.spec.deadline)
        kept = self._kept(folder)
        caches = {HELDOUT: (self.heldout, kept.whole(self.dtype)), SIGNALS: (self.rows, kept)}
        plans = {place: self._plan(rows, how) for place, (rows, how) in caches.items()}
        self._say(kept, sum(how.size(plans[place].count) for place, (_, how) in caches.items()))
        whole = True
        for place, (_, how) in caches.items():
            writing = Writing(self, folder / place, self.header(how), plans[place], how.bytes_per_token)
            # Without all of its rows an evaluation says nothing, and they are few.
            whole = writing.go(share, None if place == HELDOUT else ends) and whole
        self.context.stop_together()
        return Written(kept, plans, not ranks.anyone(not whole))

    def _take_over(self, folder: Path) -> None:
        """Begin with what a capture with another deadline has written: nobody is asked about a row twice."""
        if (folder / KEPT).is_file():
            return
        earlier = [*self.context.store.alike(STAGE, ALIKE, self.inputs[ALIKE])]
        if not earlier:
            return
        most = max(earlier, key=lambda artifact: artifact.facts["rows"])
        for place in (SIGNALS, HELDOUT):
            shutil.copytree(most.path / place, folder / place, dirs_exist_ok=True)
        # Last: a kill before it copies all of it again.
        write_sealed(folder / KEPT, most.facts["kept"])
        rows = f"{most.facts['rows']} of {most.facts['planned_rows']} rows"
        self.context.console.say(f"{self.spec.name}: goes on with {rows}, captured with another deadline")

    @property
    def divergences(self) -> Sequence[Divergence]:
        """What later stages compare, where they can read anything but whole distributions."""
        whole = not any(kind in self.needs.kinds for kind in ("topk", "sampled", "topk_sampled"))
        return () if whole else divergences_of(self.context.stages, self.spec.name)

    @property
    def dtype(self) -> str:
        """The number format in which the teacher computes, and in which its hidden states are read again."""
        return dtype_of(self.teacher)

    @cached_property
    def kept_states(self) -> Cache | None:
        """What the teacher's states were as it wrote the rows' answers, where they were kept."""
        return kept_by(self.state.written, self.teacher)

    def ask(self, rows: Sequence[Example]) -> Iterator[tuple[bytes, Any]]:
        """The key of each row and the teacher's signal; of one whose states were kept as it was written nobody asks."""
        setup, states = self.context.setup, self.kept_states
        keys = [cache_key(row.input_ids, row.scored) for row in rows]
        new = [row for row, key in zip(rows, keys, strict=True) if states is None or key not in states]
        said = iter(self._said(new, setup.readers.padding))
        for key in keys:
            yield key, states.batch([key]) if states is not None and key in states else next(said)

    def _said(self, rows: Sequence[Example], pad_id: int) -> list[Any]:
        """The signal of each row, in one pass; a prompt that rows share is read once."""
        teacher = self.teacher
        whole = hasattr(teacher, "signals") and not getattr(teacher, "sharded", False)
        if whole and shares_prompts(rows):
            return teacher.signals(rows, pad_id)
        if not rows:
            return []
        signal = teacher.signal(collate(rows, pad_id=pad_id).to(self.device))
        ends = [*accumulate((row.count for row in rows), initial=0)]
        return [signal.at(torch.arange(begin, end, device=self.device)) for begin, end in pairwise(ends)]

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
            few, count = list[Example](), 0
            for row in self.rows or self.heldout:
                if count >= SAMPLE_TOKENS:
                    break
                few.append(row)
                count += row.count
            signals = [signal for row in few for _, signal in self.ask([row])]
            ranks.by_first(lambda: write_sealed(file, asdict(_kept.choose(self, signals))))
        return ranks.by_first(lambda: Kept(**read_sealed(file)))

    def _say(self, kept: Kept, size: float) -> None:
        """What is to be written, before anything is."""
        rows, count = (
            len(self.rows) + len(self.heldout),
            sum(row.count for row in (*self.rows, *self.heldout)),
        )
        self.context.console.say(
            f"{self.spec.name}: {rows} rows with {count} scored tokens, {in_bytes(size)} in all; of a token "
            f"{kept.words} ({kept.why})"
        )

    def _prepare(self) -> None:
        """Let a teacher that is read block by block pass all rows through it."""
        label = f"{self.spec.name}: rows pass {self.teacher.name}, block by block"
        with self.context.console.bar(label, THOUSAND) as bar:
            self.teacher.prepare(
                [*self.heldout, *self.rows],
                before_batch=self.context.stop_if_signalled,
                on_progress=lambda done, total: bar.update(done * THOUSAND // total),
            )

    def _require_alone(self, share: tuple[int, int]) -> None:
        """Refuse several processes for a teacher that passes all rows through one block before it reads the next.

        Raises:
            RecipeError: there are several.
        """
        if share[1] > 1 or ranks.world() > 1:
            raise RecipeError(
                f"cannot be shared: {self.teacher.name} is read block by block, once for all rows.",
                path=f"stages.{self.spec.name}",
                fix="Capture it in one process, without --shard.",
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
