"""The peers of `duel.py`: a plain dense loop and TRL's GKD trainer, each against the clock.

Both train in fp32 master weights with a forward pass in the format that a run of potstill picks for this
processor, by the same AdamW, warm-up, cosine and clipping. The cosine follows the clock, so that it always ends
with the time; both validate once, when half of it is over, and stop early enough to save.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pair import LONGEST, Chat, product_dtype
from torch import Tensor

WARM_UP, BETAS, CLIP = 0.03, (0.9, 0.95), 1.0  # as potstill's defaults
SAVING = 3.0  # seconds


@dataclass
class Clock:
    """How much of an arm's time is over, counted from before its process was started."""

    began: float  # seconds since the epoch
    seconds: float
    highest: float  # learning rate
    longest: float = 0.0  # seconds of a step
    last: float = 0.0
    steps: int = 0

    @property
    def share(self) -> float:
        return (time.time() - self.began) / self.seconds

    def learning_rate(self) -> float:
        """Warm up, then a cosine down to 0 at the end of the time."""
        if not self.last:  # what loading took is not warmed up again
            self.last, self.ready = time.time(), self.share
        done = (self.share - self.ready) / (1 - self.ready)
        if done < WARM_UP:
            return self.highest * max(done, 0.1 * WARM_UP) / WARM_UP
        return self.highest * 0.5 * (1 + math.cos(math.pi * min(1.0, (done - WARM_UP) / (1 - WARM_UP))))

    def stepped(self) -> bool:
        """Count a step; whether there is time for another."""
        now = time.time()
        self.longest, self.last, self.steps = max(self.longest, now - self.last), now, self.steps + 1
        return self.seconds - (now - self.began) > self.longest + SAVING


def chats(file: Path) -> list[Chat]:
    """The chats of a JSON-lines file."""
    return [json.loads(line)["messages"] for line in file.read_text(encoding="utf-8").splitlines()]


def encode(tokenizer: Any, chat: Chat) -> tuple[list[int], int]:
    """Ids of a chat up to its last end token, and how many of them are the prompt."""
    asked = tokenizer.apply_chat_template(chat[:-1], add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template(chat, tokenize=False)
    prompt, ids = (tokenizer(text, add_special_tokens=False).input_ids for text in (asked, whole))
    assert ids[: len(prompt)] == prompt
    while ids[-1] != tokenizer.eos_token_id:  # a line break behind it, which nobody writes
        ids.pop()
    return ids, len(prompt)


def padded(rows: list[tuple[list[int], int]], pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, attention mask, and which positions predict a token of an answer, all [B, S]."""
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row, _ in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row, _ in rows])
    places = torch.arange(longest)
    scored = torch.stack([(places >= start - 1) & (places < len(row) - 1) for row, start in rows])
    return ids, mask, scored


def load(folder: Path, dtype: torch.dtype) -> Any:
    """A saved model."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def plain(
    folder: str, out: str, began: float, seconds: float, rate: float, rows: int, seed: int
) -> dict[str, Any]:
    """What one writes in an hour: dense logits, `F.kl_div` on the scored positions, AdamW."""
    from transformers import AutoTokenizer

    clock, home, dtype = Clock(began, seconds, rate), Path(folder), product_dtype()
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(home / "student")
    pad = tokenizer.pad_token_id
    train, watched = (
        [encode(tokenizer, chat) for chat in chats(home / name)] for name in ("train.jsonl", "watch.jsonl")
    )
    teacher = load(home / "teacher", dtype).eval().requires_grad_(False)
    student = load(home / "student", torch.float32).train()
    optimizer = torch.optim.AdamW(student.parameters(), betas=BETAS, weight_decay=0.0, fused=True)

    def loss(batch: list[tuple[list[int], int]]) -> Tensor:
        ids, mask, scored = padded(batch, pad)
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            with torch.no_grad():
                theirs = teacher(input_ids=ids, attention_mask=mask).logits
            ours = student(input_ids=ids, attention_mask=mask).logits
        student_lp, teacher_lp = (F.log_softmax(z[scored].float(), -1) for z in (ours, theirs))
        return F.kl_div(student_lp, teacher_lp, reduction="batchmean", log_target=True)

    measured, validated = 0.0, False
    for batch in shuffled(train, rows, seed):
        for group in optimizer.param_groups:
            group["lr"] = clock.learning_rate()
        optimizer.zero_grad()
        loss(batch).backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), CLIP)
        optimizer.step()
        if not clock.stepped():
            break
        if not validated and clock.share > 0.5:
            validated = True
            student.eval()
            with torch.no_grad():
                parts = [loss(watched[i : i + rows]) for i in range(0, len(watched), rows)]
            student.train()
            measured, clock.last = float(sum(parts)) / len(parts), time.time()
    student.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return {"steps": clock.steps, "validation": round(measured, 4)}


def shuffled(rows: list[Any], size: int, seed: int) -> Iterator[list[Any]]:
    """Batches of the rows, shuffled anew in every epoch, without end."""
    draw = random.Random(seed)
    while True:
        order = draw.sample(rows, len(rows))
        yield from (order[i : i + size] for i in range(0, len(order) - size + 1, size))


def trl_gkd(
    folder: str, out: str, began: float, seconds: float, rate: float, rows: int, seed: int
) -> dict[str, Any]:
    """TRL's GKD trainer with its own collator, forward KL (beta 0) and no generation (lmbda 0)."""
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    clock, home, dtype = Clock(began, seconds, rate), Path(folder), product_dtype()
    tokenizer = AutoTokenizer.from_pretrained(home / "student")
    train, watched = (
        Dataset.from_list([{"messages": chat} for chat in chats(home / name)])
        for name in ("train.jsonl", "watch.jsonl")
    )

    class ByTheClock(TrainerCallback):
        validated = False

        def on_step_begin(self, *_: Any, **given: Any) -> None:
            for group in given["optimizer"].param_groups:
                group["lr"] = clock.learning_rate()

        def on_step_end(self, args: Any, state: Any, control: Any, **__: Any) -> None:
            control.should_training_stop = not clock.stepped()
            if not self.validated and clock.share > 0.5:
                self.validated = control.should_evaluate = True

        def on_evaluate(self, *_: Any, **__: Any) -> None:
            clock.last = time.time()

    config = GKDConfig(
        output_dir=str(home / "trl"),
        per_device_train_batch_size=rows,
        per_device_eval_batch_size=rows,
        max_steps=1_000_000,
        lmbda=0.0,
        beta=0.0,
        max_length=LONGEST + 1,
        learning_rate=rate,
        lr_scheduler_type="constant",
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        max_grad_norm=CLIP,
        bf16=dtype == torch.bfloat16,
        gradient_checkpointing=False,
        use_cpu=True,
        seed=seed,
        dataloader_pin_memory=False,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    trainer = GKDTrainer(
        load(home / "student", torch.float32),
        load(home / "teacher", dtype),
        args=config,
        train_dataset=train,
        eval_dataset=watched,
        processing_class=tokenizer,
        callbacks=[ByTheClock()],
    )
    trainer.train()
    trainer.save_model(out)
    return {"steps": clock.steps}
