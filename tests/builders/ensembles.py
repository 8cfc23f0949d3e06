"""Ensembles of tiny teachers, and one step's gradient against them. Run by torchrun."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch

from builders.losses import divergence
from builders.steps import local_teacher, ragged_rows, run_script, whole_gradients
from builders.tiny import tiny_model, tiny_tokenizer
from potstill.data.batch import collate
from potstill.data.plan import plan_steps, shard
from potstill.devices import ranks
from potstill.divergences import forward_kl
from potstill.models.vocabulary import read_vocabulary
from potstill.objectives.token import Divergence, TokenLoss
from potstill.signals.topk import TopK
from potstill.teachers._context import TeacherContext
from potstill.teachers._ensemble import EnsembleTeacher
from potstill.teachers._members import Member
from potstill.teachers.ensemble import build as build_ensemble
from potstill.train import parallel
from potstill.train.step import StudentModule, accumulate
from potstill.types import Batch, Example

WORDS = ("maths", "code")


def reader(tokenizer: Any = None, **parts: Any) -> Any:
    """What an ensemble reads of a member's reader."""
    vocabulary = read_vocabulary(tokenizer or tiny_tokenizer())
    templater = SimpleNamespace(fingerprint="t", stop_ids=(2,))
    return SimpleNamespace(vocabulary=vocabulary, templater=templater, unused_ids=(), **parts)


class Tiny:
    """A tiny teacher of 128 ids; with `k` it stores its likeliest ids alone, at T = 1 and 2."""

    def __init__(self, seed: int, k: int | None = None) -> None:
        self.name, self.fingerprint = f"t{seed}", f"tiny {seed} {k}"
        self.provides = frozenset({"dense", "text"} if k is None else {"topk"})
        self.reads, self.k = reader(), k
        self.asked: list[tuple[str, ...]] = []
        self.closed = 0
        self._teacher = local_teacher(tiny_model(seed=seed))

    def signal(self, batch: Batch) -> Any:
        self.asked.append(batch.row_ids)
        hidden = self._teacher.signal(batch)
        if self.k is None:
            return hidden
        logits = hidden.hidden @ hidden.head.weight.T
        top = logits.log_softmax(-1).topk(self.k)
        lse = {t: (logits.log_softmax(-1) / t).logsumexp(-1) for t in (2.0, 1.5)}
        return TopK(top.indices, top.values, lse)

    def close(self) -> None:
        self.closed += 1


def members(*teachers: Tiny, weights: Sequence[float] = (), **more: Sequence[Any]) -> list[Member]:
    """The teachers as an ensemble holds them; further values are one for each."""
    weights = weights or [1.0] * len(teachers)
    own = [{key: values[number] for key, values in more.items()} for number in range(len(teachers))]
    return [
        Member(teacher.name, teacher, weight, **values)
        for teacher, weight, values in zip(teachers, weights, own, strict=True)
    ]


def ensemble(*teachers: Tiny, combine: str = "probabilities", **how: Any) -> EnsembleTeacher:
    """An ensemble of them."""
    settings = {name: how.pop(name) for name in ("weigh", "route", "writes", "one_at_a_time") if name in how}
    return EnsembleTeacher(members(*teachers, **how), combine, "", **settings)


def context(**teachers: Any) -> TeacherContext:
    """A context whose members are these by the name that a recipe writes as model."""
    found = lambda value, path: teachers[value["model"]]  # noqa: E731
    return TeacherContext(None, torch.device("cpu"), None, member=found)  # type: ignore[arg-type]


def built(*values: dict[str, Any], **options: Any) -> EnsembleTeacher:
    """The ensemble of a recipe whose models a, b and c are tiny."""
    known = {"a": Tiny(1), "b": Tiny(2), "c": Tiny(3)} | options.pop("teachers", {})
    return build_ensemble(context(**known), ensemble=list(values), **options)


def routed_rows() -> list[Example]:
    """Rows of two domains in turn."""
    return [replace(row, domain=WORDS[number % 2]) for number, row in enumerate(ragged_rows())]


def experts(*teachers: Tiny, **how: Any) -> EnsembleTeacher:
    """A teacher for each of both domains, and with three one for all that is left."""
    rows = [frozenset({"maths"}), frozenset({"code"}), None][: len(teachers)]
    return ensemble(*teachers, route="subject", rows=rows, **how)


def gradient(sharding: parallel.Sharding, micro_batch_tokens: int = 10_000) -> dict[str, torch.Tensor]:
    """The gradient of one step against experts and against weighted averages, added."""
    rows = routed_rows()
    student = tiny_model(seed=0)
    module = parallel.wrap(StudentModule(student, 128), sharding, student)
    lengths, counts = [len(r.input_ids) for r in rows], [r.count for r in rows]
    (step,) = plan_steps(
        lengths, counts, tokens_per_step=10**6, micro_batch_tokens=micro_batch_tokens, seed=0, epoch=0
    )
    if ranks.world() > 1:
        step = shard(step, ranks.rank(), ranks.world(), lengths=lengths)
    batches = [collate([rows[i] for i in micro] or [rows[0].silent()], pad_id=0) for micro in step]
    loss = TokenLoss(Divergence.from_module(forward_kl), temperature=2.0)
    teachers = [
        experts(Tiny(1), Tiny(2)),
        ensemble(Tiny(1), Tiny(2, k=20), weigh="confidence", weights=[1.0, 3.0]),
        ensemble(Tiny(1), Tiny(3), combine="losses", weigh="gold"),
    ]
    for teacher in teachers:
        result = accumulate(module, teacher, batches, loss)
        assert result is not None
        assert result.teacher_weights.keys() == {row.id for row in rows if row.count}
    return whole_gradients(module)


def batch(packed: bool = False) -> Batch:
    return collate(routed_rows(), pad_id=0, packed=packed)


def said(teacher: Any, of: Batch) -> torch.Tensor:
    """What an ensemble says at T = 1, log-probabilities [N, 128]."""
    signal = teacher.signal(of)
    like = torch.zeros(of.count, 128)
    chunks = signal.chunks(divergence("forward_kl"), "bucket")
    return chunks(slice(0, of.count), like).beside(like, slice(0, of.count), 1.0).teacher_lp


def alone(seed: int, of: Batch) -> torch.Tensor:
    hidden = Tiny(seed).signal(of)
    return (hidden.hidden @ hidden.head.weight.T).log_softmax(-1)


if __name__ == "__main__":
    run_script(gradient)
