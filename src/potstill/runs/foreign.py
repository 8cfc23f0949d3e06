"""Rows of other tools: ids, which of them are scored, and ids with log-probabilities at each position."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import nlargest
from typing import Any

from potstill.data.reader import Reader
from potstill.errors import DataError

IDS = ("input_ids", "prompt_token_ids", "token_ids", "tokens")
MASKS = ("scored", "loss_mask", "completion_mask", "assistant_masks", "assistant_mask", "target_mask")
PROMPTS = ("prompt_length", "prompt_len", "prompt_tokens")
TOP_IDS = (
    "topk_ids",
    "top_ids",
    "topk_indices",
    "top_indices",
    "target_token_ids",
    "teacher_topk_ids",
    "indices",
)
TOP_LP = ("topk_logprobs", "top_logprobs", "target_logprobs", "teacher_topk_logprobs", "logprobs", "values")
LIKELIEST = 8  # of an entry's ids, among which a teacher's own token mostly is
ABSENT = -1000.0  # servers write -9999 or -inf for an id that has no probability

Entry = Mapping[int, float]


@dataclass(frozen=True)
class ImportedRow:
    """A row as its file holds it; `entries` follow its own count of positions."""

    where: str
    ids: tuple[int, ...]
    scored: tuple[bool, ...]
    entries: tuple[Entry | None, ...]

    def at(self, shift: int) -> list[Entry | None]:
        """The entry of each scored token, where entries are `shift` places further than they should be."""
        places = [place for place, mark in enumerate(self.scored) if mark]
        if len(self.entries) == len(places) != len(self.ids):
            picked = [number + shift for number in range(len(places))]
        else:
            picked = [place - len(self.ids) + len(self.entries) + shift for place in places]
        return [self.entries[i] if 0 <= i < len(self.entries) else None for i in picked]

    def hits(self, shift: int) -> tuple[int, int]:
        """How many scored tokens are among the likeliest ids of their entries, and how many have an entry."""
        own = [token for token, mark in zip(self.ids, self.scored, strict=True) if mark]
        pairs = [
            (token, entry) for token, entry in zip(own, self.at(shift), strict=True) if entry is not None
        ]
        return sum(token in nlargest(LIKELIEST, entry, key=entry.__getitem__) for token, entry in pairs), len(
            pairs
        )


def read_row(where: str, value: Mapping[str, Any], reader: Reader) -> ImportedRow:
    """A row of a file.

    Raises:
        DataError: it lacks a part, or its parts do not fit together.
    """
    ids = _whole_numbers(_first(value, IDS, "ids"), "ids")
    if wrong := [token for token in ids if not 0 <= token < reader.vocabulary.size]:
        raise DataError(f"holds the id {wrong[0]}, and the tokenizer knows {reader.vocabulary.size}.")
    text = value.get("text")
    if isinstance(text, str) and _plain(reader, ids) != text:
        raise DataError("has a text that its ids do not spell with this tokenizer.")
    scored = _scored(value, len(ids))
    entries = tuple(_entries(value))
    if wrong := [token for entry in entries for token in entry or () if token >= reader.vocabulary.size]:
        raise DataError(
            f"has log-probabilities of the id {wrong[0]}, and the tokenizer knows {reader.vocabulary.size}."
        )
    if len(entries) not in (len(ids), len(ids) - 1, sum(scored)):
        raise DataError(
            f"has {len(entries)} positions with log-probabilities for {len(ids)} ids, of which {sum(scored)} are scored."
        )
    return ImportedRow(where, ids, scored, entries)


def _plain(reader: Reader, ids: Sequence[int]) -> str:
    return reader.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _first(value: Mapping[str, Any], names: Sequence[str], what: str) -> Any:
    found = next((value[name] for name in names if value.get(name) is not None), None)
    if found is None:
        raise DataError(f"has no {what}: none of {', '.join(names)}.")
    return found


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise DataError(f"has {what} that are no list.")
    return value


def _whole_numbers(value: Any, what: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(one) is int for one in value):
        raise DataError(f"has {what} that are no list of whole numbers.")
    return tuple(value)


def _scored(value: Mapping[str, Any], length: int) -> tuple[bool, ...]:
    """Which tokens are targets; never the first."""
    mask = next((value[name] for name in MASKS if value.get(name) is not None), None)
    if mask is None and value.get("labels") is not None:
        mask = [label != -100 for label in _list(value["labels"], "labels")]
    prompt = next((value[name] for name in PROMPTS if isinstance(value.get(name), int)), 1)
    marks = (
        [bool(mark) for mark in _list(mask, "marks")]
        if mask is not None
        else [i >= prompt for i in range(length)]
    )
    if len(marks) != length:
        raise DataError(f"marks {len(marks)} tokens as scored or not, and has {length}.")
    marks[:1] = [False] * len(marks[:1])
    if not any(marks):
        raise DataError("scores no token.")
    return tuple(marks)


def _entries(value: Mapping[str, Any]) -> Iterator[Entry | None]:
    """The ids with log-probabilities of each position; None where a position has none."""
    served = value.get("prompt_logprobs")
    if isinstance(served, list):
        for one in served:
            if not isinstance(one, dict | None) or not all(str(token).isdecimal() for token in one or ()):
                raise DataError("has prompt_logprobs that are no mapping by id.")
            yield None if one is None else _entry({int(token): _lp(given) for token, given in one.items()})
        return
    ids, values = (
        _list(_first(value, names, what), what)
        for names, what in ((TOP_IDS, "top-k ids"), (TOP_LP, "log-probabilities"))
    )
    if len(ids) != len(values):
        raise DataError(f"has top-k ids of {len(ids)} positions and log-probabilities of {len(values)}.")
    for tokens, lps in zip(ids, values, strict=True):
        if not tokens:
            yield None
            continue
        lps = _list(lps, "log-probabilities")
        _whole_numbers([token for token in _list(tokens, "top-k ids") if token is not None], "top-k ids")
        if len(tokens) != len(lps):
            raise DataError(f"has a position with {len(tokens)} ids and {len(lps)} log-probabilities.")
        used = [
            (token, lp) for token, lp in zip(tokens, lps, strict=True) if token is not None and token >= 0
        ]
        if len({token for token, _ in used}) < len(used):
            raise DataError("has a position with an id twice.")
        yield _entry({token: _lp(lp) for token, lp in used})


def _lp(given: Any) -> Any:
    """A log-probability as servers write it: in an object beside its rank, or as text where it is infinite."""
    given = given.get("logprob") if isinstance(given, dict) else given
    return -math.inf if isinstance(given, str) and given.lower() in ("-inf", "-infinity") else given


def _entry(values: Mapping[int, Any]) -> Entry:
    """A position without the ids that have no probability: those that are null, or -1000 and less.

    Raises:
        DataError: a value is no log-probability.
    """
    values = {token: lp for token, lp in values.items() if lp is not None}
    for lp in values.values():
        if type(lp) not in (int, float) or lp != lp:
            raise DataError(f"has a position with {lp!r} as a log-probability.")
    # What is above 0 is refused below; a number that no float holds as well.
    kept = {token: float(min(lp, 2.0)) for token, lp in values.items() if lp > ABSENT}
    if not kept:
        raise DataError("has a position without any id of some probability.")
    if max(kept.values()) > 1e-4:
        linear = all(0 <= lp <= 1 for lp in kept.values())
        what = "probabilities, not their logarithms" if linear else "a log-probability above 0"
        raise DataError(f"has a position with {what}.")
    if (mass := sum(map(math.exp, kept.values()))) > 1.001:
        raise DataError(
            f"has a position with the mass {mass:.3f}: scaled by a temperature, or not normalised."
        )
    return kept
