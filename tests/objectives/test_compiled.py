"""The compiled loss: one graph without a break for any number of rows, the same numbers, and a way back."""

from __future__ import annotations

import inspect
import logging
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from builders import captures, jobs
from builders.losses import BY_AUTOGRAD, normal, token_loss
from builders.steps import ragged_rows
from builders.tiny import tiny_model
from potstill import divergences
from potstill.check.defaults import stage_defaults
from potstill.console import Console
from potstill.data.batch import collate
from potstill.loss import DistillationLoss
from potstill.objectives import rows as token_rows
from potstill.objectives.compiled import Compiled
from potstill.objectives.fused import chunk_rows
from potstill.objectives.rows import Settings, dense_rows
from potstill.objectives.token import TokenLoss, TokenWeight
from potstill.recipe import plugins
from potstill.recipe.defaults import Facts
from potstill.stages.capture import Capture
from potstill.stages.distill import Distill
from potstill.teachers.local import LocalTeacher
from potstill.train.step import StudentModule, accumulate

V = 53
MOVING = {"taid": {"t": {"linear": {"from": 0.4, "to": 1}}}}
ON_POLICY = {"strategy": "on_policy"}
GPU = Facts("cuda", bf16=True, train_tokens=50_000_000)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(token_rows, "COMPILED", Compiled(dense_rows, "eager"))


def plain(loss: TokenLoss) -> TokenLoss:
    """Without the shape checks of the tests around the formula, which are no part of a graph."""
    return replace(
        loss, divergence=replace(loss.divergence, function=inspect.unwrap(loss.divergence.function))
    )


def inputs(n: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor | None, ...]:
    """Logits, no other place for the gradient, the teacher's logits, targets, hard, weights, places in answers."""
    student, teacher = (normal(n, V, seed=seed).float().to(dtype) for seed in (1, 2))
    weights, places = torch.linspace(0.5, 1.5, n).to(dtype), torch.arange(n)
    return student, None, teacher, torch.arange(n), torch.arange(n) % 3 > 0, weights, places


@torch.no_grad()
def require_one_graph(loss: TokenLoss, backend: str, *, metrics: bool = False) -> None:
    """One compilation serves three numbers of rows, with the numbers of float64."""
    counters.clear()
    rows = Compiled(dense_rows, backend)
    for n in (9, 7, 16):
        ours, right = inputs(n), inputs(n, torch.float64)
        losses, sums = rows(Settings(replace(loss), metrics), *ours)
        exact, exact_sums = dense_rows(Settings(loss, metrics), *right)
        for result, reference in ((losses, exact), (ours[0], right[0])):
            assert (result.double() - reference).norm() <= 2e-6 * reference.norm()
        assert sums.keys() == exact_sums.keys()
    assert rows.works
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("name", divergences.names())
def test_every_divergence_is_one_graph_for_any_number_of_rows(name):
    require_one_graph(plain(token_loss(name, 2.0, ce_weight=0.25)), "eager")


@pytest.mark.parametrize("loss", [token_loss("jsd"), TokenLoss(BY_AUTOGRAD)], ids=["jsd", "value_only"])
def test_a_graph_writes_the_gradient_into_the_logits(loss):
    weigh = TokenWeight.from_module(plugins.load("token_weights", "entropy", {}))
    require_one_graph(plain(replace(loss, weigh=weigh)), "aot_eager", metrics=True)


@torch.no_grad()
def test_a_gradient_for_half_precision_products_is_written_once():
    loss, counter = plain(token_loss("forward_kl")), CompileCounterWithBackend("aot_eager")
    compiled, wide = Compiled(dense_rows, counter), torch.empty(16, 56, dtype=torch.bfloat16)
    for n in (9, 16):
        (logits, _, *others), right, into = inputs(n), inputs(n, torch.float64), wide[:n, :V]
        before = logits.clone()
        compiled(Settings(loss, False), logits, into, *others)
        dense_rows(Settings(loss, False), *right)
        assert torch.equal(into, right[0].float().bfloat16())
        assert torch.equal(logits, before)
    assert counter.frame_count == 1


@pytest.mark.prove
@pytest.mark.filterwarnings("default")  # the compiler's own are no failure of it
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for a CPU with g++")
@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd"])
def test_the_compiler_of_torch_keeps_the_numbers(name):
    require_one_graph(plain(token_loss(name, 2.0, ce_weight=0.25)), "inductor")


def both(loss: DistillationLoss, n: int = 40) -> tuple[Tensor, ...]:
    """Mean and gradients from hidden states in ragged chunks."""
    loss.token_loss = plain(loss.token_loss)
    hidden, head = (
        normal(n, 8, seed=1).float().requires_grad_(),
        normal(V, 8, seed=2).float().requires_grad_(),
    )
    mask = torch.ones(n, dtype=torch.bool)
    out = loss(hidden, head, normal(n, 8, seed=3).float(), normal(V, 8, seed=4).float(), mask)
    return (out.mean.detach(), *torch.autograd.grad(out.mean, [hidden, head]))


