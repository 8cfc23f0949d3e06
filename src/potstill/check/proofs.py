"""Laws that a run relies on, proven on the user's own models, loss and rows. Takes about a minute."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import torch
from torch import Tensor

from potstill.check import own_text
from potstill.check.reading import prompt_example
from potstill.check.report import Item
from potstill.check.writing import Amount
from potstill.console import Console
from potstill.data.answers import with_domains
from potstill.data.batch import collate
from potstill.errors import PotstillError
from potstill.evaluate.teacher import check_teacher, unstated
from potstill.models import anatomy, loading, saving
from potstill.objectives.fused import logits_loss
from potstill.objectives.token import Divergence, TokenLoss
from potstill.recipe import plugins
from potstill.recipe.recipe import Recipe
from potstill.recipe.training import Training
from potstill.signals.dense import Dense
from potstill.signals.text import Text
from potstill.stages._context import Setup
from potstill.stages._objective import objective_of, yardstick
from potstill.teachers.local import LocalTeacher
from potstill.train.step import StudentModule, accumulate
from potstill.types import Batch, Example

ROWS = 4
LONGEST_ROW = 96
SMALL = 23  # vocabulary of the finite differences


def prove(
    recipe: Recipe,
    setup: Setup,
    rows: Sequence[Example],
    amounts: Mapping[str, Amount],
    console: Console,
) -> Iterator[Item]:
    """One item a law. A law that cannot be tried is a failure with its reason. `amounts` is what each stage's student
    will write."""
    training = [stage for stage in recipe.stages if isinstance(stage, Training)]
    losses = {stage.name: objective_of(stage).at(0, 2) for stage in training}
    for name, loss in losses.items():
        # Named token weights are constants of the gradient, which no finite difference can hold still.
        yield _tried(f"gradient of {name}", partial(_finite_differences, replace(loss, weigh=None)))
    few = [_short(row) for row in rows[:ROWS]]
    as_student = few if setup.readers.read_alike else [_short(row) for row in _as_student(setup)]
    comparing = [stage.name for stage in training if "distribution" in stage.needs]
    teacher = None
    if hasattr(setup.teacher, "loaded"):
        console.say("loading the teacher")
        teacher = setup.teacher.loaded().model
        for name in comparing:
            yield _tried(f"self-teacher of {name}", partial(_self_teacher, setup, teacher, few, losses[name]))
    if comparing and getattr(setup.teacher, "live", True):
        rows_of_both = _known(setup, as_student) if setup.readers.partial else few
        yield _tried("teacher's loss", partial(_teachers_loss, setup, rows_of_both))
    console.say("making the student")
    student = _student(setup, few)
    yield _tried("accumulation", partial(_accumulation, setup, student, as_student))
    yield _tried("save and load", partial(_save_and_load, setup, student))
    yield from own_text.items(setup, training, teacher, student, rows, amounts, console)
    yield _output_rows(setup, teacher, student)
    if teacher is not None:
        yield _memory(setup, teacher, student, max((stage.copies for stage in training), default=0))


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
    return Example(row.id, ids, scored, row.origin, domain=row.domain)


def _as_student(setup: Setup) -> Iterator[Example]:
    """The first rows as the student reads them."""
    templater = setup.readers.student.templater
    for row in setup.data.train[:ROWS]:
        read = [prompt_example(templater, row)] if row.text is None else templater.encode_row(row)
        yield from with_domains(read, [row], setup.domain)


def _known(setup: Setup, rows: Sequence[Example]) -> list[Example]:
    """The rows without ids that the teacher lacks."""
    return [row for row in rows if not setup.readers.foreign(row.input_ids)]


def _batch(setup: Setup, rows: Sequence[Example]) -> Batch:
    return collate(rows, pad_id=setup.readers.padding).to(setup.device)


def _finite_differences(loss: TokenLoss) -> tuple[bool, str]:
    """The gradient by the logits against central differences in float64."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(3, SMALL, dtype=torch.float64, generator=generator)
    dense = Dense(torch.randn(3, SMALL, dtype=torch.float64, generator=generator))
    rows = loss.rowwise(Text() if loss.ce_weight == 1.0 else dense, torch.tensor([0, 5, 9]))
    leaf = z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(logits_loss(leaf, rows).sum, leaf)
    step, worst = 1e-6, 0.0
    for place in torch.cartesian_prod(torch.arange(3), torch.arange(SMALL)).tolist():
        up, down = z.clone(), z.clone()
        up[tuple(place)] += step
        down[tuple(place)] -= step
        slope = (logits_loss(up, rows).sum - logits_loss(down, rows).sum) / (2 * step)
        worst = max(worst, abs(float(slope - gradient[tuple(place)])))
    return worst < 1e-6, f"largest difference from finite differences {worst:.1e}"


