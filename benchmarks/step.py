"""A training step of the quickstart's pair beside TRL's GKD trainer: tokens a second and peak memory.

SmolLM2-135M-Instruct teaches its own cut of 20 layers on grade-school mathematics, 8 rows of at most 192
tokens a step, generalised JSD with beta 0.5, no activation checkpointing. Two threads, which is how such a
machine trains; each contender in a process of its own, in turning order, on the same rows in the same order.
Ours cuts a step into the micro-batches that a run would choose, which leaves its gradient as it is.
`step_share_of_gemm_rate` is the time of the step's matrix products alone, without attention, over the
step's: measured in the same process and dtype after the steps.
Both compute in bf16 where the CPU is fast at it, else in fp32. Tokens are the real tokens of the batch,
prompts included; tokenizing and padding are not timed. `--full` adds TRL in bf16 and with its own default of
activation checkpointing. `ours` with `kept` reads the teacher from a cache that was written before the clock started;
`benchmarks/cache.py` compares that with TRL.
"""

from __future__ import annotations

import argparse
import math
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from kept import keep
from pair import LAYERS, LONGEST, micro_batch_tokens, missing, pair, product_dtype, rows
from protocol import (
    Figure,
    Report,
    alone,
    answer,
    arguments,
    clock,
    forget_peak,
    installed,
    resident,
    spread,
    use_threads,
)

BATCH, THREADS, TIMED = 8, 2, 6
MICRO = micro_batch_tokens()
FIGURES = (
    ("tokens_per_second_vs_trl_gkd", "tokens_per_second", 2.0, "higher"),
    ("peak_memory_vs_trl_gkd", "peak_gb", 0.5, "lower"),
)
SHARE = ("step_share_of_gemm_rate", "share_of_gemm_rate", 0.7, "higher")
Runs = Mapping[str, list[dict[str, Any]]]


def result(marks: Sequence[tuple[int, float]], base: int) -> dict[str, Any]:
    """What a contender answers, from (tokens, seconds) of each step; the first one warms up."""
    tokens, seconds = zip(*marks[1:], strict=True)
    return {
        "tokens_per_second": round(sum(tokens) / sum(seconds), 2),
        "peak_gb": round(resident("VmHWM") / 1e9, 3),
        "gb_before": round(base / 1e9, 3),
        "tokens": list(tokens),
        "seconds": [round(s, 3) for s in seconds],
    }


def ours(steps: int, divergence: str = "jsd", kept: bool = False) -> dict[str, Any]:
    """potstill's step: accumulate, clip, AdamW; the teacher is asked, or read from a cache of its hidden states."""
    from potstill.data.batch import collate
    from potstill.data.plan import plan_steps
    from potstill.models import vocabulary
    from potstill.objectives.token import Divergence, TokenLoss
    from potstill.recipe import plugins
    from potstill.recipe.training import Training
    from potstill.teachers.local import LocalTeacher
    from potstill.train.optimizer import make_optimizer
    from potstill.train.step import StudentModule, accumulate

    dtype = product_dtype()
    loaded, student = pair(dtype)
    size, pad = vocabulary.read_vocabulary(loaded.tokenizer).size, loaded.tokenizer.pad_token_id
    examples = [example for _, example in rows(loaded.tokenizer, BATCH * steps)]
    module = StudentModule(student, size, autocast=None if dtype == torch.float32 else dtype)
    teacher: Any = LocalTeacher(loaded.model, vocabulary=size, fingerprint="benchmark")
    place = Path(tempfile.mkdtemp(prefix="kept-")) if kept else None
    if place is not None:
        setting = {"format": "fp16", "dtype": str(dtype).removeprefix("torch.")}
        teacher = keep(teacher, examples, place, "hidden", setting, vocabulary=size, pad_id=pad)
    options = {"beta": 0.5} if divergence == "jsd" else {}
    loss = TokenLoss(Divergence.from_module(plugins.load("divergences", divergence, options), options))
    spec = Training(steps=steps, learning_rate=1e-5)
    optimizer = make_optimizer(module, spec)
    module.train()
    marks, scored = [], []
    base = forget_peak()
    for index in range(steps):
        step = examples[index * BATCH : (index + 1) * BATCH]
        lengths = [len(example.input_ids) for example in step]
        (micros,) = plan_steps(
            lengths, lengths, tokens_per_step=sum(lengths), micro_batch_tokens=MICRO, seed=0, epoch=0
        )
        batches = [collate([step[row] for row in micro], pad_id=pad) for micro in micros]
        began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        accumulate(module, teacher, batches, loss)
        torch.nn.utils.clip_grad_norm_(module.parameters(), spec.max_grad_norm or math.inf)
        optimizer.step()
        marks.append((sum(lengths), time.perf_counter() - began))
        scored.append(sum(batch.count for batch in batches))
    found = result(marks, base)
    if place is not None:
        shutil.rmtree(place)
        return found
    alone_for = products_alone(
        [(loaded.model, False), (student, True)], sum(found["tokens"]), sum(scored[1:]), dtype
    )
    return found | {"share_of_gemm_rate": round(alone_for / sum(found["seconds"]), 3)}


