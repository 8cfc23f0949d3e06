"""The loop: schedule, resume, what is trained and what never is."""

from __future__ import annotations

import logging
import math

import pytest
import torch

from builders.jobs import spec_of
from builders.losses import outside_divergence, token_loss
from builders.steps import Pad, local_teacher
from builders.tiny import tiny_model
from potstill.divergences import forward_kl
from potstill.errors import ModelError, TrainingStopped
from potstill.objectives.token import TokenLoss
from potstill.recipe.training import Training
from potstill.strategies.offline import Offline
from potstill.teachers.fixed import FixedTeacher
from potstill.train import checkpoint
from potstill.train.loop import Hooks, Progress, train
from potstill.train.optimizer import learning_rate_at, make_optimizer
from potstill.train.step import StudentModule
from potstill.types import Example

LOSS = token_loss()


def rows(n: int = 10) -> list[Example]:
    generator = torch.Generator().manual_seed(0)
    results = []
    for index in range(n):
        length = 6 + index
        ids = torch.randint(4, 128, (length,), generator=generator).tolist()
        results.append(Example(f"r{index}", tuple(ids), tuple(i >= 3 for i in range(length))))
    return results


def settings(**changes) -> Training:
    base = dict(steps=8, learning_rate=1e-3, tokens_per_step=20, micro_batch_tokens=40, validate_every=0)
    return spec_of(**(base | changes))


def fit(
    module,
    against=None,
    hooks=None,
    loss=LOSS,
    examples=None,
    seed=0,
    optimizer=None,
    progress=None,
    **changes,
) -> Progress:
    return train(
        module,
        examples or rows(),
        against or local_teacher(),
        Offline(),
        Pad(),
        lambda step: loss,
        settings(**changes),
        hooks or Hooks(),
        seed=seed,
        optimizer=optimizer,
        progress=progress,
    )