def _self_teacher(
    setup: Setup, teacher: torch.nn.Module, rows: Sequence[Example], loss: TokenLoss
) -> tuple[bool, str]:
    """Teacher against itself: the divergence must vanish on every path that a run takes."""
    if not loss.divergence.vanishes:
        return True, f"{loss.divergence.name} does not vanish at equality; nothing to prove"
    size, batch = setup.readers.teacher_reader.vocabulary.size, _batch(setup, rows)
    limit = 1e-6 if next(teacher.parameters()).dtype == torch.float32 else 1e-4
    signal = LocalTeacher(teacher, vocabulary=size, fingerprint="self").signal(batch)
    with torch.no_grad():
        _, _, metrics = StudentModule(teacher, size)(
            batch, signal, TokenLoss(loss.divergence, loss.temperature)
        )
    value = float(metrics["divergence"]) / batch.count
    return abs(value) <= limit, f"{value:.1e} nats per token, at most {limit:.0e}"


def _teachers_loss(setup: Setup, rows: Sequence[Example]) -> tuple[bool, str]:
    """A teacher that knows nothing is seen by its entropy; a wrong tokenizer by its loss."""
    if not rows:
        return True, "not measured; each of the first rows holds ids that the teacher does not have"
    if setup.teacher.reads is None:
        return True, "not measured; a served teacher states what it thinks of its answers as it writes them"
    batch, size = _batch(setup, rows), setup.readers.shared_ids
    signal = setup.teacher.signal(batch.for_teacher)
    result = check_teacher(signal, batch, yardstick(), size, partial=setup.readers.partial)
    if result is None:
        without = unstated(signal, batch, yardstick(), size)
        return True, f"not measured; this teacher gives no whole distribution{without and f'; {without}'}"
    detail = (
        f"{result.loss:.2f} nats per token on the first rows, entropy {result.entropy:.2f}, "
        f"ln V {result.most:.2f}"
    )
    if result.left_out is not None:
        detail += f", mass on ids that the student lacks {result.left_out:.2%}"
    return not result.uniform, f"{detail}; {result.fault}" if result.fault else detail


def _student(setup: Setup, rows: Sequence[Example]) -> torch.nn.Module:
    """The student as its plug-in makes it, measured on a few rows where it measures."""
    ref = setup.student
    context = replace(ref.context, examples=lambda: rows, pad_id=setup.readers.student.pad_id)
    return ref.plugin.build(context, **ref.options).model.to(setup.device)


def _accumulation(setup: Setup, student: torch.nn.Module, rows: Sequence[Example]) -> tuple[bool, str]:
    """One batch against one micro-batch a row: the same gradient of the rows' cross-entropy."""
    module = StudentModule(student, setup.readers.student.vocabulary.size)
    loss = TokenLoss(Divergence.from_module(plugins.load("divergences", "hard_cross_entropy")), ce_weight=1.0)

    def gradient(batches: Sequence[Sequence[Example]]) -> list[Tensor]:
        module.zero_grad(set_to_none=True)
        accumulate(module, None, [_batch(setup, batch) for batch in batches], loss)
        return [p.grad.clone() for p in module.parameters() if p.grad is not None]

    whole, split = gradient([rows]), gradient([[row] for row in rows])
    module.zero_grad(set_to_none=True)
    size = math.hypot(*(float(a.norm()) for a in whole))
    difference = math.hypot(*(float((a - b).norm()) for a, b in zip(whole, split, strict=True)))
    return difference <= 1e-4 * size, f"relative difference {difference / max(size, 1e-30):.1e}, at most 1e-4"


def _save_and_load(setup: Setup, student: torch.nn.Module) -> tuple[bool, str]:
    """What is shipped computes what was trained."""
    with tempfile.TemporaryDirectory() as folder:
        loading.save(student, setup.readers.student.tokenizer, Path(folder))
        worst = saving.difference(student, Path(folder))
    return worst <= saving.WORST, f"logits differ by at most {worst:.1e} of the largest"


def _output_rows(setup: Setup, teacher: torch.nn.Module | None, student: torch.nn.Module) -> Item:
    """Padded rows of the heads are cut before the softmax; here they are named."""
    readers, parts, enough = setup.readers, [], True
    for side, model in (("teacher", teacher), ("student", student)):
        if model is not None:
            rows = anatomy.output_layer(model).weight.shape[0]
            size = (readers.teacher_reader if side == "teacher" else readers.student).vocabulary.size
            parts.append(f"{side} {rows} rows for {size} ids ({rows - size} padded)")
            enough = enough and rows >= size
    return Item("output rows", enough, "; ".join(parts))


def _memory(setup: Setup, teacher: torch.nn.Module, student: torch.nn.Module, copies: int) -> Item:
    """Estimate the least memory of training: weights, gradients, AdamW's two moments, the teacher, and further
    copies of the student.

    Activations come on top; they grow with micro_batch_tokens.
    """
    fixed = anatomy.parameter_count(teacher) * next(teacher.parameters()).dtype.itemsize
    trained, beside = (anatomy.parameter_count(student) * 4 * count for count in (4, copies))
    if setup.device.type == "cuda":
        free = torch.cuda.mem_get_info(setup.device)[0]
    else:
        free = psutil.virtual_memory().available
    detail = (
        f"teacher {fixed / 1e9:.2f} GB + student with gradients and AdamW {trained / 1e9:.2f} GB"
        + (f" + {copies} more of the student {beside / 1e9:.2f} GB" if copies else "")
        + f", {free / 1e9:.1f} GB free on {setup.device.type}"
    )
    return Item("memory", fixed + trained + beside < free, detail)
