"""The folder in which cases are tried, and what a case is."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from builders import chats
from builders.tiny import save_tiny, tiny_model

STAGES: list[Any] = [
    {"distill": {"steps": 1}},
    {"evaluate": {"samples": 2, "resamples": 100, "max_new_tokens": 4}},
]
SMALL: dict[str, Any] = {
    "teacher": {"model": "teacher"}, "student": {"from_teacher": {"keep_layers": 1, "by": "uniform"}},
    "data": {"train": "rows.jsonl"}, "stages": STAGES,
}  # fmt: skip
LARGE: dict[str, Any] = {
    "version": 1, "name": "large", "seed": 3, "runs": "runs",
    "teacher": {"model": "teacher", "dtype": "float32"},
    "student": {"model": "./student", "trust_remote_code": False},
    "data": {
        "train": ["more", "more/train.jsonl"], "heldout": "heldout.jsonl", "format": "prompt", "on_bad_row": "skip",
        "columns": {"note": "unused"}, "weight": "w", "system": "merge", "reasoning": "strip", "max_length": 200,
        "limit": 20, "seed": 5, "template": {"file": "template.jinja", "kwargs": {"enable_thinking": False}},
    },
    "stages": [
        {"generate": {"max_new_tokens": 8, "sampling_temperature": 0.7, "top_p": 0.9, "top_k": 5, "batch_rows": 4, "samples": 2}},
        {"distill": {
            "divergence": {"jsd": {"beta": 0.1}}, "ce_weight": 0.1, "temperature": 2.0, "epochs": 2,
            "learning_rate": 1e-3, "tokens_per_step": 64, "micro_batch_tokens": 64, "schedule": "linear", "warmup": 0.1,
            "betas": [0.9, 0.95], "precision": "float32", "validate_every": 2, "best_by": "loss", "packing": True,
            "token_weights": {"position": {"half_life": 8}},
        }},
        {"finetune": {"name": "polish", "steps": 2}},
        {"control": {"name": "twin"}},
        {"evaluate": {"metrics": ["likelihood", "rouge_l"], "samples": 4, "resamples": 100}},
    ],
}  # fmt: skip


CALL = {"type": "function", "function": {"name": "w40", "arguments": {"w41": "w42", "w43": None}}}
TOOL = {
    "type": "function",
    "function": {"name": "w40", "parameters": {"type": "object", "properties": {"w41": {"type": "string"}}}},
}


def turn(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def part(text: str) -> list[Any]:
    return [{"type": "text", "text": text}]


# Rows by their shape: the number is in the question.
SHAPES: dict[str, Callable[[str], dict[str, Any]]] = {
    "prompt": lambda q: {"id": q, "prompt": f"{q} w12", "response": f"w30 {q}"},
    "messages": lambda q: {"messages": [
        turn("user", q), turn("assistant", "w30", weight=0), turn("user", "w13"), turn("assistant", f"w50 {q}", weight=1)]},
    "system": lambda q: {"messages": [turn("system", "w9"), turn("user", q), turn("assistant", "w30")]},
    "tools": lambda q: {"tools": [TOOL], "messages": [
        turn("user", q), turn("assistant", "", tool_calls=[CALL]), turn("tool", "w44"), turn("assistant", "w50")]},
    "sharegpt": lambda q: {"conversations": [
        {"from": "human", "value": q}, {"from": "gpt", "value": "<think>w8</think>w31"}]},
    "alpaca": lambda q: {"instruction": q, "input": "w22", "output": "w32", "history": [[q, "w24"]]},
    "question": lambda q: {"question": q, "context": "w25 w26", "answer": "w33"},
    "text": lambda q: {"text": f"{q} w27 w28"},
    "parts": lambda q: {"messages": [turn("user", part(q)), turn("assistant", part("w30"))]},
}  # fmt: skip


def rows(shape: str, count: int = 20) -> list[dict[str, Any]]:
    return [SHAPES[shape](f"w{number + 60}") for number in range(count)]


TOOLS = (
    "{{ bos_token }}{% if enable_thinking %}w7 {% endif %}{% for t in tools or [] %}{{ t | tojson }} {% endfor %}{% for m in messages %}"
    "{% if m.role == 'assistant' %}| {{ m.content }}"
    "{% for c in m.tool_calls or [] %} {{ c.function.name }} {{ c.function.arguments | tojson }}{% endfor %}{{ eos_token }}"
    "{% else %}{{ m.content }} {% endif %}{% endfor %}{% if add_generation_prompt %}|{% endif %}"
)


@dataclass(frozen=True)
class Case:
    """The commands to try, one after the other; `what` tells the mutation."""

    commands: Sequence[Sequence[str]]
    what: str


def prepare(place: Path) -> Path:
    """The folder in which cases are tried: two models, rows, a template."""
    save_tiny(place / "teacher")
    save_tiny(place / "student", layers=1, seed=1)
    chats.write_lines(place / "rows.jsonl", *rows("prompt"))
    weighed = [row | {"w": 1 + number % 3, "note": "n"} for number, row in enumerate(rows("prompt"))]
    (place / "more").mkdir()
    chats.write_lines(place / "more/train.jsonl", *weighed[:16])
    chats.write_lines(place / "heldout.jsonl", *weighed[16:])
    (place / "template.jinja").write_text(TOOLS)
    tiny_model(vocab=420).save_pretrained(place / "bytes")
    chats.bytes_tokenizer().save_pretrained(place / "bytes")
    return place


def empty(place: Path) -> Path:
    """The folder of a case, empty; no run is left of earlier ones."""
    for folder in (place / "case", place / "runs"):
        shutil.rmtree(folder, ignore_errors=True)
    (place / "case").mkdir()
    return place / "case"


def write_recipe(place: Path, recipe: Any) -> None:
    (place / "r.yaml").write_text(yaml.safe_dump(recipe))
