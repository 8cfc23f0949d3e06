"""The folder of a training under way: checkpoints, the best weights, and one line of metrics an event."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from potstill.devices import ranks
from potstill.errors import ArtifactError, MachineError
from potstill.store.disk import discard, peak_rss
from potstill.store.lines import append_line, read_journal, write_journal
from potstill.train import checkpoint
from potstill.train.loop import Progress

METRICS = "metrics.jsonl"
MOMENTS = 2  # averages that AdamW keeps of every weight


@dataclass(frozen=True)
class TrainingFolder:
    """What a training writes while it runs.

    `beside` returns the tensors that a checkpoint holds beside the student and its optimizer. With `holds` the best
    weights wait in this machine's memory until a checkpoint refers to them: beside a GPU's short steps, writing
    them at every better validation could take longer than the steps.
    """

    path: Path
    beside: Callable[[], Mapping[str, Tensor]] = dict
    holds: bool = False
    _held: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    @property
    def metrics(self) -> Path:
        return self.path / METRICS

    @property
    def _checkpoints(self) -> Path:
        return self.path / ".checkpoints"  # hidden: no part of the artifact

    def log(self, event: Mapping[str, Any]) -> None:
        """Append a step or a validation to the metrics; the first process does."""
        if ranks.first():
            append_line(self.metrics, {**event, "peak_rss_bytes": peak_rss()})

    def events(self) -> list[dict[str, Any]]:
        """Read all that was logged."""
        return read_journal(self.metrics)

    def resume(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Progress, int]:
        """Go back to the newest checkpoint, metrics included; start anew where there is none.

        Returns:
            where the training stands, and the number of threads that the checkpoint was made with.
        """
        newest = ranks.by_first(lambda: checkpoint.newest(self._checkpoints))
        if newest is None:
            ranks.by_first(self._clear)
            return Progress(), torch.get_num_threads()
        checkpoint.restore(newest, module, optimizer, self.beside())
        names = {known.name for known in fields(Progress)}
        progress = Progress(**{key: value for key, value in newest.state.items() if key in names})
        progress.best = math.inf if progress.best is None else progress.best
        ranks.by_first(lambda: self._cut_metrics(progress))
        return progress, newest.state["threads"]

    def require_room(self, module: nn.Module) -> None:
        """Refuse a disk that cannot hold what a training writes: two checkpoints, the best weights, the student.

        Raises:
            MachineError: states what is needed and what is free.
        """
        weights = sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)
        besides = 2 * sum(tensor.numel() * tensor.element_size() for tensor in self.beside().values())
        needed = weights * 2 * (1 + MOMENTS) + 2 * weights + besides
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise MachineError(
                f"the student and its checkpoints need {needed / 1e9:.1f} GB, and {self.path} has "
                f"{free / 1e9:.1f} GB free.",
                fix="Free space, or choose another disk with `runs:` in the recipe.",
            )

    def _clear(self) -> None:
        discard(self.metrics)
        discard(self._checkpoints)

    def _cut_metrics(self, progress: Progress) -> None:
        """Drop what was logged after the checkpoint."""
        kept = [line for line in self.events() if line["step"] <= progress.step]
        if progress.validation_due:
            kept = [line for line in kept if (line["event"], line["step"]) != ("validation", progress.step)]
        write_journal(self.metrics, [*kept, {"event": "resumed", "step": progress.step}])

    def save(self, module: nn.Module, progress: Progress, optimizer: torch.optim.Optimizer | None) -> None:
        """Write a checkpoint to go on from; without an optimizer the last one of a training.

        The last one holds weights only where no validation has kept any.
        """
        if self._held:
            self._write_best(self._held, progress)
            self._held.clear()
        state = {key: None if value == math.inf else value for key, value in asdict(progress).items()}
        weights = optimizer is not None or not progress.best_weights
        kept = module if weights else None
        checkpoint.save(self._checkpoints, progress.step, kept, optimizer, state, self.beside())

    def save_best(self, module: nn.Module, progress: Progress) -> None:
        """Keep the weights by themselves: they are the best so far."""
        weights = checkpoint.trained_tensors(module)
        if self.holds:  # the first process writes them
            for name, weight in weights.items():
                self._held[name] = weight.to("cpu", copy=True) if ranks.first() else weight
        else:
            self._write_best(weights, progress)

    def _write_best(self, weights: Mapping[str, Tensor], progress: Progress) -> None:
        progress.best_weights = checkpoint.save_best(self._checkpoints, progress.best_step, weights)

    def take_best(self, module: nn.Module) -> None:
        """Put the best weights of a finished training into a whole module; the last ones where none were kept.

        Raises:
            ArtifactError: there were some, and they are gone.
        """
        last = checkpoint.newest(self._checkpoints)
        if last is None:
            raise ArtifactError(
                f"the trained weights are gone from {self._checkpoints}.",
                fix="Run the same command again; the training begins again.",
            )
        checkpoint.put_best(last, module)