def products_alone(
    models: Sequence[tuple[Any, bool]], tokens: float, scored: float, dtype: torch.dtype
) -> float:
    """Seconds of the products of all linear layers for so many tokens, three for each layer of a trained model."""
    seconds = 0.0
    for model, trained in models:
        head = model.get_output_embeddings()
        layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
        shapes = Counter((tuple(layer.weight.shape), layer is head) for layer in layers)
        for ((outputs, inputs), scores), count in shapes.items():
            size = ((MICRO, inputs), (outputs, inputs), (MICRO, outputs))
            x, weight, grad = (torch.randn(shape).to(dtype) for shape in size)
            pairs = [(x, weight.t())] + ([(grad, weight), (grad.t(), x)] if trained else [])
            a_token = sum(fastest(partial(torch.mm, *pair)) for pair in pairs) / MICRO
            seconds += count * a_token * (scored if scores else tokens)
    return seconds


def fastest(action: Callable[[], object], times: int = 5) -> float:
    """Wall seconds of the fastest of several calls, after a warm-up."""
    action()
    return min(clock(action).wall for _ in range(times))


def trl_gkd(steps: int, bf16: bool | None = None, checkpointing: bool = False) -> dict[str, Any]:
    """TRL's GKD trainer with its own collator and no generation (lmbda 0)."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    bf16 = product_dtype() == torch.bfloat16 if bf16 is None else bf16
    loaded, student = pair(torch.bfloat16 if bf16 else torch.float32)
    data = Dataset.from_list([{"messages": chat} for chat, _ in rows(loaded.tokenizer, BATCH * steps)])
    marks: list[tuple[int, float]] = []

    class InOrder(GKDTrainer):
        tokens = 0

        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(data)

        def training_step(self, model: Any, inputs: Any, *rest: Any) -> Any:
            self.tokens = int(inputs["attention_mask"].sum())
            return super().training_step(model, inputs, *rest)

    class Clock(TrainerCallback):
        began = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            marks.append((trainer.tokens, time.perf_counter() - self.began))

    with tempfile.TemporaryDirectory() as folder:
        config = GKDConfig(
            output_dir=folder,
            per_device_train_batch_size=BATCH,
            max_steps=steps,
            lmbda=0.0,
            beta=0.5,
            max_length=LONGEST,
            learning_rate=1e-5,
            bf16=bf16,
            gradient_checkpointing=checkpointing,
            use_cpu=True,
            dataloader_pin_memory=False,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        trainer = InOrder(
            student,
            loaded.model,
            args=config,
            train_dataset=data,
            processing_class=loaded.tokenizer,
            callbacks=[Clock()],
        )
        base = forget_peak()
        trainer.train()
        return result(marks, base)


def measure(quick: bool, full: bool) -> Runs:
    """Every contender's runs, in turning order."""
    found: dict[str, list[dict[str, Any]]] = {}

    def one(label: str, task: str, **options: Any) -> None:
        seen = alone(__file__, task, threads=THREADS, steps=TIMED + 1, **options)
        found.setdefault(label, []).append(seen)

    order = ["ours", "trl_gkd"] if quick else ["ours", "trl_gkd", "trl_gkd", "ours"] * 2
    for name in order:
        if name == "ours" or installed("trl"):
            one(name, name)
    one("ours_forward_kl", "ours", divergence="forward_kl")
    if full and installed("trl"):
        one("trl_gkd_bf16", "trl_gkd", bf16=True)
        one("trl_gkd_checkpointed", "trl_gkd", checkpointing=True)
    return found


def figures(found: Runs, shape: Mapping[str, Any]) -> list[Figure]:
    """Ours over TRL's, neighbour by neighbour, and every contender's own numbers."""
    made = []
    for name, key, bar, better in FIGURES:
        facts = {
            label: {f"median_{key}": spread([run[key] for run in runs])["median"], "runs": runs}
            for label, runs in found.items()
        }
        value, note = None, "the package trl is not installed"
        if "trl_gkd" in found:
            neighbours = zip(found["ours"], found["trl_gkd"], strict=True)
            ratios = spread([mine[key] / theirs[key] for mine, theirs in neighbours])
            value, note = ratios["median"], f"run by run {ratios['min']:g} to {ratios['max']:g}"
        made.append(Figure(name, value, "ratio", bar, better, facts, shape, note))  # type: ignore[arg-type]
    name, key, bar, better = SHARE
    shares = spread([run[key] for run in found["ours"]])
    note = f"run by run {shares['min']:g} to {shares['max']:g}"
    made.append(Figure(name, shares["median"], "share", bar, better, {}, shape, note))  # type: ignore[arg-type]
    return made


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--full", action="store_true", help="also TRL in bf16 and with checkpointing")
    options = arguments(__doc__, parser)
    if options.task:
        use_threads(THREADS)
        return answer(options.task, {"ours": ours, "trl_gkd": trl_gkd})
    report = Report("training step, two threads", options.json)
    shape: dict[str, Any] = {
        "batch": BATCH,
        "longest": LONGEST,
        "student_layers": LAYERS,
        "divergence": "jsd, beta 0.5",
        "threads": THREADS,
        "timed_steps_a_run": TIMED,
        "micro_batch_tokens": MICRO,
        "checkpointing": False,
    }
    if reason := missing():
        for name, _, bar, better in (*FIGURES, SHARE):
            report.add(Figure(name, None, "ratio", bar, better, shape=shape, note=reason))  # type: ignore[arg-type]
        return None
    found = measure(options.quick, options.full)
    tokens = {name: sum(runs[0]["tokens"]) for name, runs in found.items()}
    report.say(f"    tokens of the timed steps (each counts its own): {tokens}")
    for figure in figures(found, shape | {"dtype": str(product_dtype()).removeprefix("torch.")}):
        report.add(figure)
    return None


if __name__ == "__main__":
    main()
