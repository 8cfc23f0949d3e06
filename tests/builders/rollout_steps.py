"""The gradient of one step with every term on the student's text, on however many processes. Run by torchrun."""

from __future__ import annotations

from dataclasses import replace

import torch

from builders.losses import token_loss
from builders.steps import local_teacher, ragged_rows, run_script, whole_gradients
from builders.tiny import tiny_model
from potstill.data.batch import collate
from potstill.data.plan import plan_steps, shard
from potstill.devices import ranks
from potstill.objectives.by_origin import ByOrigin
from potstill.objectives.policy_gradient import PolicyGradient
from potstill.objectives.preference import Preference
from potstill.objectives.reference import AgainstFrozen
from potstill.signals.top import TopIds
from potstill.train import parallel
from potstill.train.scoring import score
from potstill.train.step import StudentModule, accumulate


def gradient(sharding: parallel.Sharding, micro_batch_tokens: int = 10_000) -> dict[str, torch.Tensor]:
    """The gradient over rows of the data, and rows with the same sources that count as the student's."""
    data = ragged_rows(5)
    own = [
        replace(row, id=f"{row.id}@0", answers=row.id, origin="student", input_ids=row.input_ids[::-1])
        for row in data[:4]
    ]
    rows = [*data, *own]
    student = tiny_model(seed=0)
    module = parallel.wrap(StudentModule(student, 128), sharding, student)
    teacher = local_teacher()
    lengths, counts = [len(r.input_ids) for r in rows], [r.count for r in rows]
    (step,) = plan_steps(
        lengths, counts, tokens_per_step=10**6, micro_batch_tokens=micro_batch_tokens, seed=0, epoch=0
    )
    if ranks.world() > 1:
        step = shard(step, ranks.rank(), ranks.world(), lengths=lengths)
    mine = [[rows[i] for i in micro] or [rows[0].silent()] for micro in step]
    flat = [row for micro in mine for row in micro]
    few = 16 if ranks.rank() else 60  # passes of other sizes: processes still make as many
    done = iter(score(module, teacher, flat, pad_id=0, micro_batch_tokens=few))
    batches = [collate([next(done) for _ in micro], pad_id=0) for micro in mine]
    before = AgainstFrozen(token_loss("reverse_kl"), local_teacher(tiny_model(seed=5)))
    terms = [
        (1.0, ByOrigin(token_loss("reverse_kl", top=TopIds(16)), True, own_mean=True)),
        (0.7, ByOrigin(token_loss("forward_kl", ce_weight=0.5), False, "supervised_", own_mean=True)),
        (0.5, ByOrigin(PolicyGradient(whiten=True, clip=0.2), True, own_mean=True)),
        (0.3, ByOrigin(before, True, "reference_")),
        (0.2, Preference(0.5)),
    ]
    accumulate(module, teacher, batches, terms)
    return whole_gradients(module)


if __name__ == "__main__":
    run_script(gradient)
