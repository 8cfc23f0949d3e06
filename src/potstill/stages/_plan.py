"""What a capture asks for and in which order: rows, batches, blocks and parts, all of it fixed before the first pass."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from potstill.cache.keys import key_of
from potstill.errors import DataError
from potstill.teachers._shared import prompt_of
from potstill.teachers.cached import reading_of
from potstill.types import Example

BLOCK_BATCHES = 8  # a block's rows are sorted by length, so it needs several batches of them
BLOCK_BYTES = 2**26  # what a kill may cost, and what waits in memory
MOST_PARTS = 60_000


@dataclass(frozen=True)
class Block:
    """Rows that are written down together, in the batches in which they are asked about."""

    batches: tuple[tuple[Example, ...], ...]

    @property
    def rows(self) -> list[Example]:
        return [row for batch in self.batches for row in batch]

    @property
    def count(self) -> int:
        """Scored tokens."""
        return sum(row.count for row in self.rows)


@dataclass(frozen=True)
class Plan:
    """Parts of a cache, each written by one process from its first block to its last."""

    parts: tuple[tuple[Block, ...], ...]

    @property
    def rows(self) -> list[Example]:
        return [row for part in self.parts for block in part for row in block.rows]

    @property
    def count(self) -> int:
        """Scored tokens."""
        return sum(block.count for part in self.parts for block in part)

    def without(self, left_out: Collection[str]) -> Plan:
        """The same parts without the blocks all of whose rows' keys, in hex, are left out."""
        return Plan(
            tuple(
                tuple(block for block in part if any(_hex(row) not in left_out for row in block.rows))
                for part in self.parts
            )
        )


def each_once(examples: Iterable[Example]) -> list[Example]:
    """The rows as the teacher reads them, each once; rows without a scored token are left out.

    Raises:
        DataError: different teachers are asked about one text, which a cache holds once.
    """
    rows: dict[bytes, Example] = {}
    for example in examples:
        reading = reading_of(example)
        if any(reading.scored):
            row = Example(example.id, reading.input_ids, reading.scored, domain=example.domain)
            first = rows.setdefault(key_of(reading.input_ids, reading.scored), row)
            if first.domain != row.domain:
                raise DataError(
                    f"rows {first.id} and {row.id} hold the same text, and different teachers are asked about it "
                    f"({first.domain} and {row.domain}); a capture keeps it once.",
                    fix="Take one of the two out, or leave the capture stage out.",
                )
    return list(rows.values())


def drawn_order(rows: Sequence[Example], seed: int) -> list[Example]:
    """The rows in a random order of this seed, in which any beginning is a fair sample; those that share a prompt
    follow each other."""
    groups: dict[tuple[int, ...], list[Example]] = {}
    for row in rows:
        # Of a text without a prompt the first token alone is not scored.
        prompt = prompt_of(row)
        groups.setdefault(prompt if len(prompt) > 1 else row.input_ids, []).append(row)
    order = list(groups.values())
    random.Random(f"capture/{seed}").shuffle(order)
    return [row for group in order for row in group]


def plan_of(rows: Sequence[Example], *, batch_tokens: int, bytes_per_token: float, part_bytes: int) -> Plan:
    """Cut rows into blocks and parts, in their order, and each block into batches of similar lengths.

    Args:
        batch_tokens: padded tokens of a forward pass.
        bytes_per_token: of a scored token in the cache, as far as is known.
        part_bytes: about how large a part is.
    """
    total = bytes_per_token * sum(row.count for row in rows)
    part_bytes = max(part_bytes, round(total / MOST_PARTS))
    parts: list[list[Block]] = []
    room = 0.0
    for group in _groups(rows, BLOCK_BATCHES * batch_tokens, min(BLOCK_BYTES, part_bytes), bytes_per_token):
        block = Block(tuple(_batches(group, batch_tokens)))
        if room <= 0:
            parts.append([])
            room = part_bytes
        parts[-1].append(block)
        room -= bytes_per_token * block.count
    return Plan(tuple(map(tuple, parts)))


def _batches(rows: Sequence[Example], tokens: int) -> Iterator[tuple[Example, ...]]:
    """Rows in batches of so many padded tokens, the longest first; those that share a prompt stay together."""
    together: list[list[Example]] = []
    for _, rows_of_prompt in groupby(rows, lambda row: prompt_of(row) if len(prompt_of(row)) > 1 else row.id):
        group = sorted(rows_of_prompt, key=lambda row: -len(row.input_ids))
        most = max(1, tokens // len(group[0].input_ids))
        together += [group[start : start + most] for start in range(0, len(group), most)]
    together.sort(key=lambda group: -len(group[0].input_ids))
    batch: list[Example] = []
    for group in together:
        longest = max(len(row.input_ids) for row in (*batch, *group))
        if batch and longest * (len(batch) + len(group)) > tokens:
            yield tuple(batch)
            batch = []
        batch += group
    if batch:
        yield tuple(batch)


def _hex(row: Example) -> str:
    return key_of(row.input_ids, row.scored).hex()


def _groups(
    rows: Sequence[Example], tokens: int, size: float, bytes_per_token: float
) -> Iterable[list[Example]]:
    """Neighbours that together have so many tokens, or so many bytes in the cache."""
    group: list[Example] = []
    read = kept = 0.0
    for row in rows:
        group.append(row)
        read, kept = read + len(row.input_ids), kept + bytes_per_token * row.count
        if read >= tokens or kept >= size:
            yield group
            group, read, kept = [], 0.0, 0.0
    if group:
        yield group
