"""What a teacher's answers were drawn from, beside the answers: a capture needs no pass for them.

Decoding hands over final hidden states, and the cache of them keeps these or the likeliest ids that the head reads
from them. Both are the teacher's own word at temperature 1: top-p, top-k and the temperature of the draw work on a copy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from potstill.cache import blocks, fidelity
from potstill.cache.header import Header
from potstill.cache.keys import key_of
from potstill.cache.reader import Cache
from potstill.cache.writer import Writer
from potstill.devices import ranks
from potstill.errors import RecipeError
from potstill.generate.request import Completion, Request
from potstill.models import anatomy
from potstill.recipe.stages import StageSpec
from potstill.signals.hidden import Hidden
from potstill.signals.topk import TopK
from potstill.stages._context import Context
from potstill.stages._later import temperatures_behind
from potstill.store.artifacts import Artifact
from potstill.store.disk import read_sealed, write_sealed

KEPT = "states"
MEASURED = ".measured.json"
BLOCK = 32  # answers
SHOWN = 64  # ids that an engine gives back at a position
SAMPLE = 512  # positions on which the error of what is kept is measured
TOPK = {"threshold": 1e-4, "most": 256, "bits": 8}  # the finest setting that a capture measures


class States:
    """Writes the states of answers, some at a time; those of the last few are lost in a kill, and asked for again."""

    def __init__(self, writer: Writer | None, model: Any = None, vocabulary: int = 0) -> None:
        self._writer, self._waiting = writer, list[tuple[bytes, Any]]()
        if model is not None:
            self._head = anatomy.head_of(model, vocabulary, anatomy.head_form(model))

    def __enter__(self) -> States:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def add(self, prompt: tuple[int, ...], completion: Completion) -> None:
        """Keep what one answer to a prompt was drawn from."""
        if self._writer is None:
            return
        if completion.states is not None:
            signal: Any = Hidden(completion.states, self._head)
        elif completion.likeliest is not None:
            signal = _likely(completion.likeliest, self._writer.header.setting)
        else:
            return
        scored = (False,) * len(prompt) + (True,) * len(completion.ids)
        self._waiting.append((key_of((*prompt, *completion.ids), scored), signal))
        if len(self._waiting) >= BLOCK:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if self._writer is None or not self._waiting:
            return
        self._measure(self._writer.folder / MEASURED, self._writer.header)
        self._writer.add_block(self._waiting)
        self._waiting = []

    def _measure(self, file: Path, header: Header) -> None:
        """Measure on the first answers what the likeliest ids lose."""
        if header.kind == "hidden" or not ranks.first() or file.is_file():
            return
        if not all(isinstance(signal, Hidden) for _, signal in self._waiting):
            return  # of the ids that an engine shows nobody knows the rest
        states = torch.cat([signal.hidden for _, signal in self._waiting])[:SAMPLE]
        (measured,) = fidelity.measure(Hidden(states, self._head), [(header.kind, header.setting)])
        write_sealed(file, measured)


def header_of(keep: str, name: str, engine: str, context: Context) -> Header:
    """The description of the cache of what the answers of the stage `name` are drawn from.

    Raises:
        RecipeError: a later stage reads at a temperature of which the engine shows nothing.
    """
    teacher, vocabulary = context.setup.teacher, context.setup.readers.teacher_reader.vocabulary.size
    if keep == "hidden":
        setting: Mapping[str, Any] = {"format": "fp16", "dtype": dtype_of(teacher)}
    else:
        require_shown(context.stages, name, engine)
        setting = {**TOPK, "temperatures": temperatures_behind(context.stages, name)}
    return Header(keep, fidelity.codec(keep).check(setting), teacher.fingerprint, vocabulary)


def require_shown(stages: Sequence[StageSpec], name: str, engine: str) -> None:
    """Refuse to keep the likeliest ids of the stage `name` where its engine shows less than later stages read.

    Raises:
        RecipeError: a later stage reads at another temperature than 1.
    """
    if engine != "local" and set(temperatures_behind(stages, name)) != {1.0}:
        raise RecipeError(
            f"topk serves the temperature 1 alone: {engine} shows no log-sum-exp at others.",
            path=f"stages.{name}.keep",
            fix="Use engine: local, or temperature: 1 in the stages behind.",
        )


def opened(folder: Path, header: Header, request: Request) -> States:
    """Where this process writes what answers are drawn from."""
    writer = Writer(folder, header, part=ranks.rank())
    return (
        States(writer, request.teacher.loaded().model, header.vocabulary) if request.keep else States(writer)
    )


def _likely(shown: TopK, setting: Mapping[str, Any]) -> TopK:
    """The ids above the setting's threshold, and the likeliest one."""
    used = shown.lp > math.log(setting["threshold"])
    used |= shown.lp == shown.lp.amax(-1, keepdim=True)
    return TopK(shown.ids.masked_fill(~used, -1), shown.lp.masked_fill(~used, -torch.inf)).checked()


def finish_states(folder: Path) -> dict[str, Any]:
    """Write the index of what all processes have kept, and say what it is."""
    header = Cache.open(folder).header
    for part in {blocks.shard_number(file.name) >> 16 for file in folder.glob("shard-*.bin")}:
        # Half a block of a process that was killed is cut off, also where fewer go on.
        Writer(folder, header, part=part).close()
    with Writer(folder, header) as writer:
        stats = writer.finish()
    measured = read_sealed(folder / MEASURED) if (folder / MEASURED).is_file() else {}
    return {"kind": header.kind, "setting": dict(header.setting), **stats, "measured": measured}


def kept_by(answers: Artifact | None, teacher: Any) -> Cache | None:
    """What a generate stage kept of this teacher; None where it kept nothing."""
    folder = None if answers is None else answers.path / KEPT
    if folder is None or not folder.is_dir():
        return None
    cache = Cache.open(folder)
    return cache if cache.header.teacher == teacher.fingerprint else None


def dtype_of(teacher: Any) -> str:
    """The number format in which a teacher computes, by its name."""
    return str(getattr(teacher, "dtype", torch.float32)).removeprefix("torch.")
