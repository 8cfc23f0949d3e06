"""potstill's loss inside `transformers.Trainer`.

python examples/with_trainer.py TEACHER STUDENT ROWS.jsonl OUT     rows: {"prompt": …, "response": …}
Under torchrun with examples/zero3.json behind OUT, DeepSpeed keeps the student in parts (pip install deepspeed).
"""

import json
import sys
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
)

from potstill import DistillationLoss
from potstill.adapters import TrainerLoss


def encode(tokenizer, row):
    chat = [{"role": "user", "content": row["prompt"]}]
    asked = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    prompt = tokenizer(asked, add_special_tokens=False).input_ids
    answer = [*tokenizer(row["response"], add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    return {
        "input_ids": prompt + answer,
        "labels": [-100] * len(prompt) + answer,
        "attention_mask": [1] * len(prompt + answer),
    }


def main(teacher, student, rows, out, deepspeed=None):
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    # Before the arguments: what is loaded behind them is cut into parts, and nobody puts a teacher's together again.
    teacher = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    lines = Path(rows).read_text(encoding="utf-8-sig").split("\n")  # splitlines() would cut at U+2028
    arguments = TrainingArguments(
        out, per_device_train_batch_size=4, gradient_accumulation_steps=2, num_train_epochs=1, learning_rate=5e-4,
        logging_steps=1, report_to="none", save_strategy="no", remove_unused_columns=False, use_cpu=not torch.cuda.is_available(), deepspeed=deepspeed,
    )  # fmt: skip
    student = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32)
    trainer = Trainer(
        student,
        arguments,
        train_dataset=[encode(tokenizer, json.loads(line)) for line in lines if line.strip()],
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        compute_loss_func=TrainerLoss(student, teacher, DistillationLoss("forward_kl")),
    )
    teacher.to(arguments.device)
    trainer.train()
    trainer.save_model(out)
    return trainer


if __name__ == "__main__":
    main(*sys.argv[1:])
