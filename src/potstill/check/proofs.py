"""Laws that a run relies on, proven on the user's own models, loss and rows. Takes about a minute."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from potstill.check import audit
from potstill.check.report import Item
from potstill.console import Console
from potstill.data.batch import collate
from potstill.errors import PotstillError
from potstill.evaluate.teacher import known
from potstill.models import anatomy, loading
from potstill.objectives.fused import logits_loss
from potstill.objectives.token import Divergence, TokenLoss
from potstill.recipe import resolve
from potstill.recipe.stages import Training
from potstill.runs import examples
from potstill.runs.setup import Parts
from potstill.runs.training import objective_of
from potstill.students import depth
from potstill.teachers.local import LocalTeacher
from potstill.train.step import StudentModule, accumulate
from potstill.types import Dense, Example, Text

ROWS = 4
LONGEST_ROW = 96
SMALL = 23  # vocabulary of the finite differences


def prove(parts: Parts, rows: Sequence[Example], console: Console) -> Iterator[Item]:
    """One item a law. A law that cannot be tried is a failure with its reason."""
    stages = [stage for stage in parts.recipe.stages if isinstance(stage, Training)]
    for stage in stages:
        # Named token weights are constants of the gradient, which no finite difference can hold still.
        loss = replace(objective_of(stage, 2)[1](0), weigh=None)
        yield _tried(f"gradient of {stage.name}", partial(_finite_differences, loss))
    console.say("loading the teacher")
    teacher = parts.teacher.load(parts.device)
    few = [_short(row) for row in rows[:ROWS]]
    own = few if parts.reads_alike else [_short(row) for row in _as_student(parts)]
    half = parts.teacher.dtype != torch.float32
    for stage in stages:
        if stage.verb == "distill":
            loss = objective_of(stage, 2)[1](0)
            limit = 1e-4 if half else 1e-6
            law = partial(_self_teacher, parts, teacher.model, few, loss, limit)
            yield _tried(f"self-teacher of {stage.name}", law)
    if any(stage.verb == "distill" for stage in stages):
        yield _tried("teacher's loss", partial(_teachers_loss, parts, teacher.model, few))
    console.say("making the student")
    student = _student(parts, teacher.model)
    yield _tried("accumulation", lambda: _accumulation(parts, student, own))
    yield _tried("save and load", lambda: _save_and_load(parts, student, own))
    yield _padding(parts, teacher.model, student)
    yield audit.memory(parts, anatomy.parameter_count(teacher.model), anatomy.parameter_count(student))


def _as_student(parts: Parts) -> list[Example]:
    """The first rows as the student reads them."""
    found: list[Example] = []
    for row in parts.data.train[:ROWS]:
        if row.text is None:
            ids = examples.prompt_ids(parts.student_templater, row)
            found.append(Example(row.id, tuple(ids), (False,) * len(ids)))
        else:
            found += parts.student_templater.encode_row(row)
    return found


def _tried(name: str, law: Callable[[], tuple[bool, str]]) -> Item:
    try:
        passed, detail = law()
    except PotstillError as error:
        passed, detail = False, str(error)
    return Item(name, passed, detail)


def _short(row: Example) -> Example:
    """A row that a proof can afford, with its last scored tokens in it."""
    ids, scored = row.input_ids[:LONGEST_ROW], row.scored[:LONGEST_ROW]
    if not any(scored):
        scored = tuple(index >= max(1, len(ids) // 2) for index in range(len(ids)))
    return Example(row.id, ids, scored, row.origin)


def _finite_differences(loss: TokenLoss) -> tuple[bool, str]:
    """The gradient by the logits against central differences in float64."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(3, SMALL, dtype=torch.float64, generator=generator)
    signal = Dense(torch.randn(3, SMALL, dtype=torch.float64, generator=generator))
    targets = torch.tensor([0, 5, 9])

    def value(logits: Tensor) -> Tensor:
        kind = Text() if loss.ce_weight == 1.0 else signal
        return logits_loss(logits, loss.rowwise(kind, targets)).sum

    leaf = z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(leaf), leaf)
    step, worst = 1e-6, 0.0
    for row in range(3):
        for column in range(SMALL):
            up, down = z.clone(), z.clone()
            up[row, column] += step
            down[row, column] -= step
            slope = (value(up) - value(down)) / (2 * step)
            worst = max(worst, abs(float(slope - gradient[row, column])))
    return worst < 1e-6, f"largest difference from finite differences {worst:.1e}"


