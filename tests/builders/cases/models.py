"""Mutated folders of models."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from builders.cases.place import SMALL, Case, empty, write_recipe
from builders.mutants import mutate, odd, short, spoiled
from builders.tiny import save_tiny_gguf, tiny_model, tiny_tokenizer

MODELS: dict[str, Callable[[Path], Any]] = {
    "llama": lambda folder: tiny_model().save_pretrained(folder),
    "tied": lambda folder: tiny_model(tie=True).save_pretrained(folder),
    "gpt2": lambda folder: tiny_model(kind="gpt2").save_pretrained(folder),
    "sharded": lambda folder: tiny_model().save_pretrained(folder, max_shard_size="20KB"),
}


def model_case(place: Path, dice: random.Random) -> Case:
    """A model folder of which one file or two changed, as teacher or as student."""
    kind, role = dice.choice(list(MODELS)), dice.choice(["teacher", "student"])
    folder = empty(place)
    write_model(folder, kind)
    done = [_spoil_model(folder, dice) for _ in range(dice.choice([1, 1, 2]))]
    write_recipe(place, SMALL | {role: {"model": "./case"}})
    return Case([["check", "r.yaml"], ["run", "r.yaml"]], f"{kind} as {role}: {'; '.join(done)}")


def write_model(folder: Path, kind: str) -> None:
    whole = folder.parent / f"whole-{kind}"
    if not whole.exists():
        MODELS[kind](whole)
        tiny_tokenizer().save_pretrained(whole)
    shutil.copytree(whole, folder, dirs_exist_ok=True)


EXTRA = (
    "adapter_config.json", "pytorch_model.bin", "model-00009-of-00009.safetensors", "added_tokens.json", "special_tokens_map.json",
    "vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja", "chat_template.json", "config.py", "processor_config.json",
    "model.safetensors.index.json", "additional_chat_templates", "quantize_config.json", "model.gguf", "vocab.txt",
)  # fmt: skip
CONTENTS = (b"", b"{}", b"[]", b"null", b"\x80\x02")


def _spoil_model(folder: Path, dice: random.Random) -> str:
    files = sorted(p for p in folder.iterdir() if p.is_file())
    jsons = [p for p in files if p.suffix == ".json" and p.stat().st_size]
    action = dice.choice(
        ["values"] * 6 + ["header", "header", "bytes", "missing", "extra", "linked", "pipe", "folder"]
    )
    if action == "values" and jsons:
        path = dice.choice(jsons)
        try:
            value = json.loads(path.read_bytes())
        except ValueError:
            value = {}
        changed, what = mutate(value, dice)
        path.write_text(json.dumps(changed))
        return f"{path.name}: {what}"
    if action == "header":
        path = dice.choice([p for p in files if p.suffix == ".safetensors"] or files)
        return f"{path.name}: {_spoil_header(path, dice)}"
    path = dice.choice(files)
    if action == "extra":
        path = folder / dice.choice(EXTRA)
        content = dice.choice([*CONTENTS, dice.randbytes(50), json.dumps({"a": odd(dice)}).encode()])
        if not path.exists():
            path.write_bytes(content)
        return f"extra {path.name} {short(content)}"
    if action == "bytes" or action == "values":
        changed, what = spoiled(path.read_bytes(), dice, within=dice.choice([None, 2000]))
        path.write_bytes(changed)
        return f"{path.name}: {what}"
    path.unlink()
    target = dice.choice(
        ["nothing", path.name, "config.json", "/dev/null", "/dev/zero", "../rows.jsonl", "."]
    )
    if action == "linked":
        path.symlink_to(target)
    elif action == "pipe":
        os.mkfifo(path)
    elif action == "folder":
        path.mkdir()
    return f"{path.name}: {action} {target if action == 'linked' else ''}"


def _spoil_header(path: Path, dice: random.Random) -> str:
    """Change what a safetensors file says of its tensors."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    try:
        changed, what = mutate(json.loads(data[8 : 8 + size]), dice)
    except ValueError:
        return "no header"
    header = json.dumps(changed).encode()
    length = dice.choice([len(header)] * 6 + [0, len(header) - 1, 2**40, 2**64 - 1])
    path.write_bytes(length.to_bytes(8, "little") + header + data[8 + size :])
    return f"header of {length} bytes: {what}"


def gguf_case(place: Path, dice: random.Random) -> Case:
    """A GGUF file of which some bytes changed, most of them before its tensors."""
    whole, file = place / "whole.gguf", empty(place) / "m.gguf"
    if not whole.exists():
        save_tiny_gguf(whole)
    os.environ["POTSTILL_CACHE"] = str(place / "case")
    changed, what = spoiled(whole.read_bytes(), dice, within=dice.choice([None, 64, 4000, 8000]))
    file.write_bytes(changed)
    role = dice.choice(["teacher", "student"])
    other = {"teacher": {"model": "case/m.gguf"}} if role == "student" else {}
    write_recipe(place, SMALL | other | {role: {"model": "case/m.gguf"}})
    return Case([["check", "r.yaml"]], f"gguf as {role}: {what}")
