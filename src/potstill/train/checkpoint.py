"""Save and restore a training run: weights, optimizer, random state, cursor.

A checkpoint is a folder `step-N` that appears by one rename; an incomplete one is never read. The best weights
lie beside the checkpoints that refer to them, and the last checkpoint of a training has none but these.
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
from torch import Tensor, nn

from potstill.devices import ranks
from potstill.errors import ArtifactError
from potstill.store import disk
from potstill.train import parallel, tensors

STATE = "state.json"
WEIGHTS, OPTIMIZER, BESIDE = "weights", "optimizer", "beside"  # folders
RANDOM = "random.torch"
KEPT = 2

log = logging.getLogger("potstill")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    path: Path
    state: Mapping[str, Any]


def save(
    folder: Path,
    step: int,
    module: nn.Module | None,
    optimizer: torch.optim.Optimizer | None,
    state: Mapping[str, Any],
    beside: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write `step-N` and delete all but the newest two.

    What ends a training has no optimizer, and no module either where the best weights lie beside it. `beside` are
    tensors of the training that are neither, as those of a teacher that moves.
    """
    target = folder / f"step-{step:08d}"
    temporary = folder / f".{target.name}.tmp"
    parts: dict[str, Mapping[str, Tensor]] = {}
    if module is not None:
        parts[WEIGHTS] = trained_tensors(module)
        if optimizer is not None:
            parts[OPTIMIZER] = _packed(module, optimizer)
            if beside:
                parts[BESIDE] = beside
    ranks.by_first(lambda: _begin(temporary, parts))
    for name, values in parts.items():
        tensors.write(temporary / name, values)
    ranks.broadcast()
    machine = {
        "step": step,
        "threads": torch.get_num_threads(),
        "sha256": {name: tensors.hashes(temporary / name) for name in parts},
    }
    ranks.by_first(lambda: _publish(temporary, target, {**machine, **state}))
    return target


def _begin(temporary: Path, parts: Mapping[str, Any]) -> None:
    disk.discard(temporary)
    for name in ("", *parts):
        (temporary / name).mkdir(parents=True)


def _publish(temporary: Path, target: Path, state: Mapping[str, Any]) -> None:
    disk.write_sealed(temporary / STATE, state)
    folder = target.parent
    # A later step belongs to an abandoned training, after a damaged checkpoint was skipped for instance.
    for other in _steps(folder):
        if other.name >= target.name:
            disk.hide(other)
    disk.move_into_place(temporary, target)
    complete = _complete(folder)
    for other in _steps(folder):
        if other not in complete[-KEPT:]:
            disk.hide(other)
    disk.sweep(folder)
    _drop_unused_best(folder)


