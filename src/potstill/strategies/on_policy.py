"""Train on what the student writes itself, under the teacher's eye."""

from __future__ import annotations

import logging
import random
import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import Any, Literal

from potstill.data.batch import collate
from potstill.devices import ranks
from potstill.generate.health import health
from potstill.generate.sampling import Sampling
from potstill.strategies import _refusals, _replay, _rollouts
from potstill.strategies._adaptive import Rising
from potstill.strategies._replay import Held, Replay
from potstill.types import Batch, Example, Sampler, Strategy

LEARNING_RATE = (1e-5, "text that the student writes changes with every step; MiniLLM's paper takes 5e-6")
STUDENT_WRITES = "on_policy_fraction"
NEW_TOKENS = "max_new_tokens"
PASSES = "inner_epochs"
STUDENT_WRITES_MORE = "adaptive"
KEEPS_ROWS = "keep_rows"

log = logging.getLogger("potstill")


@dataclass
class OnPolicy(Strategy):
    """Steps on the rows as they are, on new rollouts, or on earlier ones; `build` describes the options.

    Every decision depends on the seed and the number of the step alone, so that all processes take it alike.
    """

    share: Rising
    sampling: Sampling
    samples: int
    teacher_share: float
    proposals: int
    replay: Replay | None
    refresh: float | None  # None falls from 1 to 0
    collect: int
    inner_epochs: int
    keep_rows: bool = False
    calls: int = 0
    version: int = 0  # optimizer steps of the student
    collected: list[list[Held]] = field(default_factory=list)  # one list a step
    queue: deque[list[Held]] = field(default_factory=deque)  # steps that are still to be trained
    warned: bool = False  # of empty answers
    current: frozenset[str] = frozenset()  # rollouts of this step that are read more than once
    last: dict[str, float] = field(default_factory=dict)
    written: dict[str, float] = field(default_factory=dict)  # what was written since the last optimizer step

    def batches(self, sampler: Sampler, examples: Sequence[Sequence[Example]]) -> Iterator[Batch]:
        chance = random.Random(f"{sampler.seed}/on policy/{self.calls}")
        self.calls += 1
        self.current = frozenset()
        if self.queue:
            yield from self._again(sampler, self.queue.popleft())
        elif chance.random() >= self.share.share:
            self.last = {"on_policy": 0.0}
            for rows in examples:
                yield collate(rows, pad_id=sampler.pad_id, packed=sampler.packed)
        elif self.replay is not None:
            yield from self._fresh_or_kept(sampler, examples, chance)
        elif self.collect == self.inner_epochs == 1:
            yield from _rollouts.batches(sampler, self._write(sampler, examples), examples[0][0])
        else:
            self.collected.append(_replay.held_by_all(self._write(sampler, examples)))
            if len(self.collected) == self.collect:
                for _ in range(self.inner_epochs):
                    self.queue.extend(chance.sample(self.collected, self.collect))
                self.collected = []
                yield from self._again(sampler, self.queue.popleft())

    def _fresh_or_kept(
        self, sampler: Sampler, examples: Sequence[Sequence[Example]], chance: random.Random
    ) -> Iterator[Batch]:
        assert self.replay is not None
        self.replay.expire(self.version)
        answers = sum(ranks.gather(len(_answerable(examples)))) * self.samples
        wanted = min(answers, self.replay.size)
        refresh = 1 - self.version / sampler.steps if self.refresh is None else self.refresh
        fresh = chance.random() < refresh
        if fresh or not self.replay.filled or len(self.replay.rows) < wanted:
            written = self._write(sampler, examples)
            self.replay.add(_replay.held_by_all(_by_student(written)))
            yield from _rollouts.batches(sampler, written, examples[0][0])
        else:
            kept = self._kept(examples)
            if sampler.scores:  # what the teacher says of them now is read again in the step
                self.current = frozenset(row.id for row in kept)
            yield from self._again(sampler, self.replay.draw(wanted, chance), sampler.score(kept))

    def _kept(self, examples: Sequence[Sequence[Example]]) -> list[Example]:
        """This process's rows of a step that are trained on beside the student's answers."""
        return [row for rows in examples for row in rows if self.keep_rows and row.count]

    def _write(self, sampler: Sampler, examples: Sequence[Sequence[Example]]) -> list[Example]:
        """Write and score this process's rollouts of a step, and the rows that are kept beside them."""
        rows, began = _answerable(examples), time.monotonic()
        completions = sampler.write(
            [row.prompt for row in rows],
            self.sampling,
            seeds=[_rollouts.seed_of(sampler.seed, self.calls, row.id) for row in rows],
            samples=self.samples,
            teacher_share=self.teacher_share,
            proposals=self.proposals,
        )
        rollouts = [
            _rollouts.rollout(
                rows[one.index], one, name=self._name(rows[one.index], one.sample), version=self.version
            )
            for one in completions
        ]
        written = time.monotonic()
        rows = [*rollouts, *self._kept(examples)]
        if sampler.scores:
            self.current = frozenset(one.id for one in rows)
        rollouts = list(sampler.score(rows))
        seconds = {"generation_seconds": written - began, "scoring_seconds": time.monotonic() - written}
        self.last = _figures(rollouts)
        counts = {"written": self.last["rollouts"], "written_tokens": self.last["rollout_tokens"]}
        for name, value in (counts | seconds).items():
            self.written[name] = self.written.get(name, 0.0) + value
        if self.last.get("empty") == 1 and not self.warned:
            self.warned = True
            log.warning(
                "step %d: every text of the student is empty, its first token ends it; it learns at most to begin",
                self.version + 1,
            )
        return rollouts

    def _name(self, row: Example, sample: int) -> str:
        return f"{row.id}@{self.calls}" + (f"#{sample}" if self.samples > 1 else "")

    def _again(
        self, sampler: Sampler, rows: Sequence[Held], beside: Sequence[Example] = ()
    ) -> Iterator[Batch]:
        """Train on rollouts that were written in an earlier step."""
        mine = [*(one.example for one in rows if one.mine), *beside]
        self.current = frozenset([*(one.example.id for one in rows), *(row.id for row in beside)])
        ages = [self.version - version for one in rows if (version := one.example.version) is not None]
        self.last = _figures(mine) | {"rollout_age": sum(ages) / max(1, len(ages))}
        return _rollouts.batches(sampler, mine, rows[0].example)

    def holds(self) -> bool:
        return bool(self.queue)

    def rollouts(self) -> Collection[str]:
        kept = [] if self.replay is None else self.replay.rows
        again = {one.example.id for rows in (*self.collected, *self.queue, kept) for one in rows}
        return again | self.current

    def state(self) -> Mapping[str, Any]:
        return {
            "calls": self.calls,
            "version": self.version,
            "share": vars(self.share).copy(),
            "warned": self.warned,
            "written": self.written,
            "collected": [_replay.stored(rows) for rows in self.collected],
            "queue": [_replay.stored(rows) for rows in self.queue],
            "replay": None if self.replay is None else self.replay.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        if not state:
            return
        self.calls, self.version, self.warned = state["calls"], state["version"], state["warned"]
        self.share = Rising(**state["share"])
        self.written = dict(state.get("written", {}))  # none in checkpoints of before
        self.collected = [_replay.held(rows) for rows in state["collected"]]
        self.queue = deque(_replay.held(rows) for rows in state["queue"])
        if self.replay is not None:
            self.replay.restore(state["replay"])

    def observe(self, metrics: Mapping[str, float]) -> None:
        self.version += 1
        self.written = {}

    def validated(self, metrics: Mapping[str, float]) -> None:
        self.share.validated(metrics["cross_entropy"])

    def figures(self) -> Mapping[str, float]:
        rising = {"on_policy_fraction": self.share.share} if self.share.rise else {}
        return self.last | self.written | rising


def _answerable(examples: Sequence[Sequence[Example]]) -> list[Example]:
    return [row for rows in examples for row in rows if _rollouts.waits(row)]


def _by_student(rows: Sequence[Example]) -> list[Example]:
    return [row for row in rows if row.origin == "student"]


def _figures(rollouts: Sequence[Example]) -> dict[str, float]:
    """What is logged of the rollouts of a step, all processes together."""
    rollouts = _by_student(rollouts)
    texts = [list(compress(row.input_ids, row.scored)) for row in rollouts]
    return {"on_policy": 1.0, **health(texts, [row.truncated for row in rollouts])}


def build(
    *,
    on_policy_fraction: float = 1.0,
    sampling_temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    max_new_tokens: int = 128,
    samples: int = 1,
    teacher_share: float = 0.0,
    proposals: int = 0,
    replay: int = 0,
    max_age: int = 0,
    refresh: float | Literal["falling"] = "falling",
    adaptive: float = 0.0,
    collect: int = 1,
    inner_epochs: int = 1,
    keep_rows: bool = False,
    engine: Literal["local", "vllm", "served"] = "local",
    server: str | None = None,
    gpu_memory: float = 0.3,
) -> OnPolicy:
    """The student writes the answers of some steps, and is trained on its own text (GKD, MiniLLM, DistiLLM).

    Args:
        on_policy_fraction: share of the steps whose answers the student writes (GKD's λ).
        sampling_temperature: of the text; the loss has a `temperature` of its own.
        top_p: draw from the likeliest tokens that hold this much probability; 1 is off.
        top_k: draw from so many likeliest tokens; 0 is off.
        max_new_tokens: most tokens of an answer, its end token included; a longer one is cut.
        samples: answers to one prompt.
        teacher_share: of the teacher in the mixture of both distributions that is drawn from (MiniLLM's α).
        proposals: a token that the student proposes is kept where it is among so many likeliest of the
            teacher, which draws another one otherwise (speculative distillation); 0 is off.
        replay: answers that are kept to be trained on again, all of them where a step has more; 0 keeps none.
        max_age: optimizer steps after which a kept answer is dropped; 0 never does.
        refresh: with `replay`, the share of these steps that write new answers; `falling` goes from 1 to 0
            over the training (DistiLLM).
        adaptive: `on_policy_fraction` rises by this whenever the cross-entropy on validation rows rises by it (DistiLLM: 0.1).
        collect: steps whose answers are written at once, by the student as it is before the first of them.
        inner_epochs: how often these steps are trained on.
        keep_rows: a step on the student's answers also trains on its rows as they are.
        engine: what writes: the student as it is trained, vLLM in this process, or a served vLLM; the latter two
            are given the student's weights before they write.
        server: with engine served, its address up to the version, as http://localhost:8000/v1.
        gpu_memory: with engine vllm, the share of the GPU's memory that it takes while it writes.

    Raises:
        RecipeError: an option is out of its range, or has no effect beside another.
    """
    _refusals.refuse(locals())
    falling = refresh == "falling"
    return OnPolicy(
        Rising(float(on_policy_fraction), float(adaptive)),
        Sampling(max_new_tokens, float(sampling_temperature), float(top_p), top_k),
        samples,
        float(teacher_share),
        proposals,
        Replay(replay, max_age) if replay else None,
        None if falling else float(refresh),
        collect,
        inner_epochs,
        keep_rows,
    )