def test_the_argument_of_the_loss_compiles_once_for_ragged_chunks(monkeypatch):
    counter = CompileCounterWithBackend("eager")
    monkeypatch.setattr(token_rows, "COMPILED", Compiled(dense_rows, counter))
    chunk = 2 * 17 * V * 4  # 17, 17 and 6 rows
    result = both(DistillationLoss("reverse_kl", chunk_bytes=chunk, compile=True))
    assert counter.frame_count == 1
    for ours, theirs in zip(result, both(DistillationLoss("reverse_kl", chunk_bytes=chunk)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=1e-8)


def test_a_training_step_is_compiled_on_request():
    teacher = LocalTeacher(tiny_model(seed=1), vocabulary=128, fingerprint="t")
    batch = collate(ragged_rows(), pad_id=0)

    def gradient(compile: bool) -> list[Tensor]:
        module = StudentModule(tiny_model(seed=0), 128, compile=compile)
        accumulate(module, teacher, [batch], plain(token_loss("jsd")))
        return [p.grad for p in module.parameters()]

    result = gradient(True)
    assert token_rows.COMPILED.works
    for ours, theirs in zip(result, gradient(False), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_a_compiler_that_fails_leaves_the_formulas_and_one_warning(monkeypatch, caplog):
    def broken(graph, inputs):
        raise RuntimeError("no such compiler")

    monkeypatch.setattr(token_rows, "COMPILED", Compiled(dense_rows, broken))
    with caplog.at_level(logging.WARNING, "potstill"):
        result = both(DistillationLoss("jsd", compile=True, chunk_bytes=2 * 16 * V * 4))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "not compiled" in caplog.text
    assert "no such compiler" in caplog.text
    right = both(DistillationLoss("jsd", chunk_bytes=2 * 16 * V * 4))
    for ours, theirs in zip(result, right, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=1e-8)


def test_logits_that_a_failing_call_has_changed_are_put_back():
    def halfway(settings, logits):
        return logits.sum(-1)

    rows = Compiled(halfway)

    def changed(settings, logits):
        logits.zero_()
        raise RuntimeError("a kernel does not start")

    rows._compiled = changed
    logits = torch.ones(3, 4)
    assert rows(None, logits).tolist() == [4.0, 4.0, 4.0]


def test_memory_that_runs_out_is_no_failure_of_the_compiler():
    rows = Compiled(lambda settings, logits: logits)

    def full(settings, logits):
        raise torch.OutOfMemoryError("full")

    rows._compiled = full
    with pytest.raises(torch.OutOfMemoryError):
        rows(None, torch.ones(3, 4))
    assert rows.works is None


@pytest.mark.parametrize(
    ("facts", "options", "chosen", "why"),
    [
        (GPU, {}, True, "steps"),
        (GPU, {"steps": 50}, False, "50 steps"),
        (GPU, {"temperature": {"linear": {"from": 4, "to": 1}}}, False, "moves"),
        (GPU, {"divergence": MOVING}, False, "moves"),
        (GPU, {"support": {"top_k": 8}}, False, "whole distributions"),
        (GPU, {"ce_weight": 1}, False, "hard labels"),
        (GPU, ON_POLICY | {"supervised": {"divergence": MOVING}}, False, "moves"),
        (GPU, ON_POLICY | {"reference": {"divergence": MOVING}}, False, "moves"),
        (replace(GPU, whole=False), {}, False, "of one teacher"),
        (replace(GPU, no_compiler="there is no C compiler"), {}, False, "no C compiler"),
        (Facts("cpu", train_tokens=50_000_000), {}, False, "GPU"),
        (Facts("cuda"), {}, False, "not known"),
    ],
)
def test_auto_compiles_long_trainings_on_a_gpu(facts, options, chosen, why):
    became = Distill.model_validate(options).automatic(facts)
    assert became["compile"][0] is chosen
    assert why in became["compile"][1]
    assert (became["chunk_bytes"][0] == 2**30) is chosen


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"ce_weight": {"linear": {"from": 0.5, "to": 0}}}, "anew in every step"),
        ({"support": {"top_k": 8}}, "only whole distributions"),
        ({"ce_weight": 1}, "hard labels alone"),
    ],
)
def test_a_loss_that_cannot_be_compiled_is_refused_on_request(options, reason):
    with pytest.raises(ValidationError, match=reason):
        Distill.model_validate({"compile": True} | options)


def test_a_signal_that_is_not_compiled_is_named_before_it_is_trained_on(tmp_path, monkeypatch):
    said = list[str]()
    monkeypatch.setattr(Console, "warn", lambda self, text: said.append(text))
    rows = captures.rows(4)
    stored = captures.reading(
        captures.captured(tmp_path, rows, kinds=("topk",), signal="topk", max_kl_nats=1.0)
    )
    for teacher in (captures.teacher(), stored):
        start = jobs.student(tmp_path / "start", tiny_model(seed=2))
        jobs.trained(tmp_path / teacher.name, start, teacher, rows, compile=True)
    assert [text for text in said if text.startswith("distill.compile")] == [
        "distill.compile: the loss runs as it is: only a whole distribution of one teacher is compiled."
    ]


@pytest.mark.parametrize(
    ("signal", "self_teacher", "whole"), [("topk", None, False), ("auto", None, True), ("topk", {}, True)]
)
def test_a_check_knows_what_a_capture_will_give(signal, self_teacher, whole):
    setup, seen = SimpleNamespace(student=SimpleNamespace(plugin=None), teacher=captures.teacher()), []
    setup.facts = lambda **how: seen.append(how["whole"]) or Facts("cpu")
    stages = [Capture(signal=signal), Distill.model_validate({"self_teacher": self_teacher})]
    stage_defaults(stages, setup, {stage.name: {} for stage in stages}, 0)
    assert seen == [True, whole]


def test_chunks_of_a_gpu_are_whole_tiles():
    rows = {
        bytes_: chunk_rows(128_256, torch.float32, bytes_, torch.device("cuda")) for bytes_ in (2**29, 2**30)
    }
    assert rows == {2**29: 512, 2**30: 1024}
    assert chunk_rows(128_256, torch.float32, 2**29) == 523