def save_best(folder: Path, step: int, weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Write weights that were the best at `step`, and return the hashes of their files."""
    place, temporary = best(folder, step), folder / ".best.tmp"
    ranks.by_first(lambda: _begin(temporary, {}))
    tensors.write(temporary, weights)
    ranks.broadcast()
    content = tensors.hashes(temporary)

    def publish() -> None:
        disk.discard(place)
        disk.move_into_place(temporary, place)

    ranks.by_first(publish)
    return content


def best(folder: Path, step: int) -> Path:
    """The folder of the weights that were the best at `step`; beside the checkpoints that refer to it."""
    return folder / f"best-{step:08d}"


def newest(folder: Path) -> Checkpoint | None:
    """The newest complete and undamaged checkpoint, or None; damaged ones are named in a warning.

    The best weights that a checkpoint refers to are a part of it.
    """
    for path in reversed(_complete(folder)):
        try:
            state = disk.read_sealed(path / STATE)
            parts = {path / name: content for name, content in state["sha256"].items()}
            if state.get("best_weights"):
                parts[best(folder, state["best_step"])] = state["best_weights"]
            files = {place / name: each for place, content in parts.items() for name, each in content.items()}
            damaged = [file for file, content in files.items() if not _is(file, content)]
        except (ArtifactError, KeyError, TypeError, AttributeError):
            damaged = [path / STATE]
        if not damaged:
            return Checkpoint(path, state)
        log.warning("%s is damaged and passed over; going back to what was saved before it", damaged[0])
    return None


def _is(file: Path, content: str) -> bool:
    return file.is_file() and disk.hash_once(file) == content


def _drop_unused_best(folder: Path) -> None:
    """Remove best weights that no checkpoint refers to any more."""
    used = set()
    for path in _complete(folder):
        with suppress(ArtifactError, KeyError):
            used.add(best(folder, disk.read_sealed(path / STATE)["best_step"]))
    for place in folder.glob("best-*"):
        if place not in used:
            disk.discard(place)


def restore(
    checkpoint: Checkpoint,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    beside: Mapping[str, Tensor] | None = None,
) -> None:
    """Put weights, optimizer, what `save` was given beside them and the random state back, as far as it holds them.

    Raises:
        ArtifactError: the checkpoint belongs to another model.
    """
    if WEIGHTS in checkpoint.state["sha256"]:
        _put(checkpoint.path / WEIGHTS, trained_tensors(module))
    if OPTIMIZER not in checkpoint.state["sha256"]:
        return
    if beside:
        _put(checkpoint.path / BESIDE, beside)
    stored = tensors.shapes(checkpoint.path / OPTIMIZER)
    random = torch.empty(stored.pop(RANDOM), dtype=torch.uint8)
    values: dict[str, Tensor] = {RANDOM: random}
    parameters = dict(parallel.named_trained(module))
    for name, shape in stored.items():
        owner, _, kind = name.rpartition("/")
        parameter = parameters[owner]
        empty = torch.zeros_like if shape == tuple(parameter.shape) else _scalar
        values[name] = optimizer.state[parameter][kind] = empty(parameter.detach())
    tensors.read(checkpoint.path / OPTIMIZER, values)
    if ranks.first():
        _set_random_state(random, next(module.parameters()).device)
    else:  # dropout of their own; as many processes as before or not, these draws are no part of the plan
        torch.manual_seed(checkpoint.state["step"] * 1_000_003 + ranks.rank())


def _scalar(parameter: Tensor) -> Tensor:
    return torch.zeros((), dtype=torch.float32, device=parameter.device)


def put_best(checkpoint: Checkpoint, module: nn.Module) -> None:
    """Put the best weights into a whole module of this process alone; the checkpoint's own where it has no best."""
    folder = checkpoint.path / WEIGHTS
    if checkpoint.state.get("best_weights"):
        folder = best(checkpoint.path.parent, checkpoint.state["best_step"])
    _put(folder, trained_tensors(module), alone=True)


def _put(folder: Path, into: Mapping[str, Tensor], *, alone: bool = False) -> None:
    if different := sorted(tensors.shapes(folder).keys() ^ into.keys()):
        raise ArtifactError(
            f"{folder} is of another model: {different[0]} is on one side only.", fix="Delete it."
        )
    tensors.read(folder, into, alone=alone)


def _packed(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's tensors by the names of their parameters, and the random state of the first process."""
    packed = {
        f"{name}/{kind}": value
        for name, parameter in parallel.named_trained(module)
        for kind, value in optimizer.state.get(parameter, {}).items()
    }
    return packed | {RANDOM: ranks.broadcast(_random_state(next(module.parameters()).device))}


def _random_state(device: torch.device) -> Tensor:
    """The state of the CPU's generator, and behind it that of the GPU, which draws the dropout there."""
    state = torch.get_rng_state()
    return torch.cat([state, torch.cuda.get_rng_state(device)]) if device.type == "cuda" else state


def _set_random_state(state: Tensor, device: torch.device) -> None:
    """Put it back, as far as it is of such a device."""
    of_cpu, of_gpu = state.tensor_split([torch.get_rng_state().numel()])
    torch.set_rng_state(of_cpu)
    if device.type == "cuda" and of_gpu.numel():
        torch.cuda.set_rng_state(of_gpu, device)


def student_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The student's own weights by its names for them, also those that are not trained; each shared one once."""
    prefix = "student."
    every = parallel.named_parameters(module)
    return {
        name.removeprefix(prefix): parameter.detach() for name, parameter in every if name.startswith(prefix)
    }


def trained_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The tensors that training changes, each shared one once."""
    return {name: parameter.detach() for name, parameter in parallel.named_trained(module)}


def _complete(folder: Path) -> list[Path]:
    return [path for path in _steps(folder) if (path / STATE).is_file()]


def _steps(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))