@pytest.mark.parametrize("stop_at", [1, 3, 4, 6])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path, stop_at):
    whole, whole_events = StudentModule(tiny_model(), 128), []
    fit(whole, hooks=Hooks(event=whole_events.append), checkpoint_every=1)

    module, events = StudentModule(tiny_model(), 128), []
    optimizer = make_optimizer(module, settings())
    asked = iter([False] * (stop_at - 1) + [True])

    def save(progress, opt):
        checkpoint.save(tmp_path, progress.step, module, opt, vars(progress) | {"best": None})

    hooks = Hooks(event=events.append, save=save, should_stop=lambda: next(asked))
    fit(module, hooks=hooks, optimizer=optimizer)
    assert len(events) == stop_at

    again = StudentModule(tiny_model(seed=7), 128)
    optimizer = make_optimizer(again, settings())
    newest = checkpoint.newest(tmp_path)
    checkpoint.restore(newest, again, optimizer)
    names = Progress.__dataclass_fields__
    progress = Progress(**{k: v for k, v in newest.state.items() if k in names} | {"best": math.inf})
    fit(again, hooks=Hooks(event=events.append), optimizer=optimizer, progress=progress)

    assert [e["step"] for e in events] == list(range(1, 9))
    for key in ("loss", "learning_rate", "grad_norm", "tokens", "epoch"):
        assert [e[key] for e in events] == [e[key] for e in whole_events]
    for (name, a), (_, b) in zip(whole.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_self_teacher_logs_zero_on_every_step_and_epoch():
    events = []
    fit(StudentModule(tiny_model(seed=1), 128), hooks=Hooks(event=events.append), learning_rate=0.0)
    assert len(events) == 8
    assert max(e["epoch"] for e in events) >= 1
    assert max(abs(e["loss"]) for e in events) <= 1e-6


def test_a_student_equal_to_its_teacher_is_named_at_the_first_step(caplog):
    flat = tiny_model()
    torch.nn.init.zeros_(flat.lm_head.weight)
    flat.model.norm.weight.data.zero_()
    with caplog.at_level(logging.WARNING, "potstill"):
        fit(StudentModule(flat, 128), FixedTeacher(lambda batch: torch.zeros(batch.count, 128)), steps=1)
    assert "first gradient is exactly zero" in caplog.text


def test_the_teacher_is_bit_identical_after_training_with_weight_decay():
    against = tiny_model(seed=1)
    before = {name: p.clone() for name, p in against.named_parameters()}
    module = StudentModule(tiny_model(), 128)
    fit(module, local_teacher(against), steps=3, weight_decay=0.1)
    for name, parameter in against.named_parameters():
        assert torch.equal(parameter, before[name])
        assert not parameter.requires_grad
        assert parameter.grad is None
    ours = {id(p) for group in make_optimizer(module, settings()).param_groups for p in group["params"]}
    assert ours.isdisjoint(id(p) for p in against.parameters())


def test_a_teacher_with_a_nan_weight_is_refused_by_name():
    broken = tiny_model(seed=1)
    broken.model.layers[0].mlp.up_proj.weight.data[0, 0] = math.nan
    broken.config.name_or_path = "some/teacher"
    with pytest.raises(ModelError, match="logits of some/teacher are not finite"):
        local_teacher(broken)


def test_a_teacher_that_breaks_on_some_rows_stops_training_and_names_them():
    def sometimes(batch):
        bad = [i for i, row in enumerate(batch.row_ids) if row == "r7"]
        logits = torch.zeros(batch.count, 128)
        logits[torch.isin(batch.predicts.nonzero()[:, 0], torch.tensor(bad))] = math.nan
        return logits

    saved = []
    with pytest.raises(TrainingStopped, match=r"forward_kl loss is nan .*in row r7"):
        fit(
            StudentModule(tiny_model(), 128),
            FixedTeacher(sometimes),
            hooks=Hooks(save=lambda *a: saved.append(a)),
        )
    assert saved == []


def test_a_student_that_forbids_what_the_teacher_wants_stops_training():
    def loud(batch):
        return torch.zeros(batch.count, 128).index_fill_(1, torch.tensor([5]), 30.0)

    module = StudentModule(tiny_model(), 128)
    module.student.lm_head.weight.data[5] = -math.inf
    with pytest.raises(TrainingStopped, match=r"forward_kl loss is nan .*in rows? r\d"):
        fit(module, FixedTeacher(loud))


def test_a_divergence_below_zero_stops_training():
    wrong = outside_divergence("wrong_sign", lambda s, t: -forward_kl.value(s, t), VANISHES=True)
    with pytest.raises(TrainingStopped, match="wrong_sign is .* which no divergence can be"):
        fit(StudentModule(tiny_model(), 128), loss=TokenLoss(wrong))


def test_data_without_a_scored_token_ends_instead_of_spinning():
    silent = [Example(r.id, r.input_ids, (False,) * len(r.input_ids)) for r in rows()]
    with pytest.raises(TrainingStopped, match="no token was scored in all of epoch 1"):
        fit(StudentModule(tiny_model(), 128), examples=silent)


def test_warm_up_then_cosine_to_zero():
    plan = settings(steps=100, warmup=0.1, learning_rate=1.0)
    rates = [learning_rate_at(plan, step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5, abs=1e-9)
    assert 0 < rates[99] < 0.001
    assert learning_rate_at(
        settings(steps=100, warmup=0.0, schedule="linear", learning_rate=1.0), 50
    ) == pytest.approx(0.5)
    assert learning_rate_at(settings(steps=100, warmup=0.0, schedule="constant"), 99) == pytest.approx(1e-3)


def test_the_best_validation_is_kept_and_patience_ends_the_run():
    losses = iter([3.0, 2.0, 2.5, 2.6, 2.7, 1.0, 1.0, 1.0])
    saved, events = [], []
    hooks = Hooks(
        event=events.append,
        validate=lambda: {"loss": next(losses)},
        keep_best=lambda progress: saved.append(progress.step),
    )
    done = fit(StudentModule(tiny_model(), 128), hooks=hooks, validate_every=1, patience=2)
    assert done.step == 5
    assert (done.best, done.best_step) == (2.0, 2)
    assert saved == [1, 2]
    assert [e["best"] for e in events if e["event"] == "validation"] == [True, True, False, False, False]


def test_every_row_counts_the_same_under_sequence_mean():
    module = StudentModule(tiny_model(), 128)
    events = []
    fit(
        module,
        hooks=Hooks(event=events.append),
        normalize="sequence_mean",
        steps=1,
        tokens_per_step=10**6,
        learning_rate=0.0,
    )
    means = []
    for row in rows():
        one = []
        fit(
            StudentModule(tiny_model(), 128),
            hooks=Hooks(event=one.append),
            examples=[row],
            steps=1,
            learning_rate=0.0,
        )
        means.append(one[0]["loss"])
    assert events[0]["loss"] == pytest.approx(sum(means) / len(means), rel=1e-5)


def test_training_is_the_same_on_the_same_seed_and_differs_on_another():
    results = []
    for seed in (0, 0, 1):
        events = []
        fit(StudentModule(tiny_model(), 128), hooks=Hooks(event=events.append), seed=seed)
        results.append([e["loss"] for e in events])
    assert results[0] == results[1] != results[2]


@pytest.mark.parametrize("micro_batch_tokens", [20, 45, 10_000])
def test_the_whole_trajectory_is_the_same_for_any_split_into_micro_batches(micro_batch_tokens):
    results = []
    for budget in (1, micro_batch_tokens):
        module, events = StudentModule(tiny_model(), 128), []
        fit(module, hooks=Hooks(event=events.append), micro_batch_tokens=budget, tokens_per_step=30)
        results.append(([e["loss"] for e in events], module.student.lm_head.weight.detach().clone()))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    torch.testing.assert_close(results[0][1], results[1][1], atol=1e-5, rtol=1e-4)


def test_the_order_of_rows_inside_a_step_does_not_matter():
    results = []
    for order in (rows(), rows()[::-1]):
        module, events = StudentModule(tiny_model(), 128), []
        fit(module, hooks=Hooks(event=events.append), examples=order, tokens_per_step=10**6, steps=4)
        results.append([e["loss"] for e in events])
    assert results[0] == pytest.approx(results[1], rel=1e-5)


def test_best_by_names_the_figure_that_chooses_the_best_weights():
    """Loss rises while the held-out KL falls: `best_by` says which of the two decides."""
    measured = iter([{"loss": 1.0 + i, "forward_kl": 3.0 - i} for i in range(3)])
    saved = []
    hooks = Hooks(
        validate=lambda: next(measured),
        keep_best=lambda progress: saved.append(progress.step),
    )
    options = {"steps": 3, "learning_rate": 0.0, "validate_every": 1, "best_by": "forward_kl"}
    done = fit(StudentModule(tiny_model(), 128), hooks=hooks, **options)
    assert (done.best, done.best_step) == (1.0, 3)
    assert saved == [1, 2, 3]


def overflowing(module, at: int):
    """Make the gradient of one micro-batch infinite, or of all with 0."""
    calls = iter(range(1, 1000))

    def spoil(gradient):
        return torch.full_like(gradient, math.inf) if next(calls) == at or at == 0 else gradient

    module.student.model.norm.weight.register_hook(spoil)
    return module


@pytest.mark.parametrize("at", [1, 2, 8])
def test_one_infinite_gradient_in_fp16_skips_its_step_and_spoils_no_weight(at):
    module = overflowing(StudentModule(tiny_model(), 128, autocast=torch.float16), at)
    events = []
    progress = fit(module, precision="float16", hooks=Hooks(event=events.append), tokens_per_step=40)
    assert progress.step == 8
    assert progress.loss_scale == 32768.0
    assert sum(not math.isfinite(e["grad_norm"]) for e in events) == 1
    assert all(torch.isfinite(p).all() for p in module.parameters())


def test_a_gradient_that_is_infinite_at_any_scale_stops_the_training():
    module = overflowing(StudentModule(tiny_model(), 128, autocast=torch.float16), 0)
    before = [p.detach().clone() for p in module.parameters()]
    with pytest.raises(TrainingStopped, match="overflowed, at a loss scale of"):
        fit(module, precision="float16", steps=100)
    for parameter, old in zip(module.parameters(), before, strict=True):
        assert torch.equal(parameter, old)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_infinite_gradient_without_a_scaler_stops_before_the_weights_move(precision):
    kind = None if precision == "float32" else torch.bfloat16
    module = overflowing(StudentModule(tiny_model(), 128, autocast=kind), 1)
    before = [p.detach().clone() for p in module.parameters()]
    with pytest.raises(TrainingStopped, match="gradient of step 1 is"):
        fit(module, precision=precision)
    for parameter, old in zip(module.parameters(), before, strict=True):
        assert torch.equal(parameter, old)


def test_without_a_figure_that_chooses_the_last_weights_are_kept():
    saved, events, losses = [], [], iter([1.0, 2.0, 3.0])
    hooks = Hooks(
        event=events.append,
        validate=lambda: {"loss": next(losses)},
        keep_best=lambda progress: saved.append(progress.step),
    )
    done = fit(StudentModule(tiny_model(), 128), hooks=hooks, steps=3, validate_every=1, best_by="last")
    assert (saved, done.best_step, done.worse_in_a_row) == ([], 3, 0)
    assert [e["best"] for e in events if e["event"] == "validation"] == [True] * 3
