"""Two models at work in one process: weights of their own, and modes and adapters left as they were."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from potstill.errors import SignalError

log = logging.getLogger("potstill")


@contextmanager
def undisturbed(*models: nn.Module) -> Iterator[None]:
    """Leave every sub-module's mode, adapters and trained parameters as they are now, on exceptions too."""
    parts = list(dict.fromkeys(part for model in models for part in model.modules()))
    modes = [part.training for part in parts]
    layers: list[Any] = [part for part in parts if hasattr(part, "enable_adapters")]
    adapters = [(layer, *_adapters(layer)) for layer in layers]
    trained = [(p, p.requires_grad) for model in models for p in model.parameters()]
    try:
        yield
    finally:
        for layer, active, enabled in adapters:
            if _adapters(layer) != (active, enabled):
                layer.set_adapter(active)
                layer.enable_adapters(enabled)
        for part, training in zip(parts, modes, strict=True):
            part.training = training
        for parameter, wanted in trained:
            parameter.requires_grad_(wanted)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode, and each sub-module back in its own mode afterwards."""
    with undisturbed(model):
        model.eval()
        yield


def as_when_drawn(model: nn.Module) -> None:
    """Train a model as it writes, without dropout: a ratio of probabilities now and then must be 1 before any step.

    Blocks that compute their activations again in the backward pass do so in training mode alone; they stay in it,
    and what they drop by a share of their own is set to 0.
    """
    shares = [(part, name) for part in model.modules() for name in vars(part) if _drops(part, name)]
    model.eval()
    for part in model.modules():
        if getattr(part, "gradient_checkpointing", False):
            part.training = True
    for part, name in shares:
        if part.training:
            setattr(part, name, 0.0)
    if shares:
        log.warning(
            "dropout is off in this training: it would come between what drew a token and what learns from it"
        )


def _drops(part: nn.Module, name: str) -> bool:
    """Whether an attribute is a share of values to drop."""
    value = getattr(part, name)
    named = name == "p" if isinstance(part, nn.Dropout) else "dropout" in name or "pdrop" in name
    return named and isinstance(value, float) and value > 0


def _adapters(layer: Any) -> tuple[list[str], bool]:
    """The active adapters of a PEFT layer, and whether they are enabled."""
    active = layer.active_adapters
    return list(active) if isinstance(active, list | tuple) else [active], not layer.disable_adapters


def require_separate(student: nn.Module, teacher: nn.Module) -> None:
    """Refuse a teacher that shares a trained parameter with the student: its targets would move with it.

    Raises:
        SignalError: names the parameter.
    """
    theirs = {_memory(parameter) for parameter in teacher.parameters()}
    for name, parameter in student.named_parameters():
        if parameter.requires_grad and _memory(parameter) in theirs:
            raise SignalError(
                f"teacher and student share {name}, which is trained: the targets would move with the student.",
                fix="Give the teacher weights of its own: load it again, or copy.deepcopy it before adapters are added.",
            )


def _memory(parameter: nn.Parameter) -> tuple[str, int]:
    """What two parameters share when they are the same numbers; a sharded one has no address."""
    address = parameter.data_ptr() if type(parameter) is nn.Parameter else 0
    return (str(parameter.device), address) if address else ("object", id(parameter))
