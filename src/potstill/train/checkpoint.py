"""Save and restore a training run: weights, optimizer, random state, cursor.

A checkpoint is a folder `step-N` that appears by one rename; an incomplete one is never read.
Tensors are safetensors, everything else JSON.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from potstill.errors import ArtifactError
from potstill.store import artifacts

STATE = "state.json"
WEIGHTS, OPTIMIZER = "weights.safetensors", "optimizer.safetensors"
KEPT = 2

log = logging.getLogger("potstill")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    path: Path
    state: Mapping[str, Any]


def save(
    folder: Path, step: int, module: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]
) -> Path:
    """Write `step-N` and delete all but the newest two."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{step:08d}"
    temporary = folder / f".{target.name}.tmp"
    artifacts.discard(temporary)
    temporary.mkdir()
    save_file(trained_tensors(module), temporary / WEIGHTS)
    packed = optimizer.state_dict()
    tensors = {
        f"{index}.{name}": value.detach().cpu().contiguous()
        for index, values in packed["state"].items()
        for name, value in values.items()
    }
    save_file(tensors | {"random.torch": torch.get_rng_state()}, temporary / OPTIMIZER)
    hashes = {name: artifacts.hash_once(temporary / name) for name in (WEIGHTS, OPTIMIZER)}
    machine = {"threads": torch.get_num_threads(), "groups": packed["param_groups"], "sha256": hashes}
    artifacts.write_sealed(temporary / STATE, {"step": step, **machine, **state})
    # A later step belongs to an abandoned training, after a damaged checkpoint was skipped for instance.
    for other in _steps(folder):
        if other.name >= target.name:
            artifacts.hide(other)
    artifacts.move_into_place(temporary, target)
    complete = _complete(folder)
    for other in _steps(folder):
        if other not in complete[-KEPT:]:
            artifacts.hide(other)
    artifacts.sweep(folder)
    return target


def newest(folder: Path) -> Checkpoint | None:
    """The newest complete and undamaged checkpoint, or None; damaged ones are named in a warning.

    The best weights that a checkpoint refers to are a part of it.
    """
    for path in reversed(_complete(folder)):
        try:
            state = artifacts.read_sealed(path / STATE)
            parts = [(path / name, state["sha256"][name]) for name in (WEIGHTS, OPTIMIZER)]
            if state.get("best_weights"):
                parts.append((folder / best_name(state["best_step"]), state["best_weights"]))
            damaged = [file for file, content in parts if not _is(file, content)]
        except (ArtifactError, KeyError, TypeError):
            damaged = [path / STATE]
        if not damaged:
            return Checkpoint(path, state)
        log.warning("%s is damaged and passed over; going back to what was saved before it", damaged[0])
    return None


def _is(file: Path, content: str) -> bool:
    return file.is_file() and artifacts.hash_once(file) == content


def best_name(step: int) -> str:
    """The file of the weights that were the best at `step`; beside the checkpoints that refer to it."""
    return f"best-{step:08d}.safetensors"


def drop_unused_best(folder: Path) -> None:
    """Remove best weights that no checkpoint refers to any more."""
    used = set()
    for path in _complete(folder):
        with suppress(ArtifactError, KeyError):
            used.add(best_name(artifacts.read_sealed(path / STATE)["best_step"]))
    for file in folder.glob("best-*.safetensors"):
        if file.name not in used:
            artifacts.discard(file)


def restore(checkpoint: Checkpoint, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put weights, optimizer and random state back.

    Raises:
        ArtifactError: the checkpoint belongs to another model.
    """
    weights = load_file(checkpoint.path / WEIGHTS)
    parameters = dict(_named_trained(module))
    if weights.keys() != parameters.keys():
        name = sorted(weights.keys() ^ parameters.keys())[0]
        raise ArtifactError(
            f"{checkpoint.path} is of another model: {name} is on one side only.", fix="Delete it."
        )
    with torch.no_grad():
        for name, tensor in weights.items():
            parameters[name].copy_(tensor)
    tensors = load_file(checkpoint.path / OPTIMIZER)
    torch.set_rng_state(tensors.pop("random.torch"))
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": checkpoint.state["groups"]})


def trained_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The tensors that training changes, each shared one once."""
    return {name: parameter.detach().cpu().contiguous() for name, parameter in _named_trained(module)}


def _named_trained(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]


def _complete(folder: Path) -> list[Path]:
    return [path for path in _steps(folder) if (path / STATE).is_file()]


def _steps(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))
