"""A teacher that is not here any more: what it said of rows, what it wrote, and how it reads, from a capture's folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from potstill.cache.keys import key_of
from potstill.cache.packed import moved
from potstill.cache.prefetch import Ahead, Keys
from potstill.cache.reader import Cache
from potstill.data.batch import readings
from potstill.data.reader import Reader
from potstill.errors import ArtifactError, CacheMiss
from potstill.models import loading
from potstill.signals.hidden import Hidden
from potstill.signals.signal import Signal
from potstill.store.artifacts import MANIFEST
from potstill.store.artifacts import read as read_artifact
from potstill.store.disk import read_sealed
from potstill.store.lines import read_lines
from potstill.teachers._context import TeacherContext
from potstill.teachers._fetching import fetched
from potstill.types import Batch, Example, Head, Reading

ABOUT = "teacher.json"
PROBE_ROWS = 8  # about which a live teacher can be asked again
SIGNALS, HELDOUT, TOKENIZER = "signals", "heldout", "tokenizer"
WRITTEN, GREEDY, LEFT_OUT, PROBES = "written.jsonl", "greedy.jsonl", "not_captured.json", "probes.json"


def build(context: TeacherContext, *, cache: str) -> CachedTeacher:
    """A teacher from the folder that a capture stage left, or a copy of it on another machine, or at a URL that fsspec
    reads, whose signals are fetched in ranges. Reads no weights.

    Raises:
        ArtifactError: it is no such folder, or it is damaged.
    """
    url = cache if "://" in cache else None
    place = Path(cache).expanduser()
    folder = fetched(cache) if url else place if place.is_absolute() else context.base / place
    about = read_about(folder)
    if url is None:
        _require_whole(folder)
    tokenizer = loading.load_tokenizer(loading.find_source(str(folder / TOKENIZER)))
    reads = context.reader(tokenizer, about["end_ids"])
    return CachedTeacher(folder, reads, context.read_on or context.device, url=url)


def read_about(folder: Path) -> dict[str, Any]:
    """What a capture's folder says of its teacher.

    Raises:
        ArtifactError: it is none, or damaged.
    """
    if not (folder / ABOUT).is_file():
        raise ArtifactError(
            f"{folder} is no folder of captured signals: it has no {ABOUT}.",
            fix="Name the folder that a capture stage left: runs/NAME/stages/capture, or a copy of it.",
        )
    return read_sealed(folder / ABOUT)


def _require_whole(folder: Path) -> None:
    """Compare a copied folder with its manifest: sizes of shards, and the content of everything else.

    Raises:
        ArtifactError: a file is missing, cut off or another one.
    """
    if not (folder / MANIFEST).is_file():
        return  # an import has none
    try:
        read_artifact(folder)
    except ArtifactError as error:
        fix = "Copy the folder again (rsync -aL goes on where a copy ended); potstill cache verify lists all damage."
        raise ArtifactError(error.message, fix=fix) from error


class CachedTeacher:
    """Says what its teacher said of the rows that were captured; of another row it knows nothing, and says so.

    An example is found by its ids and scored positions, so that shuffling, batches, packing and processes change
    no target, and another template or tokenizer finds nothing.

    Args:
        folder: of the capture.
        reads: how the teacher reads text.
        device: where signals are read.
        split: the cache that is read: `signals` of rows to train and validate on, `heldout` of rows to measure on.
        url: where the caches are, when `folder` holds everything else alone.
    """

    engine = "cached"
    live = False

    def __init__(
        self,
        folder: Path,
        reads: Reader,
        device: torch.device,
        split: str = SIGNALS,
        url: str | None = None,
    ) -> None:
        about = read_about(folder)
        self.folder, self.reads, self.split, self.url = folder, reads, split, url
        self.place = url or str(folder)
        self.facts: Mapping[str, Any] = about
        self.name: str = about["name"]
        self.fingerprint = f"{about['fingerprint']} from {about['key']}"
        self.dtype: torch.dtype = getattr(torch, about["dtype"])
        self.layers: int | None = about["layers"]
        self.context_length: int | None = about["context_length"]
        self.number_format: str | None = about["number_format"]
        self.licence: str = about["licence"]
        self.terms: str = about.get("terms", "")
        self.sizes: Mapping[str, int] = about["sizes"]
        self.batch_invariant = True  # nothing is computed
        kinds = frozenset(about["provides"][split])
        self.provides: frozenset[str] = kinds | {"text"} if about["writes"] else kinds
        self._device = device
        self._ahead: Ahead[Any] = Ahead(lambda keys: self.cache.batch(keys))

    @cached_property
    def cache(self) -> Cache:
        return Cache.open(self._location)

    @property
    def _location(self) -> Path | str:
        return self.folder / self.split if self.url is None else f"{self.url}/{self.split}"

    @property
    def _index(self) -> Cache:
        """Where rows are looked up: the cache, or one whose head, a gigabyte of a large teacher, is not read."""
        opened: Cache | None = self.__dict__.get("cache")
        return self._headless if opened is None else opened

    @cached_property
    def _headless(self) -> Cache:
        return Cache.open(self._location, head=Head(None, 0))

    @property
    def temperatures(self) -> frozenset[float] | None:
        """The temperatures that its signals serve, None for all."""
        setting = {} if "dense" in self.provides else self.cache.header.setting
        if "temperature" in setting:
            return frozenset({setting["temperature"]})
        return frozenset({1.0, *setting["temperatures"]}) if "temperatures" in setting else None

    @property
    def about(self) -> str:
        """Whose word it is and where it lies, in one line."""
        text = f"; {self.facts['answered']} greedy answers" if self.facts["answered"] else ""
        kinds = ", ".join(self.facts["provides"][self.split])
        return f"{self.name}, as captured in {self.place} ({kinds} signals{text})"

    def heldout(self) -> CachedTeacher:
        """The same teacher on the rows to measure on; itself where a cache has none."""
        if HELDOUT not in self.facts["provides"]:
            return self
        return CachedTeacher(self.folder, self.reads, self._device, HELDOUT, self.url)

    def expect(self, batches: Iterable[Sequence[Example]]) -> None:
        """Read the signals of these batches next, in a thread."""
        self._ahead.expect(keys_of(map(reading_of, rows)) for rows in batches)

    def signal(self, batch: Batch) -> Signal:
        """The signal for the N scored positions.

        Raises:
            CacheMiss: a row was not captured; names it, and what was prepared otherwise.
        """
        named = [
            (name, read)
            for name, read in zip(batch.row_ids, readings(batch), strict=True)
            if any(read.scored)
        ]
        keys = keys_of(read for _, read in named)
        if not keys:
            return self._nothing
        for (name, _), key in zip(named, keys, strict=True):
            if key not in self.cache:
                raise self.miss(name)
        return self._here(self._ahead.take(keys))

    def caches(self, example: Example) -> list[CachedTeacher]:
        """The caches that are asked about an example."""
        return [self]

    def holds(self, reading: Reading) -> bool:
        """Whether its signal was captured."""
        return key_of(reading.input_ids, reading.scored) in self._index

    def not_reached(self, reading: Reading) -> bool:
        """Whether it was to be captured when the deadline came."""
        return key_of(reading.input_ids, reading.scored).hex() in self._not_reached

    def miss(self, name: str, why: str = "") -> CacheMiss:
        """What to say of a row that was not captured."""
        return CacheMiss(
            f"{self.place} holds no signal of row {name}: its ids, or which of them are scored, are not among "
            f"the {self._index.header.facts.get('planned', 'captured')} rows of the capture. {why}".rstrip(),
            fix="Prepare the rows as the capture did (template, tokenizer, lengths, answers), or capture these.",
        )

    def written(self, settings: Mapping[str, Any]) -> dict[tuple[str, int], dict[str, Any]]:
        """Its answers by prompt and draw, as a generate stage keeps them, where they were written with these settings.

        Raises:
            CacheMiss: it wrote none, or with other settings; names the first that differs.
        """
        stored = self.facts["writes"]
        if stored is None:
            raise CacheMiss(
                f"{self.place} holds no text of its teacher: no generate stage stood before the capture.",
                fix="Leave the generate stage out: the rows' own answers were captured.",
            )
        for name, value in settings.items():
            if stored.get(name) != value:
                raise CacheMiss(
                    f"{self.place} holds answers with {name} {stored.get(name)!r}, not {value!r}.",
                    fix="Write the generate stage as it stood before the capture.",
                )
        return {(line["prompt"], line["sample"]): line for line in read_lines(self.folder / WRITTEN)}

    def greedy(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[dict[str, Any]]:
        """Its greedy answers to held-out prompts, in their order.

        Raises:
            CacheMiss: a prompt was not answered, or with another limit.
        """
        answers = {tuple(line["ids"]): line for line in read_lines(self.folder / GREEDY)}
        result = [answers.get(tuple(ids)) for ids in prompts]
        if missing := sum(answer is None for answer in result):
            raise CacheMiss(
                f"{self.place} holds the teacher's answers to {len(answers)} held-out prompts, and not to "
                f"{missing} of the {len(prompts)} that are asked.",
                fix=f"Set evaluate.samples to {len(prompts) - missing} at most, and prepare the rows as the capture did.",
            )
        limits = {answer["max_new_tokens"] for answer in result if answer is not None}
        if limits - {max_new_tokens}:
            raise CacheMiss(
                f"{self.place} holds the teacher's answers of at most {max(limits)} tokens, not {max_new_tokens}.",
                fix=f"Set evaluate.max_new_tokens: {max(limits)}.",
            )
        return [answer for answer in result if answer is not None]

    def close(self) -> None:
        """End the reading thread, and let go of the files; a later call opens them again."""
        self._ahead.close()
        for name in ("cache", "_headless"):
            self.__dict__.pop(name, None)

    @cached_property
    def _not_reached(self) -> frozenset[str]:
        file = self.folder / LEFT_OUT
        return frozenset(read_sealed(file)["keys"]) if file.is_file() else frozenset()

    @cached_property
    def _nothing(self) -> Signal:
        """The signal of a batch without a scored token."""
        some = self.cache.batch([next(iter(self.cache.keys()))])
        return self._here(some.at(torch.zeros(0, dtype=torch.long)))

    def _here(self, signal: Any) -> Any:
        """The signal where it is read."""
        if isinstance(signal, Hidden):
            return Hidden(signal.hidden.to(self._device), self._head(signal))
        return moved(signal, self._device)

    def _head(self, signal: Hidden) -> Any:
        if "_moved" not in self.__dict__:
            self._moved = signal.head.to(self._device)
        return self._moved


def reading_of(example: Example) -> Reading:
    """An example as the teacher reads it; its first token is never scored."""
    read = example.reading or Reading(example.input_ids, example.scored)
    return Reading(read.input_ids, (False, *read.scored[1:]))


def keys_of(read: Iterable[Reading]) -> Keys:
    """The keys of all that score a token, in their order."""
    return tuple(key_of(one.input_ids, one.scored) for one in read if any(one.scored))
