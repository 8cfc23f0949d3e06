"""A teacher that is larger than the memory: one block at a time, hidden states of all rows on the disk between."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from potstill.data.batch import collate, readings
from potstill.data.plan import by_length
from potstill.errors import MachineError, SignalError
from potstill.models.layerwise import Layerwise
from potstill.signals.hidden import Hidden
from potstill.store import unpacking
from potstill.teachers import local
from potstill.teachers._context import TeacherContext
from potstill.types import Batch, Example, Head

Row: TypeAlias = tuple[tuple[int, ...], tuple[bool, ...]]  # ids, and which are scored
FOLDER = "layered"
STATES = "states"
LAYER = "blocks"  # how many blocks the states of a batch have passed


def build(
    context: TeacherContext,
    *,
    layered: str,
    revision: str | None = None,
    trust_remote_code: bool = False,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    spill: str | None = None,
    batch_tokens: int = 8192,
    terms: str = "",
) -> LayeredTeacher:
    """A teacher from a hub id, a folder or a GGUF file, which is captured and not asked in training.

    Args:
        layered: the model, as `model` names it.
        dtype: of its weights and of the hidden states on the disk; auto as for `model`.
        spill: the folder for hidden states, which a capture that goes on finds again; by default in potstill's cache.
        batch_tokens: padded tokens of one forward pass.
        terms: under which terms it is used, where its licence does not say it all; no part of its fingerprint.

    Raises:
        ModelError: the model does not exist, cannot be read or is out of scope.
    """
    stored = local.build(
        context,
        model=layered,
        revision=revision,
        trust_remote_code=trust_remote_code,
        dtype=dtype,
        terms=terms,
    )
    folder = unpacking.gguf_folder().parent / FOLDER if spill is None else context.base / spill
    return LayeredTeacher(stored, context.device, folder, batch_tokens)


class LayeredTeacher:
    """Reads every block once, and all rows that it is prepared for pass through it; then it answers for these."""

    provides = frozenset({"dense"})
    batchwise = False

    def __init__(
        self, stored: local.StoredTeacher, device: torch.device, folder: Path, batch_tokens: int
    ) -> None:
        self.name, self.fingerprint, self.reads = stored.name, stored.fingerprint, stored.reads
        self.layers, self.context_length = stored.layers, stored.context_length
        self.hidden_width, self.terms = stored.hidden_width, stored.terms
        self.dtype, self.batch_invariant = stored.dtype, stored.batch_invariant
        self._stored, self._device, self._folder, self._tokens = stored, device, folder, batch_tokens
        self._ready: dict[Row, tuple[Path, slice]] = {}
        self._spilled: list[_Spilled] = []
        self._head: Head | None = None

    @property
    def number_format(self) -> str:
        """How its weights are stored."""
        return self._stored.number_format

    @property
    def licence(self) -> str:
        """What its files say of its licence, "" where they say nothing."""
        return self._stored.licence

    def prepare(
        self,
        examples: Sequence[Example],
        *,
        folder: Path | None = None,
        before_batch: Callable[[], None] = lambda: None,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Pass rows through all blocks, so that `signal` answers for each of them until `close`.

        Hidden states wait on the disk between blocks. After a kill the same call goes on behind the last batch that
        passed a block.

        Args:
            examples: rows; where they carry the teacher's reading, that is read.
            folder: where hidden states wait, instead of the recipe's.
            before_batch: called before each pass of a batch through a block; may raise to stop.
            on_progress: (passes made, passes in all).

        Raises:
            MachineError: the disk does not hold the hidden states.
            ModelError: the model cannot be run block by block.
        """
        model = Layerwise(self._stored.source, self.dtype, self._device)
        lengths = [len((example.reading or example).input_ids) for example in examples]
        plan = [
            [examples[row] for row in micro] for micro in by_length(lengths, self._tokens, longest_first=True)
        ]
        spilled = _Spilled((folder or self._folder) / self._key(plan), plan, self._device)
        spilled.require_room(model.width * self.dtype.itemsize)
        total, done = len(plan) * (model.layers + 1), sum(spilled.passed(n) + 1 for n in range(len(plan)))
        for blocks in range(model.layers + 1):
            waiting = [number for number in range(len(plan)) if spilled.passed(number) < blocks]
            if not waiting:
                continue
            with model.embedding() if blocks == 0 else model.block(blocks - 1) as run:
                for number in waiting:
                    before_batch()
                    batch = spilled.batch(number)
                    inputs = () if blocks == 0 else (spilled.read(number),)
                    states = run(batch, *inputs)
                    # Behind the last block only what is scored is kept.
                    spilled.write(
                        number, states[batch.predicts] if blocks == model.layers else states, blocks
                    )
                    on_progress(done := done + 1, total)
        self._head = model.head(self.reads.vocabulary.size)
        self._spilled.append(spilled)
        self._ready |= spilled.places()

    def signal(self, batch: Batch) -> Hidden:
        """The hidden states [N, H] of rows that it was prepared for, and the head.

        Raises:
            SignalError: it was not prepared for a row: for it alone the whole model would be read from the disk.
        """
        rows = [(read.input_ids, read.scored) for read in readings(batch)]
        unknown = [number for number, row in enumerate(rows) if row not in self._ready]
        if unknown or self._head is None:
            which = batch.row_ids[unknown[0] if unknown else 0]
            raise SignalError(
                f"{self.name} is read block by block, and was not prepared for row {which}: it cannot be asked "
                "batch by batch, each of which would read all of it.",
                fix="Capture its signals and train from the cache, or load it whole: teacher: {model: …}.",
            )
        states = [_states(*self._ready[row]) for row in rows]
        return Hidden(torch.cat(states).to(self._device), self._head)

    def each(self, examples: Sequence[Example], **how: Any) -> Iterator[tuple[Example, Hidden]]:
        """Each example with its signal, in their order; takes the arguments of `prepare`."""
        self.prepare(examples, **how)
        for example in examples:
            yield example, self.signal(collate([example], pad_id=0).for_teacher)

    def close(self) -> None:
        """Forget the rows that it was prepared for, and remove their hidden states."""
        for spilled in self._spilled:
            spilled.remove()
        self._spilled, self._ready, self._head = [], {}, None

    def _key(self, plan: Sequence[Sequence[Example]]) -> str:
        """What the hidden states on the disk depend on."""
        rows = [[[one.input_ids, one.scored] for one in (e.reading or e for e in batch)] for batch in plan]
        return hashlib.sha256(json.dumps([self.fingerprint, rows]).encode()).hexdigest()[:32]


