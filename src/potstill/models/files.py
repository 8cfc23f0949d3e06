"""The files of a model folder. What is loaded is exactly what is checked and hashed here."""

from __future__ import annotations

import json
import math
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open

from potstill.errors import ModelError
from potstill.models.border import border

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
CONFIG, ADAPTER, GENERATION = "config.json", "adapter_config.json", "generation_config.json"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
# What a config, a tokenizer, a chat template and a model's own code may stand in.
SETTINGS = ("*.json", "*.jinja", "*.model", "*.txt", "*.py", "*.tiktoken", "*.bpe", "*.vocab", "*/*.jinja")
POINTERS = {b"version https://git-lfs": "Git LFS", b"/annex/objects/": "git-annex"}
POINTER_BYTES = 1024


def folder_files(folder: Path) -> list[Path]:
    """The files that say what a model in a folder is: its weights, and everything that it is configured by.

    Raises:
        ModelError: weights are missing, pickled, elsewhere, or cannot be read.
    """
    tensors(folder)
    return sorted({*weight_files(folder), *(file for name in SETTINGS for file in folder.glob(name))})


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that are loaded: the single one, else those that the index names.

    Raises:
        ModelError: there are none, or the index names something else than a *.safetensors file beside it.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        return [_present(folder / name) for name in shard_names(folder / INDEX)]
    pickled = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern))
    if pickled:
        raise ModelError(
            f"{folder} holds only pickled weights ({pickled[0]}), which can run code on load.",
            fix="Convert them to safetensors first.",
        )
    raise ModelError(f"{folder} holds no weights.", fix=f"It must have {SINGLE}, or {INDEX} and its shards.")


def _present(shard: Path) -> Path:
    if not shard.is_file():
        raise ModelError(f"{shard} is missing; {INDEX} names it.", fix="Download it again.")
    return shard


def shard_names(index: Path) -> list[str]:
    """The names of the files that an index names.

    Raises:
        ModelError: one is no plain *.safetensors, or the index cannot be read.
    """
    with border(f"cannot read {index}", "Download it again."):
        names = sorted(set(read_json(index)["weight_map"].values()))
        for name in names:
            if name != Path(name).name or not name.endswith(".safetensors"):
                raise ModelError(
                    f"{index} names {name!r}, which is not a *.safetensors file beside it.",
                    fix="Put all shards, as safetensors, into the model's folder.",
                )
    return names


def tensors(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every stored tensor by its name, from the files' headers.

    Raises:
        ModelError: a file cannot be read as safetensors, is cut off, or is a pointer to a file elsewhere.
    """
    return {name: tuple(entry.get_shape()) for name, entry in _entries(folder)}


def numbers(folder: Path) -> Counter[str]:
    """How many numbers are stored in each format, by the names of safetensors: F32, BF16, …"""
    counts: Counter[str] = Counter()
    for _, entry in _entries(folder):
        counts[entry.get_dtype()] += math.prod(entry.get_shape())
    return counts


def _entries(folder: Path) -> Iterator[tuple[str, Any]]:
    """The name of every stored tensor, and what its file's header says of it."""
    for file in weight_files(folder):
        require_content(file)
        with border(f"cannot read {file}", "Download it again."), safe_open(file, "pt") as handle:
            yield from [(name, handle.get_slice(name)) for name in handle.keys()]  # noqa: SIM118


def require_regular(folder: Path) -> None:
    """Refuse a folder in which something could block or never end: pipes, sockets and devices, links to them too;
    and pointer texts, which stand for files that were not fetched.

    Raises:
        ModelError: names the file.
    """
    for path in sorted(folder.iterdir()):
        if not path.exists():
            if path.is_symlink() and "annex/objects/" in str(path.readlink()):
                raise _pointer(path, "git-annex")
            continue  # a link to nothing; whoever needs the file says that it is missing
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            require_content(path)
        elif not stat.S_ISDIR(mode):
            raise ModelError(
                f"{path} is a pipe, socket or device, not a file.", fix="Take it out of the model's folder."
            )


def require_content(file: Path) -> None:
    """Refuse the pointer text that a version-control store leaves in a file's place."""
    if file.stat().st_size > POINTER_BYTES:
        return
    with border(f"cannot read {file}", "Check the file's permissions."):
        start = file.read_bytes()
    for words, store in POINTERS.items():
        if start.startswith(words):
            raise _pointer(file, store)


def _pointer(file: Path, store: str) -> ModelError:
    return ModelError(
        f"{file} is a pointer of {store}, not the file itself.",
        fix=f"Fetch the file with {store}, or download the model again.",
    )


def read_json(file: Path) -> dict[str, Any]:
    """Read one JSON object."""
    value = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    return value
