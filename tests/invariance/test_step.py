"""A step's gradient does not depend on how its rows are split: micro-batches, ranks, wrappers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from builders import ensembles, rollout_steps
from builders.steps import assert_same, gradient, ragged_rows
from builders.tiny import tiny_model
from potstill.data.batch import collate
from potstill.divergences import forward_kl
from potstill.objectives.token import Divergence, TokenLoss
from potstill.teachers.local import LocalTeacher
from potstill.train.step import StudentModule, accumulate

TESTS = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "of",
    [gradient, rollout_steps.gradient, ensembles.gradient],
    ids=["tokens", "rollouts", "ensembles"],
)
@pytest.mark.parametrize("micro_batch_tokens", [24, 50, 100])
def test_a_step_gives_the_same_gradient_for_any_split_into_micro_batches(micro_batch_tokens, of):
    assert_same(of("none", micro_batch_tokens), of("none"))


@pytest.mark.parametrize(
    ("of", "sharding"),
    [
        (gradient, "ddp"),
        (gradient, "fsdp"),
        (rollout_steps.gradient, "ddp"),
        (rollout_steps.gradient, "fsdp"),
        (ensembles.gradient, "ddp"),
    ],
    ids=["tokens ddp", "tokens fsdp", "rollouts ddp", "rollouts fsdp", "ensembles ddp"],
)
def test_two_processes_give_the_gradient_of_one(sharding, of, tmp_path):
    out = tmp_path / "gradient.safetensors"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
        str(sys.modules[of.__module__].__file__), sharding, str(out),
    ]  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(load_file(out), of("none"))


def test_the_denominator_is_the_windows_tokens_not_the_mean_of_micro_batch_means():
    """Micro-batch A has 1 scored token, B has 3: the step's loss is (sum A + sum B) / 4."""
    rows = ragged_rows(4)
    a = collate([rows[0].__class__("a", rows[0].input_ids, (*(False,) * 5, True))], pad_id=0)
    b = collate([rows[1].__class__("b", rows[1].input_ids, (*(False,) * 6, True, True, True))], pad_id=0)
    module = StudentModule(tiny_model(seed=0), 128)
    teacher = LocalTeacher(tiny_model(seed=1), vocabulary=128, fingerprint="t")
    loss = TokenLoss(Divergence.from_module(forward_kl))
    sums = [accumulate(module, teacher, [batch], loss) for batch in (a, b)]
    both = accumulate(module, teacher, [a, b], loss)
    assert [s.tokens for s in sums] == [1, 3]
    assert both.tokens == 4
    assert both.means()["loss"] == pytest.approx((sums[0].loss + sums[1].loss) / 4, rel=1e-6)
    assert both.means()["loss"] != pytest.approx((sums[0].loss + sums[1].loss / 3) / 2, rel=1e-2)


def test_a_step_without_a_scored_token_changes_nothing():
    row = ragged_rows(1)[0]
    silent = collate([row.__class__(row.id, row.input_ids, (False,) * len(row.input_ids))], pad_id=0)
    module = StudentModule(tiny_model(seed=0), 128)
    teacher = LocalTeacher(tiny_model(seed=1), vocabulary=128, fingerprint="t")
    assert accumulate(module, teacher, [silent], TokenLoss(Divergence.from_module(forward_kl))) is None
    assert all(p.grad is None for p in module.parameters())


def test_a_row_without_a_target_beside_a_normal_row_changes_nothing():
    rows = ragged_rows(3)
    empty = rows[2].__class__("empty", rows[2].input_ids, (False,) * len(rows[2].input_ids))
    teacher = LocalTeacher(tiny_model(seed=1), vocabulary=128, fingerprint="t")
    loss = TokenLoss(Divergence.from_module(forward_kl))
    results = []
    for batch in (collate(rows[:2], pad_id=0), collate([*rows[:2], empty], pad_id=0)):
        module = StudentModule(tiny_model(seed=0), 128)
        result = accumulate(module, teacher, [batch], loss)
        results.append((result.means()["loss"], {n: p.grad for n, p in module.named_parameters()}))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    assert_same(results[1][1], results[0][1])


def test_the_teacher_stays_in_eval_mode_frozen_and_out_of_the_optimizer():
    """Dropout configured in the teacher must never reach a target, whatever train() is called on."""
    noisy = tiny_model(seed=0)
    noisy.config.attention_dropout = 0.5
    for layer in noisy.model.layers:
        layer.self_attn.attention_dropout = 0.5
    teacher = LocalTeacher(noisy, vocabulary=128, fingerprint="t")
    noisy.train()
    batch = collate(ragged_rows(3), pad_id=0)
    one, two = teacher.signal(batch), teacher.signal(batch)
    assert torch.equal(one.hidden, two.hidden)
    module = StudentModule(tiny_model(seed=0), 128)
    result = accumulate(module, teacher, [batch], TokenLoss(Divergence.from_module(forward_kl)))
    assert abs(result.means()["loss"]) <= 1e-6
    assert all(not p.requires_grad and p.grad is None for p in noisy.parameters())
