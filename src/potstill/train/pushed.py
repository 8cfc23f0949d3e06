"""The student's weights on their way to an engine that writes with them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.distributed.tensor import DTensor

from potstill.devices import ranks
from potstill.errors import ModelError
from potstill.generate.pushed import Engine, Wanted
from potstill.generate.request import Completion
from potstill.models.beside import evaluating
from potstill.train.checkpoint import student_tensors

FILE = "model.safetensors"
NEAR = {torch.float32: 0.02, torch.bfloat16: 0.25, torch.float16: 0.05}  # nats; both round differently


@dataclass
class Pushed:
    """An engine, and which of the student's weights it has.

    `version` counts the optimizer steps since this process began; what the engine writes is compared once a version
    with what the student says of a prompt, so that no text comes from other weights unnoticed.

    Args:
        start: starts the engine, on the first text.
        folder: where weights lie for it; it is emptied by `close`.
        dtype: number format that the engine computes in.
    """

    start: Callable[[], Engine]
    folder: Path
    dtype: torch.dtype
    version: int = 0
    saved: int | None = None  # the version whose weights lie in the folder
    loaded: int | None = None  # the version that the engine has
    engine: Engine | None = field(default=None)

    def stepped(self) -> None:
        """Take note of an optimizer step."""
        self.version += 1

    def write(
        self, module: nn.Module, wanted: Wanted, ours: Callable[[Sequence[int]], torch.Tensor]
    ) -> list[Completion]:
        """Complete the prompts with the student as it is now; every process calls it.

        Args:
            ours: the student's logits [rows of the head] behind a prompt.

        Raises:
            ModelError: the engine does not write with the student's weights.
        """
        if self.engine is None:
            self.engine = self.start()
        if self.saved != self.version:
            _save(module, self.folder, self.dtype)
            self.saved = self.version
        if self.loaded != self.version or not self.engine.keeps():
            if ranks.first() or not self.engine.keeps():
                self.engine.load(self.folder)
            ranks.broadcast()
        if self.loaded != self.version:
            self._compare(wanted, ours, self.engine)
            self.loaded = self.version
        completions = self.engine.write(wanted)
        self.engine.rest()
        return completions

    def _compare(self, wanted: Wanted, ours: Callable[[Sequence[int]], torch.Tensor], engine: Engine) -> None:
        prompts = ranks.gather(tuple(wanted.prompts[0]) if wanted.prompts else ())
        prompt = next((one for one in prompts if one), ())
        if not prompt:
            return
        token, theirs = engine.first(prompt)
        lp = float(ours(prompt).float().log_softmax(-1)[token])
        if abs(lp - theirs) > NEAR[self.dtype]:
            raise ModelError(
                f"the engine gives the id {token} a log-probability of {theirs:.3f} behind a prompt, the student "
                f"{lp:.3f}: it does not write with the weights of version {self.version}.",
                fix="Use engine: local, or another version of vLLM.",
            )

    def close(self) -> None:
        """Remove the weights from the folder."""
        if ranks.first():
            shutil.rmtree(self.folder, ignore_errors=True)
        self.engine = None


def _save(module: nn.Module, folder: Path, dtype: torch.dtype) -> None:
    """Write the student's weights as a folder of safetensors, parts gathered one tensor at a time."""
    whole = {}
    for name, tensor in student_tensors(module).items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if ranks.first():
            whole[name] = full.to("cpu", dtype).contiguous()
    if ranks.first():
        folder.mkdir(parents=True, exist_ok=True)
        save_file(whole, folder / FILE, metadata={"format": "pt"})
    ranks.broadcast()


@torch.no_grad()
def logits_behind(student: nn.Module, prompt: Sequence[int], device: torch.device) -> torch.Tensor:
    """The logits [rows of the head] of the next id, in evaluation mode."""
    with evaluating(student):
        logits: torch.Tensor = student(input_ids=torch.tensor([list(prompt)], device=device)).logits[0, -1]
    return logits