def _self_teacher(
    parts: Parts, teacher: torch.nn.Module, rows: Sequence[Example], loss: TokenLoss, limit: float
) -> tuple[bool, str]:
    """Teacher against itself: the divergence must vanish on every path that a run takes."""
    if not loss.divergence.vanishes:
        return True, f"{loss.divergence.name} does not vanish at equality; nothing to prove"
    size = parts.teacher_vocabulary.size
    batch = collate(rows, pad_id=parts.pad_id).to(parts.device)
    own = LocalTeacher(teacher, vocabulary=size, fingerprint="self")
    with torch.no_grad():
        _, _, metrics = StudentModule(teacher, size)(
            batch, own.signal(batch), TokenLoss(loss.divergence, loss.temperature)
        )
    found = float(metrics["divergence"]) / batch.count
    return abs(found) <= limit, f"{found:.1e} nats per token, at most {limit:.0e}"


def _teachers_loss(parts: Parts, teacher: torch.nn.Module, rows: Sequence[Example]) -> tuple[bool, str]:
    """A teacher that knows nothing says so by its entropy; a wrong tokenizer by its loss."""
    batch = collate(rows, pad_id=parts.pad_id).to(parts.device)
    own = LocalTeacher(teacher, vocabulary=parts.teacher_vocabulary.size, fingerprint="self")
    forward = TokenLoss(Divergence.from_module(resolve.load("divergences", "forward_kl")))
    found = known(own.signal(batch), batch, forward)
    told = f"{found.loss:.2f} nats per token on the first rows, entropy {found.entropy:.2f}, ln V {found.most:.2f}"
    return not found.uniform, f"{told}; {found.fault}" if found.fault else told


def _student(parts: Parts, teacher: torch.nn.Module) -> torch.nn.Module:
    if parts.student is not None:
        return loading.load(parts.student.source, dtype=torch.float32, device=parts.device).model
    cut = parts.recipe.student.from_teacher
    assert cut is not None
    listed = (
        list(cut.by)
        if not isinstance(cut.by, str)
        else depth.uniform(parts.layers, min(cut.count, parts.layers))
    )
    return depth.cut(teacher, listed).to(parts.device)


def _accumulation(parts: Parts, student: torch.nn.Module, rows: Sequence[Example]) -> tuple[bool, str]:
    """One batch against one micro-batch a row: the same gradient."""
    module = StudentModule(student, parts.vocabulary.size)
    loss = objective_of_text()

    def gradient(batches: Sequence[Sequence[Example]]) -> list[Tensor]:
        module.zero_grad(set_to_none=True)
        accumulate(module, None, [collate(list(b), pad_id=parts.pad_id) for b in batches], loss)
        return [p.grad.clone() for p in module.parameters() if p.grad is not None]

    whole, split = gradient([rows]), gradient([[row] for row in rows])
    module.zero_grad(set_to_none=True)
    difference = sum(float((a - b).norm() ** 2) for a, b in zip(whole, split, strict=True)) ** 0.5
    size = sum(float(a.norm() ** 2) for a in whole) ** 0.5
    return difference <= 1e-4 * size, f"relative difference {difference / max(size, 1e-30):.1e}, at most 1e-4"


def objective_of_text() -> TokenLoss:
    """Cross-entropy on the rows' own tokens: needs no teacher."""
    return TokenLoss(Divergence.from_module(resolve.load("divergences", "hard_cross_entropy")), ce_weight=1.0)


def _save_and_load(parts: Parts, student: torch.nn.Module, rows: Sequence[Example]) -> tuple[bool, str]:
    """What is shipped computes what was trained."""
    batch = collate(rows[:1], pad_id=parts.pad_id).to(parts.device)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        loading.save(student, parts.tokenizer, Path(folder))
        again = loading.load(loading.find_source(folder), dtype=torch.float32, device=parts.device).model
        a = student(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        b = again(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        worst = float((a - b).abs().max())
    return worst <= 1e-5, f"largest difference between logits {worst:.1e}"


def _padding(parts: Parts, teacher: torch.nn.Module, student: torch.nn.Module) -> Item:
    """Padded rows are cut before the softmax; here they are named."""
    widths = {
        "teacher": (anatomy.output_layer(teacher).weight.shape[0], parts.teacher_vocabulary.size),
        "student": (anatomy.output_layer(student).weight.shape[0], parts.vocabulary.size),
    }
    told = [
        f"{who} {rows} rows for {size} ids ({rows - size} padded)" for who, (rows, size) in widths.items()
    ]
    return Item("output rows", all(rows >= size for rows, size in widths.values()), "; ".join(told))
