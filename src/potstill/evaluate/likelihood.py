"""Both models on the same held-out answers, position by position.

KL both ways at T = 1, cross-entropy on the answer's tokens, top-1 agreement, and how often the
teacher's first choice is among the student's five. One pass; logits live a chunk at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from potstill.data.batch import collate
from potstill.evaluate import stats
from potstill.models import anatomy
from potstill.models.projection import Projection, wide
from potstill.objectives.fused import DEFAULT_CHUNK_BYTES, chunk_rows
from potstill.objectives.target import module_logits
from potstill.signals import support
from potstill.types import Batch, Example, Head, Metric

Divergence = Callable[[Tensor, Tensor], Tensor]

NAMES = ("forward_kl", "reverse_kl", "cross_entropy", "teacher_cross_entropy", "agreement", "agreement_top5")


@dataclass(frozen=True)
class Scores:
    """Sums over each row's scored tokens, in the order in which the examples name their rows.

    A conversation whose turns are examples of their own is one row: its turns are not independent, and an
    interval that drew them one by one would be too narrow.
    """

    row_ids: tuple[str, ...]
    tokens: tuple[float, ...]
    sums: dict[str, tuple[float, ...]]

    def metric(self, name: str, *, resamples: int = 2000, seed: int = 0) -> Metric:
        """The token mean of `name` with its interval (nats per token, or a share)."""
        return stats.ratio(self.sums[name], self.tokens, resamples=resamples, seed=seed)

    def perplexity(self, name: str = "cross_entropy", *, resamples: int = 2000, seed: int = 0) -> Metric:
        """exp of the mean cross-entropy per token."""
        import numpy as np

        return stats.ratio(self.sums[name], self.tokens, resamples=resamples, seed=seed, transform=np.exp)


@torch.no_grad()
def measure(
    student: torch.nn.Module,
    teacher: torch.nn.Module | None,
    examples: Sequence[Example],
    *,
    vocabulary: int,
    pad_id: int,
    forward_kl: Divergence,
    reverse_kl: Divergence,
    batch_tokens: int = 2048,
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Scores:
    """Score `examples` (their answers' tokens) under both models.

    Args:
        teacher: None where it shares no vocabulary with the student; only the student's cross-entropy
            is measured then.
        vocabulary: ids that both models share; padded rows of either head are cut before the softmax.
        forward_kl, reverse_kl: values on aligned log-probabilities [N, V].
        batch_tokens: padded tokens of one forward pass.
    """
    was_training = student.training
    student.eval()
    measured = [student]
    if teacher is not None:
        measured.append(teacher.eval())
    forms = [anatomy.head_form(model) for model in measured]
    names = NAMES if teacher is not None else ("cross_entropy",)
    per_row = {e.row_id: torch.zeros(len(names) + 1, dtype=torch.float64) for e in examples}
    done = 0
    for rows in _batches(examples, batch_tokens):
        batch = collate([examples[row] for row in rows], pad_id=pad_id)
        batch = batch.to(next(student.parameters()).device)
        values = _tokens(measured, forms, batch, vocabulary, forward_kl, reverse_kl, chunk_bytes)
        owner = batch.predicts.nonzero()[:, 0]
        summed = torch.zeros(len(rows), len(names) + 1, dtype=torch.float64)
        summed.index_add_(0, owner.cpu(), values.cpu())
        for row, line in zip(rows, summed, strict=True):
            per_row[examples[row].row_id] += line
        done += len(rows)
        on_progress(done, len(examples))
    student.train(was_training)
    table = [line.tolist() for line in per_row.values()]
    sums = {name: tuple(line[index] for line in table) for index, name in enumerate(names)}
    return Scores(tuple(per_row), tuple(line[-1] for line in table), sums)


def _tokens(
    measured: Sequence[torch.nn.Module],
    forms: Sequence[anatomy.HeadForm],
    batch: Batch,
    vocabulary: int,
    forward_kl: Divergence,
    reverse_kl: Divergence,
    chunk_bytes: int,
) -> Tensor:
    """[N, names + 1] in float64, the last column all ones."""
    heads = [anatomy.head_of(m, vocabulary, f) for m, f in zip(measured, forms, strict=True)]
    hidden = [anatomy.states_of(m, batch)[batch.predicts] for m in measured]
    n, width = batch.count, 1 if len(measured) == 1 else len(NAMES)
    out = torch.ones(n, width + 1, dtype=torch.float64, device=batch.input_ids.device)
    step = chunk_rows(vocabulary, wide(hidden[0].dtype), chunk_bytes) // 2
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        logits = [_logits(head, h[rows]) for head, h in zip(heads, hidden, strict=True)]
        target = batch.targets[rows].unsqueeze(-1)
        if len(logits) == 1:
            out[rows, :1] = -support.tempered(logits[0], 1.0).gather(1, target).double()
            continue
        sides = support.dense(logits[0], logits[1], 1.0)
        favourite = sides.teacher_lp.argmax(-1, keepdim=True)
        columns = (
            forward_kl(sides.student_lp, sides.teacher_lp),
            reverse_kl(sides.student_lp, sides.teacher_lp),
            -sides.student_lp.gather(1, target).squeeze(-1),
            -sides.teacher_lp.gather(1, target).squeeze(-1),
            (sides.student_lp.argmax(-1, keepdim=True) == favourite).squeeze(-1),
            (sides.student_lp.topk(min(5, vocabulary)).indices == favourite).any(-1),
        )
        out[rows, :-1] = torch.stack([column.double() for column in columns], -1)
    return out


def _logits(head: Head, hidden: Tensor) -> Tensor:
    if head.module is not None:
        return module_logits(head, hidden)
    out = torch.empty(hidden.shape[0], head.vocabulary, dtype=wide(hidden.dtype), device=hidden.device)
    return Projection(head, hidden.dtype).logits(hidden, out)


def _batches(examples: Sequence[Example], batch_tokens: int) -> Iterator[list[int]]:
    """Rows of like length together, within a budget of padded tokens."""
    order = sorted(range(len(examples)), key=lambda row: len(examples[row].input_ids))
    batch: list[int] = []
    for row in order:
        if batch and (len(batch) + 1) * len(examples[row].input_ids) > batch_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
