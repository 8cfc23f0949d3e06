"""The likeliest alternatives that a reply states beside each of its tokens, and the proof of which ids they are.

A server names tokens by ids, by bytes or by strings. Strings alone are no ids: two tokens may print the same, half a
character prints as U+FFFD, and an entry may belong to the token beside it. So nothing is believed; what is not proven
is refused with its reason, and the answer's text is used.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from potstill.data.reader import Reader
from potstill.errors import DataError
from potstill.models.token_bytes import token_bytes
from potstill.signals.support import NEG_INF
from potstill.signals.topk import TopK

ABSENT = -1000.0  # servers write -9999 and the like for a probability of 0
LEAST_HITS = 0.5  # of an answer's tokens that are among the alternatives of their place
CLOSE, ABOVE_ONE = 1e-3, 1e-3  # nats by which one number may be rounded in two places; mass beyond 1
_ID = re.compile(r"token_id:(\d+)")
_HALF = "\ufffd"


class Uncertain(Exception):
    """Raised where alternatives are no signal; says why, in the same words for all of a kind, details in brackets."""


@dataclass(frozen=True)
class Entry:
    """A token as a server names it, with its natural log-probability; None where that is absent."""

    token: str
    lp: float | None
    id: int | None = None
    raw: bytes | None = None


@dataclass(frozen=True)
class Position:
    """The token that was drawn, and the likeliest ones in its place."""

    drawn: Entry
    others: tuple[Entry, ...]


@dataclass(frozen=True)
class Proven:
    """An answer's ids, its end token among them where the server states it, and the signal of each."""

    ids: tuple[int, ...]
    signal: TopK


def read(body: bytes) -> tuple[Position, ...]:
    """The positions of a reply to a request for one answer.

    Raises:
        Uncertain: it states no log-probabilities, or what it states is of another form.
    """
    choice = json.loads(body.decode("utf-8", "surrogatepass"))["choices"][0]
    stated = choice.get("logprobs")
    if not isinstance(stated, Mapping):
        raise Uncertain("no log-probabilities came back")
    try:
        positions = _of_chat(stated["content"]) if "content" in stated else _of_completions(stated)
    except (TypeError, KeyError, AttributeError, ValueError, OverflowError) as error:
        raise Uncertain(f"log-probabilities of an unknown form ({type(error).__name__})") from None
    ids = choice.get("token_ids")
    if not isinstance(ids, list):
        return positions
    if len(ids) != len(positions):
        raise Uncertain(f"log-probabilities of another number of tokens ({len(positions)} of {len(ids)})")
    return tuple(_with_id(one, index) for one, index in zip(positions, ids, strict=True))


def _of_chat(content: Any) -> tuple[Position, ...]:
    return tuple(Position(_entry(one), tuple(map(_entry, one["top_logprobs"]))) for one in content or ())


def _of_completions(stated: Mapping[str, Any]) -> tuple[Position, ...]:
    """The older form: tokens, their log-probabilities, and a mapping from token to log-probability for each."""
    parts = zip(stated["tokens"], stated["token_logprobs"], stated["top_logprobs"], strict=True)
    return tuple(
        Position(_named(token, lp), tuple(_named(*one) for one in (others or {}).items()))
        for token, lp, others in parts
    )


def _entry(value: Mapping[str, Any]) -> Entry:
    raw = value.get("bytes")
    named = _named(value["token"], value["logprob"])
    if named.id is not None:  # what stands in its bytes is that name
        return named
    index = value.get("id")
    whole = index if isinstance(index, int) and not isinstance(index, bool) else None
    if not isinstance(raw, list | None):  # of a number, bytes() would make as many zeros
        raise TypeError("bytes are no list")
    return Entry(named.token, named.lp, whole, None if raw is None else bytes(raw))


def _named(token: str, lp: Any) -> Entry:
    by_id = _ID.fullmatch(token)
    return Entry(token, _log_probability(lp), int(by_id[1]) if by_id else None)


def _log_probability(value: Any) -> float | None:
    """None for what stands for a probability of 0.

    Raises:
        Uncertain: it is no log-probability.
    """
    if value is None:
        return None
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if math.isnan(number) or number > CLOSE:
        raise Uncertain("a log-probability that is none (NaN, above 0 or no number)")
    return None if number <= ABSENT else min(number, 0.0)


def _with_id(position: Position, index: Any) -> Position:
    """A position whose drawn token the reply also names by its id.

    Raises:
        Uncertain: the two names disagree.
    """
    drawn = position.drawn
    if not isinstance(index, int) or (drawn.id is not None and drawn.id != index):
        raise Uncertain("the reply's ids and its log-probabilities are of other tokens")
    return Position(Entry(drawn.token, drawn.lp, index, drawn.raw), position.others)


