"""potstill's loss in a plain torch loop: hidden states in, one sum and one count out.

python examples/with_torch.py TEACHER STUDENT ROWS.jsonl OUT       rows: {"prompt": …, "response": …}
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from potstill import DistillationLoss


def main(teacher, student, rows, out):
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    teacher = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32).eval().requires_grad_(False)
    student = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32).train()
    loss = DistillationLoss("jsd", beta=0.1)
    optimizer = torch.optim.AdamW(student.parameters(), lr=5e-4)
    losses = []
    # Not splitlines(), which would cut a row at U+2028.
    for line in filter(str.strip, Path(rows).read_text(encoding="utf-8-sig").split("\n")):
        row = json.loads(line)
        chat = [{"role": "user", "content": row["prompt"]}]
        asked = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        prompt = tokenizer(asked, add_special_tokens=False).input_ids
        answer = [*tokenizer(row["response"], add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        ids = torch.tensor([prompt + answer])
        labels = torch.tensor([[-100] * len(prompt) + answer])  # not shifted: the loss shifts, once
        with torch.no_grad():
            target = teacher.base_model(ids).last_hidden_state
        hidden = student.base_model(ids).last_hidden_state  # no logits: the loss makes them, chunk by chunk
        result = loss(hidden, student, target, teacher, labels=labels)
        optimizer.zero_grad()
        result.mean.backward()
        optimizer.step()
        losses.append(result.mean.item())
    student.save_pretrained(out)
    return losses


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
