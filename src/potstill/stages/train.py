"""Training a student: distill, finetune and control differ only in their teacher and loss."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from potstill.data.batch import collate
from potstill.errors import Interrupted
from potstill.evaluate.teacher import known
from potstill.models import loading
from potstill.objectives.token import TokenLoss
from potstill.stages.common import ModelRef, World, append_line, peak_rss, produce, read_lines, write_lines
from potstill.stages.student import facts_of
from potstill.store.artifacts import Artifact
from potstill.teachers import local
from potstill.train import checkpoint, packing, parallel
from potstill.train.loop import Hooks, Progress, Settings, make_optimizer, train
from potstill.train.step import StudentModule
from potstill.types import Batch, Example, Strategy, Teacher, Text

METRICS = "metrics.jsonl"
PLACE_AND_PACE = ("micro_batch_tokens", "checkpoint_every")
"""Settings that change memory and speed but no step; a run that ran out of memory goes on with others."""


@dataclass(frozen=True)
class Job:
    """A training run with every part resolved.

    Args:
        name: how the recipe calls the stage.
        student: folder of the student to start from.
        teacher: its model, or None when only text is learnt.
        loss_at: the objective of an optimizer step (0-based).
        loss_facts: what identifies the objective.
        yardstick: forward KL at T = 1, measured at every validation, None without a teacher.
        autocast: dtype of the forward pass, None for fp32.
        stop_ids: ids that end an answer; written into the student's generation config.
        data_key: what identifies the examples.
        on_start: told where metrics are written and how many steps there will be.
    """

    name: str
    student: Artifact
    teacher: ModelRef | None
    examples: Sequence[Example]
    validation: Sequence[Example]
    vocabulary: int
    pad_id: int
    stop_ids: tuple[int, ...]
    strategy: Strategy
    loss_at: Callable[[int], TokenLoss]
    loss_facts: Mapping[str, Any]
    yardstick: TokenLoss | None
    settings: Settings
    autocast: torch.dtype | None
    chunk_bytes: int
    activation_checkpointing: bool
    data_key: str
    on_start: Callable[[Path, int], None] = lambda metrics, steps: None


@dataclass(frozen=True)
class Pad:
    """The sampler of strategies that write nothing."""

    pad_id: int
    packed: bool = False


def run(world: World, job: Job) -> Artifact:
    """The trained student: the best weights seen at a validation."""
    inputs = {
        "student": job.student.key,
        "teacher": None if job.teacher is None else [job.teacher.fingerprint, str(job.teacher.dtype)],
        "data": job.data_key,
        # They choose which weights are kept.
        "validation": [[e.id, e.input_ids, e.scored, e.weight] for e in job.validation],
        "loss": job.loss_facts,
        "settings": {k: v for k, v in asdict(job.settings).items() if k not in PLACE_AND_PACE},
        "autocast": str(job.autocast),
        "stop_ids": job.stop_ids,
    }
    return produce(world, "train", job.name, inputs, lambda folder: _build(world, job, folder))


def _build(world: World, job: Job, folder: Path) -> Mapping[str, Any]:
    torch.manual_seed(job.settings.seed)
    source = loading.find_source(str(job.student.path / "student"))
    loaded = loading.load(source, dtype=torch.float32, device=world.device)
    student = loaded.model
    if job.activation_checkpointing:
        student.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    module = StudentModule(student, job.vocabulary, autocast=job.autocast, chunk_bytes=job.chunk_bytes)
    teacher: local.LocalTeacher | None = None
    if job.teacher is not None:
        own = job.teacher.load(world.device)
        teacher = local.build(model=own.model, vocabulary=job.vocabulary, fingerprint=job.teacher.fingerprint)
        if job.yardstick is not None and job.examples:
            few = sorted(job.examples[:16], key=lambda example: len(example.input_ids))[:4]
            first = collate(few, pad_id=job.pad_id, device=world.device)
            if fault := known(teacher.signal(first), first, job.yardstick).fault:
                world.console.warn(f"{fault}.")
    if job.settings.packing:
        for model in (student, *(() if job.teacher is None else (own.model,))):
            packing.prove(model, job.examples, job.pad_id)
    optimizer = make_optimizer(module, job.settings)
    checkpoints, events = folder / "checkpoints", folder / METRICS
    progress = _resume(world, checkpoints, events, module, optimizer, job.name)
    validate = _validator(world, job, module, teacher)
    if not job.validation and (job.settings.patience is not None or job.settings.best_by != "loss"):
        world.console.warn(
            f"{job.name}: there are too few rows to keep any for validation, so the last weights are kept; "
            "patience and best_by have no effect."
        )
    job.on_start(events, job.settings.steps)
    if progress.step == 0 and job.validation:
        append_line(events, {"event": "validation", "step": 0, "best": False, **validate()})
    with world.console.bar(job.name, job.settings.steps) as bar:

        def event(values: Mapping[str, Any]) -> None:
            append_line(events, {**values, "peak_rss_bytes": peak_rss()})
            if values["event"] == "step":
                rate = values["tokens"] / max(values["seconds"], 1e-9)
                bar.update(values["step"], f"loss {values['loss']:.3f} · {rate:.0f} tok/s")

        hooks = Hooks(
            event=event,
            validate=validate if job.validation else None,
            save=_saver(folder, module),
            should_stop=lambda: bool(world.stop_signal()),
        )
        progress = train(
            module,
            job.examples,
            teacher,
            job.strategy,
            Pad(job.pad_id, job.settings.packing),
            job.loss_at,
            job.settings,
            hooks,
            optimizer=optimizer,
            progress=progress,
        )
    if world.stop_signal() and progress.step < job.settings.steps:
        raise Interrupted(
            f"{job.name} stopped at step {progress.step} of {job.settings.steps}; a checkpoint is saved.",
            signal_number=world.stop_signal(),
        )
    if worse := _never_better(read_lines(events), job.settings.best_by):
        world.console.warn(f"{job.name}: {worse}")
    return _finish(folder, job, student, loaded.tokenizer, progress)


def _never_better(events: Sequence[Mapping[str, Any]], best_by: str) -> str:
    """What to say where no validation was better than the one before training."""
    seen = [(event["step"], event[best_by]) for event in events if event["event"] == "validation"]
    if len(seen) < 2 or seen[0][0] != 0:
        return ""
    step, best = min(seen[1:], key=lambda one: one[1])
    if best < seen[0][1]:
        return ""
    return (
        f"no validation was better than before training ({best_by} {seen[0][1]:.4g} there, {best:.4g} at step "
        f"{step}, whose weights are kept). Lower the learning rate, or look at the validation rows."
    )


def _resume(
    world: World,
    checkpoints: Path,
    events: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    name: str,
) -> Progress:
    found = checkpoint.newest(checkpoints)
    if found is None:
        for left in (events, checkpoints.parent / "best.safetensors"):
            left.unlink(missing_ok=True)
        return Progress()
    checkpoint.restore(found, module, optimizer)
    names = {field.name for field in fields(Progress)}
    progress = Progress(**{k: v for k, v in found.state.items() if k in names})
    progress.best = math.inf if progress.best is None else progress.best
    kept = [line for line in read_lines(events) if line["step"] <= progress.step]
    if progress.validation_due:
        kept = [line for line in kept if (line["event"], line["step"]) != ("validation", progress.step)]
    write_lines(events, [*kept, {"event": "resumed", "step": progress.step}])
    world.console.say(f"{name}: continues after step {progress.step}")
    if found.state["threads"] != torch.get_num_threads():
        world.console.warn(
            f"the checkpoint was made with {found.state['threads']} threads, this process has "
            f"{torch.get_num_threads()}: sums round differently. OMP_NUM_THREADS sets the number."
        )
    return progress


def _saver(folder: Path, module: nn.Module) -> Callable[[Progress, torch.optim.Optimizer, bool], None]:
    def save(progress: Progress, optimizer: torch.optim.Optimizer, best: bool) -> None:
        if parallel.rank() != 0:
            return
        if best:
            temporary = folder / ".best.tmp"
            save_file(checkpoint.trained_tensors(module), temporary)
            temporary.rename(folder / "best.safetensors")
        state = {k: (None if v == math.inf else v) for k, v in asdict(progress).items()}
        checkpoint.save(folder / "checkpoints", progress.step, module, optimizer, state)

    return save


def _validator(
    world: World, job: Job, module: nn.Module, teacher: Teacher | None
) -> Callable[[], Mapping[str, float]]:
    """Token means on the validation rows: the objective, cross-entropy, and forward KL at T = 1."""

    def batches() -> list[Batch]:
        rows = sorted(job.validation, key=lambda example: len(example.input_ids))
        size = max(1, job.settings.micro_batch_tokens // max(1, max(len(r.input_ids) for r in rows)))
        return [collate(rows[i : i + size], pad_id=job.pad_id) for i in range(0, len(rows), size)]

    @torch.no_grad()
    def validate() -> Mapping[str, float]:
        module.eval()
        objective = job.loss_at(job.settings.steps - 1)
        sums: dict[str, float] = {}
        tokens, weight = 0, 0.0
        device = next(module.parameters()).device
        for batch in batches():
            world.stop_if_asked()
            batch = batch.to(device)
            signal = teacher.signal(batch) if teacher is not None else Text()
            total, weights, metrics = module(batch, signal, objective, metrics=True)
            weight += float(weights)
            measured = {"loss": total, **metrics}
            if job.yardstick is not None:
                measured["forward_kl"] = module(replace(batch, weights=None), signal, job.yardstick)[0]
            for name, value in measured.items():
                sums[name] = sums.get(name, 0.0) + float(value)
            tokens += batch.count
        weight = sums.pop("weight", weight) or math.inf
        return {name: value / (weight if name == "loss" else tokens) for name, value in sums.items()}

    return validate


def _finish(folder: Path, job: Job, student: Any, tokenizer: Any, progress: Progress) -> Mapping[str, Any]:
    best = folder / "best.safetensors"
    if best.is_file():
        weights = load_file(best)
        with torch.no_grad():
            for name, parameter in student.named_parameters():
                parameter.copy_(weights[f"student.{name}"])
    student.generation_config = _generation_config(student, job)
    loading.save(student.cpu(), tokenizer, folder / "student")
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    best.unlink(missing_ok=True)
    return {
        "steps": progress.step,
        "tokens": progress.tokens,
        "train_seconds": progress.seconds,
        "tokens_per_second": progress.tokens / max(progress.seconds, 1e-9),
        "best_step": progress.best_step,
        "best_loss": None if math.isinf(progress.best) else progress.best,
        **facts_of(student),
    }


def _generation_config(student: Any, job: Job) -> Any:
    """Ends where training ended answers; sampling settings stay the reader's own choice."""
    from transformers import GenerationConfig

    old = json.loads(student.generation_config.to_json_string()) if student.generation_config else {}
    stop = list(job.stop_ids)
    return GenerationConfig(
        bos_token_id=old.get("bos_token_id"),
        eos_token_id=stop[0] if len(stop) == 1 else stop,
        pad_token_id=job.pad_id,
    )