class Prover:
    """Decides which ids alternatives are, by the tokenizer of the model that wrote them."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._special = frozenset(reader.tokenizer.all_special_ids) | frozenset(reader.stop_ids)

    @cached_property
    def _bytes(self) -> Mapping[int, bytes]:
        return token_bytes(self._reader.tokenizer)

    @cached_property
    def _ids(self) -> Mapping[bytes, Sequence[int]]:
        by_bytes = defaultdict[bytes, list[int]](list)
        for index, raw in self._bytes.items():
            by_bytes[raw].append(index)
        return by_bytes

    def prove(self, positions: Sequence[Position], text: str) -> Proven:
        """The ids and the signal of an answer with this text.

        Raises:
            Uncertain: ids are not certain, or the alternatives are not of the tokens that stand there.
        """
        if not positions:
            raise Uncertain("no log-probabilities came back")
        drawn = [self._id(one.drawn) for one in positions]
        others = [self._alternatives(one) for one in positions]
        self._require_text(drawn, text)
        _require_alignment(drawn, positions, others)
        return Proven(tuple(drawn), _signal(drawn, positions, others))

    def own(self, ids: Sequence[int]) -> Sequence[int]:
        """The ids of an answer without the tokens that end it."""
        count = len(ids)
        while count and ids[count - 1] in self._special:
            count -= 1
        return ids[:count]

    def _id(self, entry: Entry) -> int:
        """Which id an entry is.

        Raises:
            Uncertain: none, or more than one may be meant.
        """
        if entry.id is not None:
            if entry.id not in self._reader.vocabulary.tokens:
                raise Uncertain(f"an id that the tokenizer does not have ({entry.id})")
            if entry.raw is not None and self._bytes and self._bytes.get(entry.id) != entry.raw:
                raise Uncertain(f"an id that stands for another token than its bytes ({entry.id})")
            return entry.id
        if entry.raw is None:
            raise Uncertain("tokens come as strings without their bytes")
        if _HALF in entry.token or _HALF.encode() in entry.raw:
            raise Uncertain("a token that is half a character")
        if not self._bytes:
            raise Uncertain("the tokenizer's tokens have no bytes of their own")
        ids = self._ids.get(entry.raw, ())
        if len(ids) != 1:
            raise Uncertain(
                f"a string that {'several tokens' if ids else 'no token'} of the tokenizer spells "
                f"({entry.token!r})"
            )
        return ids[0]

    def _alternatives(self, position: Position) -> dict[int, float]:
        """The log-probabilities that a position states, by id.

        Raises:
            Uncertain: an id comes twice, or none has a probability above 0.
        """
        result: dict[int, float] = {}
        for entry in position.others:
            index = self._id(entry)
            if index in result:
                raise Uncertain(f"two alternatives are one token ({entry.token!r})")
            result[index] = NEG_INF if entry.lp is None else entry.lp
        present = {index: lp for index, lp in result.items() if lp > NEG_INF}
        if not present:
            raise Uncertain("a token without alternatives")
        return present

    def _require_text(self, ids: Sequence[int], text: str) -> None:
        """Require that the tokens spell the answer, and that the answer is these tokens again.

        Raises:
            Uncertain: they do not.
        """
        own = self.own(ids)
        if self._reader.decode(own).removeprefix(" ") != text.removeprefix(" "):
            raise Uncertain("its tokens spell another text than the answer")
        try:
            again = self._reader.templater.text_ids(text)
        except DataError as error:
            raise Uncertain(f"the tokenizer cannot write the answer ({error.message})") from None
        if tuple(again) != tuple(own):
            raise Uncertain("the tokenizer writes the answer as other ids")


def _require_alignment(
    drawn: Sequence[int], positions: Sequence[Position], others: Sequence[Mapping[int, float]]
) -> None:
    """Require that alternatives are about the tokens that stand there: each drawn one is among them with the same
    number, or less likely than all of them, and most are among them.

    Raises:
        Uncertain: they are those of other places.
    """
    hits = 0
    for index, position, stated in zip(drawn, positions, others, strict=True):
        lp = position.drawn.lp
        if index in stated:
            hits += 1
            fits = lp is None or abs(stated[index] - lp) <= CLOSE
        else:
            fits = lp is None or lp <= min(stated.values()) + CLOSE
        if not fits:
            raise Uncertain("alternatives of another place than the token beside them")
    if hits < LEAST_HITS * len(drawn):
        raise Uncertain(f"most tokens are not among their alternatives ({hits} of {len(drawn)} are)")


def _signal(
    drawn: Sequence[int], positions: Sequence[Position], others: Sequence[Mapping[int, float]]
) -> TopK:
    """The stated ids of each position, the drawn one among them where its log-probability is stated.

    Raises:
        Uncertain: together they have more mass than 1.
    """
    width = 1 + max(map(len, others))
    ids = torch.full((len(drawn), width), -1)
    lp = torch.full((len(drawn), width), NEG_INF, dtype=torch.float64)
    for place, (index, position, stated) in enumerate(zip(drawn, positions, others, strict=True)):
        own = {} if position.drawn.lp is None else {index: position.drawn.lp}
        ranked = sorted((own | dict(stated)).items(), key=lambda one: -one[1])
        ids[place, : len(ranked)] = torch.tensor([index for index, _ in ranked])
        lp[place, : len(ranked)] = torch.tensor([value for _, value in ranked], dtype=torch.float64)
    above = lp.logsumexp(-1, keepdim=True).clamp(min=0.0)
    if (most := float(above.max().exp())) > 1 + ABOVE_ONE:
        raise Uncertain(f"alternatives with more mass than 1 ({most:.4f})")
    lp -= above  # what rounding puts above 1
    return TopK(ids, lp.float()).checked()
