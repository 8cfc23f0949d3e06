"""What a training says on the console: where it stands, and what is unusual about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from potstill.data.batch import collate
from potstill.evaluate.teacher import check_teacher, unstated
from potstill.stages._module import Run
from potstill.stages._objective import yardstick
from potstill.stages._own_text import on_policy
from potstill.train.loop import Progress


def look_at_teacher(run: Run) -> None:
    """Warn of a teacher that knows nothing of the first rows."""
    answered = [example for example in run.rows.train if example.count]
    if run.teacher is None or not answered:
        return
    few = sorted(answered[:16], key=lambda example: len(example.input_ids))[:4]
    first = collate(few, pad_id=run.pad_id, device=run.device)
    signal = run.teacher.signal(first.for_teacher)
    readers = run.context.setup.readers
    result = check_teacher(signal, first, yardstick(), run.vocabulary, partial=readers.partial)
    problems = () if result is None else (result.fault, result.cut)
    for problem in (*problems, unstated(signal, first, yardstick(), run.vocabulary)):
        if problem:
            run.context.console.warn(f"{problem}.")


def say_where(run: Run, progress: Progress, threads: int) -> None:
    """Say where training continues, and what about it is unusual."""
    console, spec = run.context.console, run.spec
    console.say(
        f"{spec.name}: {run.steps} steps; loss and speed count scored tokens, those of answers; prompts are only read"
    )
    if progress.step:
        console.say(f"{spec.name}: continues after step {progress.step}")
    elif (rounded := run.student.facts.get("dtype", "float32")) != "float32":
        console.say(
            f"{spec.name}: goes on from the student as it was shipped, its weights rounded to {rounded}"
        )
    if run.rows.validation:
        every = f"every {spec.validate_every} steps" if spec.validate_every else "now and then"
        console.say(f"{spec.name}: validates on {len(run.rows.validation)} rows, {every} and at the end")
    if threads != torch.get_num_threads():
        console.warn(
            f"the checkpoint was made with {threads} threads, this process has {torch.get_num_threads()}: "
            "sums round differently. OMP_NUM_THREADS sets the number."
        )
    if not run.rows.validation and (spec.patience is not None or spec.best_by not in ("loss", "last")):
        console.warn(
            f"{spec.name}: there are too few rows to keep any for validation, so the last weights are kept; "
            "patience and best_by have no effect."
        )
    choice = getattr(spec, "strategy", None)
    if not run.rows.validation and choice is not None and choice.option_named("STUDENT_WRITES_MORE"):
        console.warn(
            f"{spec.name}: no row is validated on, so the share that the student writes never rises."
        )


def say_worse(run: Run, events: Sequence[Mapping[str, Any]]) -> None:
    """Say where no validation was better than the one before training."""
    spec, console = run.spec, run.context.console
    worse = _never_better(events, spec.best_by)
    if worse and on_policy(spec) is None:
        console.warn(f"{spec.name}: {worse} Lower the learning rate, or look at the validation rows.")
    elif worse:
        console.say(
            f"{spec.name}: {worse} They hold no text of the student, which it learnt from here: compare its "
            "repetition and endings in the report."
        )


def _never_better(events: Sequence[Mapping[str, Any]], best_by: str) -> str:
    """What to say where no validation was better than the one before training."""
    validations = [event for event in events if event["event"] == "validation"]
    if best_by == "last" or len(validations) < 2 or validations[0]["step"] != 0:
        return ""
    seen = [(event["step"], event[best_by]) for event in validations]
    step, best = min(seen[1:], key=lambda one: one[1])
    if best < seen[0][1]:
        return ""
    return (
        f"no validation was better than before training ({best_by} {seen[0][1]:.4g} there, {best:.4g} at step "
        f"{step}, whose weights are kept)."
    )