class _Spilled:
    """The hidden states of all batches on the disk: one file a batch, which says how many blocks it has passed."""

    def __init__(self, folder: Path, plan: Sequence[Sequence[Example]], device: torch.device) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._plan, self._device = folder, plan, device
        self._passed = [self._stored(number) for number in range(len(plan))]

    def _file(self, number: int) -> Path:
        return self._folder / f"{number:06d}.safetensors"

    def _stored(self, number: int) -> int:
        file = self._file(number)
        if not file.is_file():
            return -1
        with safe_open(file, "pt") as handle:
            return int(handle.metadata()[LAYER])

    def passed(self, number: int) -> int:
        """How many blocks a batch has passed; -1 before the embedding."""
        return self._passed[number]

    def batch(self, number: int) -> Batch:
        """The rows of a batch as the teacher reads them; id 0 pads, because every vocabulary has it."""
        return collate(self._plan[number], pad_id=0).for_teacher.to(self._device)

    def read(self, number: int) -> Tensor:
        with safe_open(self._file(number), "pt", device=str(self._device)) as handle:
            states: Tensor = handle.get_tensor(STATES)
            return states.clone()

    def write(self, number: int, states: Tensor, blocks: int) -> None:
        """Replace a batch's states; a kill leaves the old ones or the new ones."""
        file = self._file(number)
        temporary = file.with_suffix(".part")
        save_file({STATES: states.cpu().contiguous()}, temporary, {LAYER: str(blocks)})
        temporary.replace(file)
        self._passed[number] = blocks

    def places(self) -> dict[Row, tuple[Path, slice]]:
        """Where the states of each row stand, once its batch has passed all blocks."""
        places: dict[Row, tuple[Path, slice]] = {}
        for number, rows in enumerate(self._plan):
            begin = 0
            for example in rows:
                read = example.reading or example
                end = begin + sum(read.scored[1:])
                places[read.input_ids, (False, *read.scored[1:])] = self._file(number), slice(begin, end)
                begin = end
        return places

    def require_room(self, bytes_of_token: int) -> None:
        """Refuse a disk that cannot hold the states of all rows, and those of a batch twice.

        Raises:
            MachineError: states what is needed and what is free.
        """
        sizes = [
            len(rows) * max(len((one.reading or one).input_ids) for one in rows) * bytes_of_token
            for rows in self._plan
        ]
        held = sum(file.stat().st_size for file in self._folder.iterdir())
        needed, free = sum(sizes) + max(sizes, default=0) - held, shutil.disk_usage(self._folder).free
        if needed > free:
            raise MachineError(
                f"the hidden states of {len(sizes)} batches need {needed / 1e9:.1f} GB more, and {self._folder} has "
                f"{free / 1e9:.1f} GB free.",
                fix="Capture fewer rows at a time, or name another disk in teacher.spill.",
            )

    def remove(self) -> None:
        """Remove what is no longer needed."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _states(file: Path, rows: slice) -> Tensor:
    """Some rows of a file's states."""
    with safe_open(file, "pt") as handle:
        part: Tensor = handle.get_slice(STATES)[rows.start : rows.stop]
        return part.clone()
