"""What a stage does for a student that learns from its own text: a look at its first rollouts, figures, guards."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import compress
from typing import Any

import torch
from torch import nn

from potstill.data.batch import collate
from potstill.devices import ranks
from potstill.errors import DataError
from potstill.generate.health import health
from potstill.generate.sampling import Sampling
from potstill.models.beside import evaluating
from potstill.objectives import closeness
from potstill.objectives.terms import Terms, weighted
from potstill.objectives.token import Divergence, TokenLoss
from potstill.recipe import plugins
from potstill.recipe.defaults import settled
from potstill.recipe.training import Training
from potstill.signals.teacher import Teacher
from potstill.stages._module import Run
from potstill.stages._objective import yardstick
from potstill.stages._training_rows import short_and_long
from potstill.stages.distill import Distill
from potstill.strategies._rollouts import rollout, seed_of, waits
from potstill.train.guards import Guards
from potstill.train.validation import Validation
from potstill.train.writer import Writer
from potstill.types import Example

PROMPTS, VALIDATED = 8, 32  # of a first look, and of a validation
LONGEST_PROMPT = 512
COLD_OVERLAP, COLD_AGREEMENT, COLD_REPETITION = 0.4, 0.4, 0.25
COLD = (
    "A student this cold writes what its teacher knows nothing of: on-policy steps cost a rollout each and teach "
    "little, and guards may stop it."
)
WAY_OUT = "Put a short `- distill: {name: warm_up, epochs: 1}` or finetune stage before it."
LONGER = "Let the stage before it train longer."
OWN = (
    "What the teacher, a copy of the student, reads besides moves it far from the student, which then learns little. "
    "`potstill check` prints what it reads: look at privileged.template."
)


def on_policy(spec: Training) -> Distill | None:
    """The stage, where its student writes text that it is trained on."""
    return spec if isinstance(spec, Distill) and spec.strategy.student_writes else None


def guards_of(run: Run) -> Guards | None:
    """The guards of a training on the student's own text, where the recipe keeps them."""
    spec = on_policy(run.spec)
    if spec is None or spec.guards is None:
        return None
    most = spec.strategy.option_named("NEW_TOKENS")
    answers = answer_tokens(run.rows.train, run.context.setup.readers.student.stop_ids, most or 0)
    return Guards(spec.guards, spec.name, answers, most)


def answer_tokens(rows: Sequence[Example], stop_ids: Collection[int], most: int) -> list[int]:
    """Count the tokens of each row's last answer, which a rollout stands for.

    One that was cut, so that nothing ends it, has at least `most`.
    """
    answers = [answer for row in rows if (answer := _last_answer(row))]
    return [len(ids) if ids[-1] in stop_ids else max(len(ids), most) for ids in answers]


def _last_answer(row: Example) -> list[int]:
    begin = len(row.prompt)
    return list(compress(row.input_ids[begin:], row.scored[begin:]))


def with_closeness(spec: Training, terms: Terms) -> Terms:
    """The terms of a step, with what measures both models on the student's own text."""
    if on_policy(spec) is None:
        return terms
    return [*weighted(terms), (1.0, closeness.Closeness(yardstick().divergence))]


def look_at_student(
    run: Run, module: nn.Module, writer: Writer, log: Callable[[Mapping[str, Any]], None]
) -> None:
    """Warn of a student whose own text teaches it little, before it is trained on any."""
    spec, console = on_policy(run.spec), run.context.console
    if spec is None or run.teacher is None:
        return
    figures = first_rollouts(spec, module, run.teacher, writer, run.rows.train)
    if not figures:
        return
    log({"event": "cold_start", "step": 0, **{name: v for name, v in figures.items() if name != "seconds"}})
    said = f"{spec.name}: the student's first {figures['rollouts']:.0f} answers: {in_words(figures)}"
    if is_cold(figures):
        names = [stage.name for stage in run.context.stages if stage.trains]
        warmed = spec.name in names[1:] and not spec.from_untrained
        console.warn(f"{said}. {advice(spec, warmed=warmed)}")
    else:
        console.say(said)


def first_rollouts(
    spec: Distill,
    module: nn.Module,
    teacher: Teacher,
    writer: Writer,
    rows: Sequence[Example],
    most: int | None = None,
) -> dict[str, float]:
    """Let the student answer a few prompts as its stage will, and compare both models on what it wrote.

    Every process does the same work on the same rows.

    Args:
        most: tokens of an answer, where the stage allows more.

    Returns:
        the figures of `generate.health` and `objectives.closeness`, `agreement` (the share of tokens at which both
        models rank the same id first) and `seconds` of writing; {} where no row has room for an answer, or a
        strategy from outside does not say how long one is.
    """
    tokens = spec.strategy.option_named("NEW_TOKENS")
    rows = [row for row in rows if waits(row) and len(row.prompt) <= LONGEST_PROMPT][:PROMPTS]
    if not rows or tokens is None:
        return {}
    sampling = _sampling(spec, min(tokens, most or tokens))
    began = time.monotonic()
    completions = writer.write(
        [row.prompt for row in rows],
        sampling,
        seeds=[writer.seed] * len(rows),
        teacher_share=spec.strategy.teacher_share,
        proposals=int(spec.strategy.option("proposals") or 0),
    )
    seconds = time.monotonic() - began
    texts = [rollout(rows[one.index], one, name=f"{rows[one.index].id}@0", version=0) for one in completions]
    figures = health([one.ids for one in completions], [one.finish == "length" for one in completions])
    for name in ("rollouts", "rollout_tokens"):  # summed over processes, which all wrote the same
        figures[name] /= ranks.world()
    return figures | _compared(module, teacher, texts, writer) | {"seconds": seconds}


