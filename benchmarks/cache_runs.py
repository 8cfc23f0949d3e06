"""What a capture adds to the teacher's own passes, and what a training step saves by reading them.

`capture_hidden_vs_forward` is the time of writing fp16 hidden states, forward passes included, over that of the
passes of the teacher's body alone, on the same batches. `step_from_cache_vs_live` is the tokens a second of a training
step of the quickstart's pair that reads a cache, over those beside the live teacher, on the same rows;
`step_from_cache_vs_trl_gkd` over those of TRL's GKD trainer, as `step.py` measures both: two threads, JSD, each in a
process of its own, in turning order.
"""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from kept import Kept
from pair import micro_batch_tokens, pair, product_dtype, rows
from protocol import Figure, Report, alone, installed, spread

ROWS, BATCH, STEPS, TURNS = 48, 8, 4, 3
STEP, TWO, TIMED = str(Path(__file__).with_name("step.py")), 2, 6  # of what is measured beside TRL
TOKENS, MICRO = (
    2048,
    micro_batch_tokens(),
)  # of a capture's batch, and of a micro-batch, as `auto` chooses them


def figures(report: Report, shape: Any, *, quick: bool = False) -> None:
    """Both figures."""
    from potstill.console import Console
    from potstill.models import vocabulary
    from potstill.stages._entries import Entries
    from potstill.stages._plan import each_once, plan_of
    from potstill.teachers.local import LocalTeacher

    loaded, student = pair(product_dtype())
    size = vocabulary.read_vocabulary(loaded.tokenizer).size
    examples = [example for _, example in rows(loaded.tokenizer, ROWS // 3 if quick else ROWS)]
    teacher = LocalTeacher(loaded.model, vocabulary=size, fingerprint="benchmark")
    width = loaded.model.config.hidden_size
    plan = plan_of(each_once(examples), batch_tokens=TOKENS, bytes_per_token=2.0 * width, part_bytes=2**27)
    job = SimpleNamespace(
        context=SimpleNamespace(console=Console(quiet=True), stop_signal=lambda: 0),
        spec=SimpleNamespace(name="benchmark"),
        teacher=teacher,
    )
    job.entries = Entries(teacher, torch.device("cpu"), loaded.tokenizer.pad_token_id)
    with tempfile.TemporaryDirectory() as place:
        turns = [_captured(job, plan, size, width, Path(place) / str(turn)) for turn in range(TURNS)]
        ratio = min(capture for capture, _ in turns) / min(alone for _, alone in turns)
        contenders = {"capture": [round(c, 3) for c, _ in turns], "forward": [round(a, 3) for _, a in turns]}
        report.add(
            Figure("capture_hidden_vs_forward", round(ratio, 3), "ratio", 1.10, "lower", contenders, shape)
        )
        speed = _steps(student, examples, teacher, Path(place) / "0", size, loaded.tokenizer.pad_token_id)
    gain = speed["cache"] / speed["live"]
    report.add(Figure("step_from_cache_vs_live", round(gain, 3), "ratio", 1.2, "higher", speed, shape))


def beside_trl(report: Report, shape: Any, *, quick: bool = False) -> None:
    """Training from a cache over TRL's trainer, neighbour by neighbour."""
    name, bar = "step_from_cache_vs_trl_gkd", 2.5
    if not installed("trl"):
        report.add(Figure(name, None, "ratio", bar, "higher", note="the package trl is not installed"))
        return
    runs: dict[str, list[float]] = {"kept": [], "trl_gkd": []}
    for turn in ("kept", "trl_gkd") if quick else ("kept", "trl_gkd", "trl_gkd", "kept") * 2:
        task, options = ("ours", {"kept": True}) if turn == "kept" else (turn, {})
        made = alone(STEP, task, threads=TWO, steps=TIMED + 1, **options)
        runs[turn].append(made["tokens_per_second"])
    ratios = spread([mine / theirs for mine, theirs in zip(runs["kept"], runs["trl_gkd"], strict=True)])
    note = f"run by run {ratios['min']:g} to {ratios['max']:g}"
    report.add(Figure(name, ratios["median"], "ratio", bar, "higher", runs, shape, note))


def _captured(job: Any, plan: Any, size: int, width: int, folder: Path) -> tuple[float, float]:
    """Seconds of a capture, and of the body's passes alone; in this order, behind a pass that warms up."""
    from potstill.cache.header import Header
    from potstill.cache.writer import Writer
    from potstill.data.batch import collate
    from potstill.models import anatomy
    from potstill.stages._writing import Writing

    model = job.teacher._model
    batches = [batch for part in plan.parts for block in part for batch in block.batches]
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    header = Header("hidden", {"format": "fp16", "dtype": dtype}, "benchmark", size)
    with torch.no_grad():
        # The head is stored once, however many rows follow; it is no part of a row's time.
        (_, one), *_ = job.entries.ask(batches[0][:1])
        with Writer(folder, header, part=2**16 - 1) as writer:
            writer.add_block([(bytes(16), one)])
        anatomy.states_of(model, collate(batches[0], pad_id=0))
        began = time.perf_counter()
        Writing(job, folder, header, plan, 2.0 * width).go((0, 1), None)
        capture = time.perf_counter() - began
        began = time.perf_counter()
        for batch in batches:
            anatomy.states_of(model, collate(batch, pad_id=0))
        alone = time.perf_counter() - began
    with Writer(folder, header) as writer:
        writer.finish()
    return capture, alone


def _steps(student: Any, examples: Any, live: Any, folder: Path, size: int, pad_id: int) -> dict[str, float]:
    """Tokens a second of training steps with either teacher, in turn."""
    from potstill import divergences
    from potstill.cache.reader import Cache
    from potstill.data.batch import collate
    from potstill.data.plan import by_length
    from potstill.objectives.token import Divergence, TokenLoss
    from potstill.recipe.training import Training
    from potstill.train.optimizer import make_optimizer
    from potstill.train.step import StudentModule, accumulate

    kept = Kept(Cache.open(folder))
    dtype = product_dtype()
    module = StudentModule(student, size, autocast=None if dtype == torch.float32 else dtype)
    spec, loss = (
        Training(steps=1, learning_rate=1e-5),
        TokenLoss(Divergence.from_module(divergences.forward_kl)),
    )
    optimizer = make_optimizer(module, spec)
    module.train()
    seconds = {"live": math.inf, "cache": math.inf}
    for turn in range(STEPS):
        step = examples[turn * BATCH % len(examples) :][:BATCH]
        micros = by_length([len(row.input_ids) for row in step], MICRO)
        batches = [collate([step[row] for row in micro], pad_id=pad_id) for micro in micros]
        for name, teacher in (("live", live), ("cache", kept)):
            began = time.perf_counter()
            optimizer.zero_grad(set_to_none=True)
            accumulate(module, teacher, batches, loss)  # type: ignore[arg-type]
            optimizer.step()
            each = (time.perf_counter() - began) / sum(len(row.input_ids) for row in step)
            if turn:  # the first one warms up
                seconds[name] = min(seconds[name], each)
    return {name: round(1 / value, 1) for name, value in seconds.items()}
