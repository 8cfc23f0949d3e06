"""What the processes of the on-policy study do: prepare, warm up, train by the clock, score.

Every training is a run of a recipe. An arm's recipe writes the teacher's answers and warms the student up, both
taken from the store, and goes on with one stage: that of the preset, without the preset's own warm-up. The arm's
time, of its process and not of the clock on the wall, begins with the first batch of that stage and holds rollouts,
scoring, training and validations; loading and the copies for the scorer stand outside. The learning rate follows the clock (3 % warm-up, cosine to 0 at the end),
and so does DistiLLM's ever rarer writing, so that no method gains by a guess of how many steps there will be.
Guards are off: every arm has all of its time, and repetition and stop rate are columns of the table.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pair import LAYERS, TEACHER, TEST, TRAIN, rows
from scorer import NEW_TOKENS, TEACHER_TEMPERATURE, answers

from potstill.recipe.methods import METHODS

TOKENS_PER_STEP, WARM_UP_RATE, WARM_UP_SHARE = 512, 5e-4, 0.03
ON_POLICY = ("gkd", "minillm", "distillm", "opd")


def prepare(folder: str, questions: int, screening: int, prompts: int) -> dict[str, Any]:
    """Cut the student once, and write the training rows and the teacher's held-out answers."""
    from potstill.data.batch import collate
    from potstill.models import loading, saving
    from potstill.students import depth

    home = Path(folder)
    loaded = loading.load(loading.find_source(TEACHER), dtype=torch.float32)
    examples = [example for _, example in rows(loaded.tokenizer, 64)]
    pad = loaded.tokenizer.pad_token_id
    batches = [collate(examples[i : i + 8], pad_id=pad) for i in range(0, len(examples), 8)]
    influence = depth.block_influence(loaded.model, batches)
    student = depth.cut(loaded.model, depth.most_influential(influence, LAYERS))
    saving.save(student, loaded.tokenizer, home / "student", torch.bfloat16)
    train = _read(TRAIN, questions)
    _write(home / "prompts.jsonl", [{"prompt": row["question"]} for row in train])
    _write(home / "gold.jsonl", [{"prompt": row["question"], "completion": row["answer"]} for row in train])
    heldout = answers([row["question"] for row in _read(TEST, screening + prompts)])
    _write(home / "screen.jsonl", heldout[:screening])
    _write(home / "heldout.jsonl", heldout[screening:])
    return {"influence": [round(value, 4) for value in influence]}


def stage_of(method: str, **options: Any) -> dict[str, Any]:
    """The stage of a preset that its method is named for, under the name `arm`."""
    stages = [stage for stage in METHODS[method].stages if isinstance(stage, dict)]
    ours = [s for s in stages if next(iter(s.values())).get("name") != "warm_up" and "generate" not in s]
    verb, chosen = next(iter(ours[0].items())) if ours else ("finetune", {})
    if method in ON_POLICY:
        options["guards"] = None
    if method == "sft":
        options["data"] = "gold.jsonl"
    return {verb: {**copy.deepcopy(chosen), "name": "arm", **options}}


def recipe(folder: str, seed: int, warm: int, arm: Mapping[str, Any] | None = None) -> str:
    """The recipe of a seed: the teacher's answers, the shared warm start, and an arm behind it."""
    common = {"tokens_per_step": TOKENS_PER_STEP, "schedule": "cosine", "warmup": WARM_UP_SHARE}
    warm_up = {"name": "warm_up", "divergence": "forward_kl", "steps": warm, "learning_rate": WARM_UP_RATE}
    stages: list[Any] = [
        {
            "generate": {
                "max_new_tokens": NEW_TOKENS,
                "sampling_temperature": TEACHER_TEMPERATURE,
                "filters": [{"truncated": {"action": "count"}}],
            }
        },
        {"distill": warm_up | common},
    ]
    text = {
        "version": 1,
        "name": f"seed-{seed}" if arm is None else f"arm-{seed}",
        "seed": seed,
        "runs": str(Path(folder) / "runs"),
        "teacher": {"model": TEACHER},
        "student": {"model": "./student"},
        "data": {"train": "prompts.jsonl", "seed": seed},
        "stages": stages + ([] if arm is None else [dict(arm)]),
    }
    file = Path(folder) / f"{text['name']}.yaml"
    file.write_text(json.dumps(text, indent=1), encoding="utf-8")  # JSON is YAML
    return str(file)


def warm_start(folder: str, seed: int, warm: int) -> dict[str, Any]:
    """The teacher's answers and the warm start of a seed, kept in the store and as a folder."""
    from potstill.runs.run import run

    result = run(recipe(folder, seed, warm))
    return {"student": str(result.path / "student"), "seconds": round(result.train.seconds, 1)}


# ── by the clock ──────────────────────────────────────────────────────────────────────────────────


class TimeIsOver(Exception):
    """Ends an arm's run where its time ends; nothing of it is kept but the copies for the scorer."""


