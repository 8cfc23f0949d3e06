"""A teacher whose weights are in this process: exact signals, the full vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from potstill.data.reader import Reader
from potstill.devices import ranks
from potstill.models import anatomy, generation, loading, shards
from potstill.models import licence as licences
from potstill.signals.hidden import Hidden
from potstill.teachers._context import TeacherContext
from potstill.teachers._shared import states_of_rows
from potstill.types import Batch, Example

T = TypeVar("T")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def build(
    context: TeacherContext,
    *,
    model: str,
    revision: str | None = None,
    trust_remote_code: bool = False,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    cache: Literal["auto"] | None = None,
    terms: str = "",
) -> StoredTeacher:
    """A teacher from a hub id, a folder, a GGUF file or package:NAME/FILE. Reads its tokenizer and config only.

    `terms` are no part of its fingerprint. `dtype: auto` is bf16 where that is fast, else fp16 on a GPU and fp32
    elsewhere. `cache: auto` lets trainings keep its signals on disk and ask it about a row once.

    Raises:
        ModelError: the model does not exist, cannot be read or is out of scope.
    """
    source = loading.find_source(
        model, base=context.base, revision=revision, trust_remote_code=trust_remote_code
    )
    return StoredTeacher(source, _dtype(dtype, context.device), context, terms, remembers=cache == "auto")


def _dtype(wanted: str, device: torch.device) -> torch.dtype:
    if wanted != "auto":
        return DTYPES[wanted]
    if loading.fast_bf16(device):
        return torch.bfloat16
    return torch.float16 if device.type == "cuda" else torch.float32


class LocalTeacher:
    """A frozen model. Its head is read only where a token is scored.

    On a device of its own it hands over final hidden states, and the head is copied to where they are read, once:
    logits would be V / H times as much in every step (16 for 128k ids and 8,192 values).

    Args:
        read_on: the device of its signals; the model's own when not given.
    """

    name = "teacher"
    provides: frozenset[str] = frozenset({"dense"})
    reads: Reader | None = None

    def __init__(
        self,
        model: nn.Module,
        *,
        vocabulary: int,
        fingerprint: str,
        form: anatomy.HeadForm | None = None,
        read_on: torch.device | None = None,
    ) -> None:
        model.eval().requires_grad_(False)
        self._model = model
        self._device = next(model.parameters()).device
        self._read_on = read_on or self._device
        self._head = anatomy.head_of(model, vocabulary, form or anatomy.head_form(model)).to(self._read_on)
        self.fingerprint = fingerprint

    @torch.no_grad()
    def signal(self, batch: Batch) -> Hidden:
        """Hidden states [N, H] at the scored positions, and the head."""
        # Someone may have called train() on a parent module; dropout must never reach a target.
        self._model.eval()
        on = batch.to(self._device)
        hidden = anatomy.states_of(self._model, on)[on.predicts]
        return Hidden(hidden.to(self._read_on), self._head)

    def signals(self, rows: Sequence[Example], pad_id: int) -> list[Hidden]:
        """The signal of each row; a prompt that several of them begin with is read once."""
        self._model.eval()
        states = states_of_rows(self._model, rows, pad_id)
        return [Hidden(part.to(self._read_on), self._head) for part in states]

    def close(self) -> None:
        """Let go of the weights."""
        del self._model, self._head


class StoredTeacher:
    """A model on disk. Its weights are loaded on first use and freed by `close`, as often as is needed."""

    provides = frozenset({"dense", "text"})

    def __init__(
        self,
        source: loading.Source,
        dtype: torch.dtype,
        context: TeacherContext,
        terms: str = "",
        *,
        remembers: bool = False,
    ) -> None:
        config = loading.load_config(source)
        self.source, self.dtype, self.terms = source, dtype, terms
        self.name = source.path.name
        ends = generation.end_ids(source, loading.width(config))
        self.reads = context.reader(loading.load_tokenizer(source), ends)
        self.layers: int | None = int(config.get_text_config().num_hidden_layers)
        self.context_length = loading.context_length(config)
        self.hidden_width = loading.hidden_width(config)
        self.fingerprint = f"{loading.fingerprint(source)} {dtype}"
        self.batch_invariant = dtype == torch.float32
        self._device, self._read_on = context.device, context.read_on
        self.sharded = context.sharded and ranks.world() > 1
        self.remembers = remembers
        self._form: anatomy.HeadForm | None = None
        self._loaded: loading.Loaded | None = None
        self._teacher: LocalTeacher | None = None
        self._kept: dict[str, Any] = {}

    @property
    def number_format(self) -> str:
        """How its weights are stored, whatever `dtype` they are computed in."""
        return loading.number_format(self.source)

    @property
    def licence(self) -> str:
        """What its files say of its licence, "" where they say nothing."""
        return licences.licence(self.source)

    def loaded(self) -> loading.Loaded:
        """The model with its tokenizer."""
        if self._loaded is None:
            self._loaded = self._in_parts() if self.sharded else self.whole(self._device)
        return self._loaded

    def whole(self, device: torch.device | str = "cpu") -> loading.Loaded:
        """A copy that works without the other processes."""
        return loading.load(self.source, dtype=self.dtype, device=device)

    def _in_parts(self) -> loading.Loaded:
        """The model with a part of every block in each process."""
        whole = self.whole().model if ranks.first() else None
        parts, self._form = shards.in_blocks(whole, self._device)
        return loading.Loaded(parts, loading.load_tokenizer(self.source))

    def signal(self, batch: Batch) -> Hidden:
        """Hidden states [N, H] at the scored positions, and the head."""
        return self._at_hand().signal(batch)

    def signals(self, rows: Sequence[Example], pad_id: int) -> list[Hidden]:
        """The signal of each row; a prompt that several of them begin with is read once."""
        return self._at_hand().signals(rows, pad_id)

    def _at_hand(self) -> LocalTeacher:
        if self._teacher is None:
            self._teacher = LocalTeacher(
                self.loaded().model,
                vocabulary=self.reads.vocabulary.size,
                fingerprint=self.fingerprint,
                form=self._form,
                read_on=self._read_on,
            )
        return self._teacher

    def kept(self, name: str, make: Callable[[], T]) -> T:
        """What an engine needs from one request to the next, such as its own copy of the weights: made on first
        use, and ended by its `close` when the teacher is closed."""
        if name not in self._kept:
            self._kept[name] = make()
        kept: T = self._kept[name]
        return kept

    def close(self) -> None:
        """Free the weights, and what engines kept."""
        self._loaded = self._teacher = None
        while self._kept:
            self._kept.popitem()[1].close()