def own_kl(run: Run, module: nn.Module, writer: Writer) -> float:
    """KL(student‖teacher) in nats per token of what the student answers to validation prompts, drawn alike each time."""
    spec = on_policy(run.spec)
    assert spec is not None
    mine = [*ranks.mine(_answered(run, spec.new_tokens))]
    seeds = [seed_of(writer.seed, 0, row.id) for row in mine]
    written = writer.write([row.prompt for row in mine], _sampling(spec, spec.new_tokens), seeds=seeds)
    texts = [rollout(mine[one.index], one, name=f"{mine[one.index].id}@0", version=0) for one in written]
    reverse = TokenLoss(Divergence.from_module(plugins.load("divergences", "reverse_kl")))
    every = [text for part in ranks.gather(texts) for text in part]
    if not every:
        raise DataError(
            f"no validation prompt leaves room for {spec.new_tokens} tokens.",
            path=f"stages.{spec.name}.best_by",
            fix="Lower max_new_tokens, or choose another figure in best_by.",
        )
    stop, tokens = run.context.stop_together, settled(spec.micro_batch_tokens)
    return Validation(every, run.teacher, reverse, None, tokens, run.pad_id, stop)(module)["loss"]


def _answered(run: Run, tokens: int) -> Sequence[Example]:
    """The validation rows that the student answers, with so many tokens: those with room for them in both readings."""
    room, theirs = (
        most - tokens for most in (run.context.setup.max_length, run.context.setup.context_length)
    )
    fit = [
        row
        for row in run.rows.validation
        if row.count
        and 0 < len(row.prompt) <= room
        and (row.reading is None or len(row.reading.prompt) <= theirs)
    ]
    return short_and_long(fit, VALIDATED)


def _sampling(spec: Distill, tokens: int) -> Sampling:
    """How a stage's student draws its text, with so many tokens at most."""
    drawn: list[Any] = [
        usual if (value := spec.strategy.option(name)) is None else value
        for name, usual in (("sampling_temperature", 1.0), ("top_p", 1.0), ("top_k", 0))
    ]
    return Sampling(tokens, *drawn)


@torch.no_grad()
def _compared(
    module: nn.Module, teacher: Teacher, texts: Sequence[Example], writer: Writer
) -> dict[str, float]:
    device = next(module.parameters()).device
    divergence = yardstick().divergence
    terms = [(1.0, yardstick()), (1.0, closeness.Closeness(divergence))]
    sums: dict[str, float] = {}
    with evaluating(module):
        for text in texts:
            batch = collate([text], pad_id=writer.pad_id).to(device)
            signal = teacher.signal(batch.for_teacher)
            metrics = module(replace(batch, weights=None), signal, terms, metrics=not signal.estimated)[2]
            for name, value in metrics.items():
                sums[name] = sums.get(name, 0.0) + float(value)
    result = closeness.figures(sums)
    if "agreement" in sums:
        result["agreement"] = sums["agreement"] / sum(text.count for text in texts)
    return result


def is_cold(figures: Mapping[str, float]) -> bool:
    """Whether on-policy steps will mostly be spent on text that neither model would call an answer."""
    return (
        figures.get("overlap", 1.0) < COLD_OVERLAP
        or figures.get("agreement", 1.0) < COLD_AGREEMENT
        or figures.get("repetition", 0.0) > COLD_REPETITION
    )


def advice(spec: Distill, *, warmed: bool) -> str:
    """What a cold start means, and what to do about it."""
    if spec.self_teacher is not None:
        return OWN
    return f"{COLD} {LONGER if warmed else WAY_OUT}"


def in_words(figures: Mapping[str, float]) -> str:
    """The figures in one clause."""
    return ", ".join(_clauses(figures))


def _clauses(figures: Mapping[str, Any]) -> Iterator[str]:
    shares = {
        "overlap": "of the teacher's 16 likeliest ids {:.0%} are among the student's",
        "agreement": "both rank the same id first at {:.0%} of the tokens",
        "repetition": "{:.0%} of the 4-grams repeat",
        "truncated": "{:.0%} of the answers run into the limit",
        "early_kl": "KL(student ‖ teacher) {:.2f} nats in first halves",
        "late_kl": "{:.2f} in second ones",
    }
    for name, words in shares.items():
        if name in figures:
            yield words.format(figures[name])
