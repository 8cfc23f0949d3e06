"""The folder of a training under way: checkpoints, the best weights, and one line of metrics an event."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from potstill.errors import ArtifactError
from potstill.store.artifacts import discard, hash_once, move_into_place, peak_rss
from potstill.store.lines import append_line, read_journal, write_journal
from potstill.train import checkpoint, parallel
from potstill.train.loop import Progress


@dataclass(frozen=True)
class TrainingFolder:
    """What a training writes while it runs."""

    path: Path

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def _checkpoints(self) -> Path:
        return self.path / ".checkpoints"  # hidden: no part of the artifact

    def log(self, event: Mapping[str, Any]) -> None:
        """Append a step or a validation to the metrics."""
        append_line(self.metrics, {**event, "peak_rss_bytes": peak_rss()})

    def events(self) -> list[dict[str, Any]]:
        """Read all that was logged."""
        return read_journal(self.metrics)

    def resume(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Progress, int]:
        """Go back to the newest checkpoint, metrics included; start anew where there is none.

        Returns:
            where the training stands, and the number of threads that the checkpoint was made with.
        """
        newest = checkpoint.newest(self._checkpoints)
        if newest is None:
            discard(self.metrics)
            discard(self._checkpoints)
            return Progress(), torch.get_num_threads()
        checkpoint.restore(newest, module, optimizer)
        names = {field.name for field in fields(Progress)}
        progress = Progress(**{key: value for key, value in newest.state.items() if key in names})
        progress.best = math.inf if progress.best is None else progress.best
        kept = [line for line in self.events() if line["step"] <= progress.step]
        if progress.validation_due:
            kept = [line for line in kept if (line["event"], line["step"]) != ("validation", progress.step)]
        write_journal(self.metrics, [*kept, {"event": "resumed", "step": progress.step}])
        return progress, newest.state["threads"]

    def save(
        self, module: nn.Module, progress: Progress, optimizer: torch.optim.Optimizer, best: bool
    ) -> None:
        """Write a checkpoint, and the weights by themselves where they are the best so far. Rank 0 writes."""
        if parallel.rank() != 0:
            return
        self._checkpoints.mkdir(exist_ok=True)
        weights = self._checkpoints / checkpoint.best_name(progress.best_step)
        if best:
            temporary = self._checkpoints / ".best.tmp"
            save_file(checkpoint.trained_tensors(module), temporary)
            move_into_place(temporary, weights)
        state = {key: None if value == math.inf else value for key, value in asdict(progress).items()}
        state["best_weights"] = None if math.isinf(progress.best) else hash_once(weights)
        checkpoint.save(self._checkpoints, progress.step, module, optimizer, state)
        checkpoint.drop_unused_best(self._checkpoints)

    def take_best(self, student: nn.Module) -> None:
        """Put the best weights into the student.

        Raises:
            ArtifactError: there were some, and they are gone.
        """
        newest = checkpoint.newest(self._checkpoints)
        if newest is not None and newest.state["best_weights"]:
            weights = load_file(self._checkpoints / checkpoint.best_name(newest.state["best_step"]))
            with torch.no_grad():
                for name, parameter in student.named_parameters():
                    parameter.copy_(weights[f"student.{name}"])
        elif any(event.get("best") for event in self.events()):
            raise ArtifactError(
                f"the best weights are gone from {self._checkpoints}.",
                fix="Run the same command again; the training begins again.",
            )
