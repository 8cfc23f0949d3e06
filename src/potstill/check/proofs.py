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
from potstill.check._subject import Subject
from potstill.check.report import Item
from potstill.console import Console
from potstill.data.batch import collate
from potstill.data.prompts import prompt_ids
from potstill.errors import PotstillError
from potstill.evaluate.teacher import check_teacher
from potstill.models import anatomy, loading
from potstill.objectives.fused import logits_loss
from potstill.objectives.token import Divergence, TokenLoss
from potstill.recipe import plugins
from potstill.signals.dense import Dense
from potstill.signals.text import Text
from potstill.stages._objective import objective_of
from potstill.teachers.local import LocalTeacher
from potstill.train.step import StudentModule, accumulate
from potstill.types import Example

ROWS = 4
LONGEST_ROW = 96
SMALL = 23  # vocabulary of the finite differences


def prove(subject: Subject, rows: Sequence[Example], console: Console) -> Iterator[Item]:
    """One item a law. A law that cannot be tried is a failure with its reason."""
    setup = subject.setup
    objectives = {stage.name: objective_of(stage).at(0, 2) for stage in subject.training}
    for name, loss in objectives.items():
        # Named token weights are constants of the gradient, which no finite difference can hold still.
        yield _tried(f"gradient of {name}", partial(_finite_differences, replace(loss, weigh=None)))
    few = [_short(row) for row in rows[:ROWS]]
    own = few if setup.readers.read_alike else [_short(row) for row in _as_student(subject)]
    comparing = [stage.name for stage in subject.training if "distribution" in stage.needs]
    teacher = None
    if hasattr(setup.teacher, "loaded"):
        console.say("loading the teacher")
        teacher = setup.teacher.loaded().model
        for name in comparing:
            yield _tried(
                f"self-teacher of {name}", partial(_self_teacher, subject, teacher, few, objectives[name])
            )
    if comparing:
        yield _tried("teacher's loss", partial(_teachers_loss, subject, few))
    console.say("making the student")
    student = _student(subject, few)
    yield _tried("accumulation", lambda: _accumulation(subject, student, own))
    yield _tried("save and load", lambda: _save_and_load(subject, student, own))
    yield _padding(subject, teacher, student)
    if teacher is not None:
        yield audit.memory(
            setup,
            anatomy.parameter_count(teacher),
            next(teacher.parameters()).dtype,
            anatomy.parameter_count(student),
        )


def _as_student(subject: Subject) -> list[Example]:
    """The first rows as the student reads them."""
    found: list[Example] = []
    for row in subject.setup.data.train[:ROWS]:
        if row.text is None:
            ids = prompt_ids(subject.setup.readers.student.templater, row)
            found.append(Example(row.id, tuple(ids), (False,) * len(ids)))
        else:
            found += subject.setup.readers.student.templater.encode_row(row)
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
    subject: Subject, teacher: torch.nn.Module, rows: Sequence[Example], loss: TokenLoss
) -> tuple[bool, str]:
    """Teacher against itself: the divergence must vanish on every path that a run takes."""
    if not loss.divergence.vanishes:
        return True, f"{loss.divergence.name} does not vanish at equality; nothing to prove"
    setup = subject.setup
    size = setup.readers.of_teacher.vocabulary.size
    limit = 1e-6 if next(teacher.parameters()).dtype == torch.float32 else 1e-4
    batch = collate(rows, pad_id=subject.setup.readers.student.pad_id).to(subject.setup.device)
    own = LocalTeacher(teacher, vocabulary=size, fingerprint="self")
    with torch.no_grad():
        _, _, metrics = StudentModule(teacher, size)(
            batch, own.signal(batch), TokenLoss(loss.divergence, loss.temperature)
        )
    found = float(metrics["divergence"]) / batch.count
    return abs(found) <= limit, f"{found:.1e} nats per token, at most {limit:.0e}"


def _teachers_loss(subject: Subject, rows: Sequence[Example]) -> tuple[bool, str]:
    """A teacher that knows nothing says so by its entropy; a wrong tokenizer by its loss."""
    batch = collate(rows, pad_id=subject.setup.readers.student.pad_id).to(subject.setup.device)
    forward = TokenLoss(Divergence.from_module(plugins.load("divergences", "forward_kl")))
    found = check_teacher(
        subject.setup.teacher.signal(batch), batch, forward, subject.setup.readers.student.vocabulary.size
    )
    told = f"{found.loss:.2f} nats per token on the first rows, entropy {found.entropy:.2f}, ln V {found.most:.2f}"
    return not found.uniform, f"{told}; {found.fault}" if found.fault else told


def _student(subject: Subject, rows: Sequence[Example]) -> torch.nn.Module:
    """The student as its plug-in makes it, measured on a few rows where it measures."""
    ref = subject.setup.student
    pad_id = subject.setup.readers.student.pad_id
    context = replace(ref.context, examples=lambda: rows, pad_id=pad_id)
    return ref.plugin.build(context, **ref.options).model.to(subject.setup.device)


def _accumulation(subject: Subject, student: torch.nn.Module, rows: Sequence[Example]) -> tuple[bool, str]:
    """One batch against one micro-batch a row: the same gradient."""
    module = StudentModule(student, subject.setup.readers.student.vocabulary.size)
    loss = objective_of_text()

    def gradient(batches: Sequence[Sequence[Example]]) -> list[Tensor]:
        module.zero_grad(set_to_none=True)
        accumulate(
            module,
            None,
            [collate(list(b), pad_id=subject.setup.readers.student.pad_id) for b in batches],
            loss,
        )
        return [p.grad.clone() for p in module.parameters() if p.grad is not None]

    whole, split = gradient([rows]), gradient([[row] for row in rows])
    module.zero_grad(set_to_none=True)
    difference = sum(float((a - b).norm() ** 2) for a, b in zip(whole, split, strict=True)) ** 0.5
    size = sum(float(a.norm() ** 2) for a in whole) ** 0.5
    return difference <= 1e-4 * size, f"relative difference {difference / max(size, 1e-30):.1e}, at most 1e-4"


def objective_of_text() -> TokenLoss:
    """Cross-entropy on the rows' own tokens: needs no teacher."""
    return TokenLoss(Divergence.from_module(plugins.load("divergences", "hard_cross_entropy")), ce_weight=1.0)


def _save_and_load(subject: Subject, student: torch.nn.Module, rows: Sequence[Example]) -> tuple[bool, str]:
    """What is shipped computes what was trained."""
    batch = collate(rows[:1], pad_id=subject.setup.readers.student.pad_id).to(subject.setup.device)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        loading.save(student, subject.setup.readers.student.tokenizer, Path(folder))
        again = loading.load(
            loading.find_source(folder), dtype=torch.float32, device=subject.setup.device
        ).model
        a = student(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        b = again(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        worst = float((a - b).abs().max())
    return worst <= 1e-5, f"largest difference between logits {worst:.1e}"


def _padding(subject: Subject, teacher: torch.nn.Module | None, student: torch.nn.Module) -> Item:
    """Padded rows are cut before the softmax; here they are named."""
    readers = subject.setup.readers
    sides = [("student", student, readers.student)]
    if teacher is not None:
        sides.insert(0, ("teacher", teacher, readers.of_teacher))
    widths = [
        (who, anatomy.output_layer(model).weight.shape[0], reader.vocabulary.size)
        for who, model, reader in sides
    ]
    parts = [f"{who} {rows} rows for {size} ids ({rows - size} padded)" for who, rows, size in widths]
    return Item("output rows", all(rows >= size for _, rows, size in widths), "; ".join(parts))
