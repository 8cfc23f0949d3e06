"""Distillation on one page: teacher and student in, better student out. Needs torch and transformers only.

    python examples/loop.py TEACHER STUDENT ROWS.jsonl OUT

Rows are {"prompt": …, "response": …}. The two models must share a tokenizer. potstill does the same
faster, in less memory and with a cursor to resume from; a test holds both to the same numbers.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import torch

IGNORE = -100


def encode(tokenizer, prompt: str, response: str) -> tuple[list[int], list[int]]:
    """One row as (ids, labels). Only the answer and the token that ends it are scored."""
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
    )
    # The template has written the start token already: adding special tokens would write a second one.
    prompt_ids = tokenizer(asked, add_special_tokens=False).input_ids
    answer_ids = [*tokenizer(response, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    # Ids are appended. Tokenising prompt + answer again could merge tokens across the seam.
    return prompt_ids + answer_ids, [IGNORE] * len(prompt_ids) + answer_ids


def collate(rows: list[tuple[list[int], list[int]]], pad: int) -> dict[str, torch.Tensor]:
    """Right-padded tensors. The mask comes from lengths: the end token may be the pad token too."""
    longest = max(len(ids) for ids, _ in rows)
    return {
        "input_ids": torch.tensor([ids + [pad] * (longest - len(ids)) for ids, _ in rows]),
        "labels": torch.tensor([labels + [IGNORE] * (longest - len(labels)) for _, labels in rows]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in rows]),
    }


def scored_logits(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits [N, V] in fp32 at the positions whose NEXT token is scored: logits at i predict token i + 1."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return logits[:, :-1][batch["labels"][:, 1:] != IGNORE].float()


def forward_kl(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL(teacher ‖ student), mode covering: summed over the vocabulary AND over tokens, in nats.

    Reverse KL, KL(student ‖ teacher), swaps the two: (q * (log q - log p)), mode seeking.
    """
    log_p, log_q = torch.log_softmax(teacher, -1), torch.log_softmax(student, -1)
    return (log_p.exp() * (log_p - log_q)).sum()


def learning_rate(step: int, steps: int, highest: float, warmup: float = 0.03) -> float:
    """Linear warm-up, then cosine to zero."""
    warm = math.ceil(warmup * steps)
    if step < warm:
        return highest * (step + 1) / warm
    return highest * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def distill(
    teacher, student, step_batches: list[list[dict[str, torch.Tensor]]], highest: float
) -> list[float]:
    """Train the student in place on a list of optimizer steps, each a list of micro-batches.

    Returns:
        the loss of every step, in nats per scored token.
    """
    teacher.eval().requires_grad_(False)  # no dropout in a target, no gradient, not in the optimizer
    student.train()
    matrices = [p for p in student.parameters() if p.ndim > 1]
    vectors = [p for p in student.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices}, {"params": vectors}], lr=highest, betas=(0.9, 0.95), weight_decay=0.0
    )
    losses = []
    for step, batches in enumerate(step_batches):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, len(step_batches), highest)
        # One denominator for the whole step, counted before the first loss. Averaging the means of
        # micro-batches would weigh a token by how short its neighbours are.
        tokens = sum(int((batch["labels"][:, 1:] != IGNORE).sum()) for batch in batches)
        optimizer.zero_grad()
        total = 0.0
        for batch in batches:
            with torch.no_grad():
                target = scored_logits(teacher, batch)
            loss = forward_kl(scored_logits(student, batch), target) / tokens
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        losses.append(total)
        print(f"step {step + 1}/{len(step_batches)}: {total:.4f} nats per token", file=sys.stderr)
    return losses


def main(teacher_path: str, student_path: str, rows_path: str, out: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(teacher_path)
    teacher = AutoModelForCausalLM.from_pretrained(teacher_path, dtype=torch.float32)
    student = AutoModelForCausalLM.from_pretrained(student_path, dtype=torch.float32)
    lines = Path(rows_path).read_text(encoding="utf-8-sig").split("\n")  # splitlines() would cut at U+2028
    rows = [
        encode(tokenizer, row["prompt"], row["response"]) for row in map(json.loads, filter(str.strip, lines))
    ]
    torch.manual_seed(0)
    epochs, rows_per_step, rows_at_once = 3, 16, 4
    steps = []
    for _ in range(epochs):
        shuffled = [rows[i] for i in torch.randperm(len(rows)).tolist()]
        for start in range(0, len(rows), rows_per_step):
            step = sorted(shuffled[start : start + rows_per_step], key=lambda row: len(row[0]))
            steps.append(
                [
                    collate(step[i : i + rows_at_once], tokenizer.pad_token_id)
                    for i in range(0, len(step), rows_at_once)
                ]
            )
    distill(teacher, student, steps, highest=5e-4)
    student.save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