@dataclass
class Clock:
    """An arm's time: how much of it is over, and what it was spent on."""

    seconds: float
    highest: float  # learning rate
    began: float = field(default_factory=time.process_time)
    paused: float = 0.0
    steps: int = 0
    tokens: int = 0  # that were trained on
    written: int = 0
    writing: float = 0.0
    scoring: float = 0.0

    @property
    def spent(self) -> float:
        return time.process_time() - self.began - self.paused

    def learning_rate(self) -> float:
        """Warm up, then a cosine down to 0 at the end of the time, and 0 behind it."""
        done = min(1.0, self.spent / self.seconds)
        if done < WARM_UP_SHARE:
            return self.highest * max(done, 0.1 * WARM_UP_SHARE) / WARM_UP_SHARE
        return self.highest * 0.5 * (1 + math.cos(math.pi * (done - WARM_UP_SHARE) / (1 - WARM_UP_SHARE)))

    def figures(self) -> dict[str, Any]:
        """What is said of an arm beside its scores."""
        times = {"seconds": self.spent, "generation_seconds": self.writing, "scoring_seconds": self.scoring}
        rounded = {name: round(value, 1) for name, value in times.items()}
        return {"steps": self.steps, "tokens": self.tokens, "written_tokens": self.written} | rounded


@dataclass
class TimedWriter:
    """The sampler of a training, whose calls are timed, and whose steps in all follow the clock."""

    writer: Any
    clock: Clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self.writer, name)

    @property
    def steps(self) -> int:
        """As many as there will be at the pace so far."""
        share = min(1.0, self.clock.spent / self.clock.seconds)
        return math.ceil(max(1, self.clock.steps) / max(share, 1e-6))

    def write(self, *what: Any, **how: Any) -> Any:
        began = time.process_time()
        completions = self.writer.write(*what, **how)
        self.clock.writing += time.process_time() - began
        self.clock.written += sum(len(one.ids) for one in completions)
        return completions

    def score(self, examples: Sequence[Any]) -> Any:
        began = time.process_time()
        result = self.writer.score(examples)
        self.clock.scoring += time.process_time() - began
        return result


def train(
    folder: str,
    out: str,
    seed: int,
    warm: int,
    method: str,
    rate: float,
    seconds: float,
    marks: int,
    pace: float,
) -> dict[str, Any]:
    """Train an arm for so many seconds; `out`/1 .. `out`/`marks` are its student after equal shares of them.

    Args:
        pace: seconds that a step may take, from which a run chooses how often to validate.
    """
    from potstill.runs.run import run
    from potstill.stages import _train
    from potstill.train import loop

    original, found = loop.train, dict[str, Any]()

    def by_the_clock(*parts: Any, **more: Any) -> Any:
        module, examples, teacher, strategy, sampler, loss_at, spec, hooks = parts
        if spec.name != "arm":
            raise RuntimeError(f"{spec.name} is not in the store: run the study's warm start first")
        clock = Clock(seconds, rate)
        # The loop reads it by this name; a schedule that follows time is none of potstill's own.
        loop.learning_rate_at = lambda spec, step: clock.learning_rate()
        watch = _watch(clock, module, Path(out), marks, found, hooks.event)
        hooks = replace(hooks, event=watch, save=lambda progress, optimizer: None)
        endless = spec.model_copy(update={"steps": 10**9})
        writer = TimedWriter(sampler, clock)
        return original(module, examples, teacher, strategy, writer, loss_at, endless, hooks, **more)

    _train.train = by_the_clock
    steps = max(1, round(seconds / pace))
    options = {"learning_rate": rate, "steps": steps, "tokens_per_step": TOKENS_PER_STEP}
    try:
        run(recipe(folder, seed, warm, stage_of(method, **options)))
    except TimeIsOver:
        return found
    raise RuntimeError(f"{method} ended before its time: {found}")


def _watch(
    clock: Clock,
    module: Any,
    out: Path,
    marks: int,
    found: dict[str, Any],
    event: Callable[[Mapping[str, Any]], None],
) -> Callable[[Mapping[str, Any]], None]:
    """Count steps, copy the student at every mark, and end the run at the last one."""
    from potstill.models import loading

    tokenizer = loading.load_tokenizer(loading.find_source(TEACHER))
    at: list[float] = []

    def watch(values: Mapping[str, Any]) -> None:
        event(values)
        if values["event"] != "step":
            return
        clock.steps, clock.tokens = clock.steps + 1, clock.tokens + values["tokens"]
        due = min(marks, int(clock.spent / clock.seconds * marks))
        if due == len(at):
            return
        spent, stopped = clock.spent, time.process_time()
        figures = clock.figures()
        student = copy.deepcopy(module.student).to(torch.bfloat16)
        for mark in range(len(at) + 1, due + 1):  # a long step passes several
            loading.save(student, tokenizer, out / str(mark))
            at.append(round(spent, 1))
        clock.paused += time.process_time() - stopped
        if len(at) == marks:
            found.update(figures, at=at)
            raise TimeIsOver

    return watch


def _read(file: Path, count: int) -> list[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in itertools.islice(lines, count)]


def _write(file: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
