"""Text as ids, with one tokenizer, and what ends an answer in them.

Templated text is tokenised without special tokens, as transformers and servers do for chat: the template
alone decides about the start token.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any, NamedTuple

from potstill.data.chat_template import ChatTemplate
from potstill.data.row import Message
from potstill.errors import DataError, ModelError


class Ending(NamedTuple):
    """What ends an assistant turn: its text, the ids to append, and the token that stops generation.

    `marked` says that the template prints the stop token.
    """

    text: str
    ids: tuple[int, ...]
    stop: int
    marked: bool


class Renderer:
    """A tokenizer with its chat template."""

    def __init__(self, tokenizer: Any, chat: ChatTemplate) -> None:
        self.tokenizer = tokenizer
        self.chat = chat

    def ids(self, text: str) -> list[int]:
        """Tokenise templated text, without special tokens.

        Raises:
            DataError: it begins with two start tokens.
        """
        ids = self._tokenised(text)
        bos = self.tokenizer.bos_token_id
        if bos is not None and ids[:2] == [bos, bos]:
            raise DataError("the text begins with two start tokens.", fix="Remove one from the template.")
        return ids

    def document_ids(self, text: str) -> list[int]:
        """Tokenise plain text: one start token if the tokenizer adds one, the text, and one end token."""
        start = self.tokenizer.bos_token_id
        adds_start = start is not None and self.tokenizer("a", verbose=False)["input_ids"][:1] == [start]
        eos = self._eos()
        ids = self._tokenised(self.without_end(text))
        head = [start] if adds_start and ids[:1] != [start] else []
        return [*head, *ids, eos]

    def _tokenised(self, text: str) -> list[int]:
        try:
            ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        # A tokenizer raises whatever its own code and its bindings do.
        except MemoryError:
            raise
        except Exception as error:
            reason = str(error) or type(error).__name__
            raise DataError(
                f"the tokenizer refuses the text: {reason}.", fix="Repair the row, or set on_bad_row: skip."
            ) from error
        return ids

    def without_end(self, text: str) -> str:
        """The text without end tokens at its end: one is added to every answer and every document."""
        words = [word for word in self._end_words if word]
        while (bare := text.rstrip()).endswith(tuple(words)) and words:
            text = bare.removesuffix(next(word for word in words if bare.endswith(word)))
        return text

    @cached_property
    def _end_words(self) -> tuple[str, ...]:
        """How the tokens that end an answer or a document are written."""
        stops = {self.tokenizer.eos_token_id}
        with suppress(DataError, ModelError):
            stops.add(self.ending.stop)
        return tuple(str(self.tokenizer.convert_ids_to_tokens(stop)) for stop in stops if stop is not None)

    def _eos(self) -> int:
        if self.tokenizer.eos_token_id is None:
            raise ModelError("the tokenizer has no end token.", fix="Set eos_token in its configuration.")
        return int(self.tokenizer.eos_token_id)

    @cached_property
    def special(self) -> frozenset[int]:
        """Ids of all special tokens."""
        added = {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        return frozenset(added | set(self.tokenizer.all_special_ids))

    @cached_property
    def ending(self) -> Ending:
        """The end of an assistant turn; where the template prints no stop token, it is the end token."""
        text = self.chat.closing
        ids = self.ids(text)
        stop = next((i for i, token in enumerate(ids) if token in self.special), None)
        if stop is None:
            eos = self._eos()
            closing = self.ids(text.strip()) if text.strip() else []
            return Ending(text, (*closing, eos), eos, marked=False)
        words = text.partition(self.tokenizer.convert_ids_to_tokens(ids[stop]))[0].strip()
        # White space before a stop token is the template's layout; a model need not write it.
        return Ending(text, tuple(ids[0 if words else stop : stop + 1]), ids[stop], marked=True)

    def end_of_turn(self, ids: Sequence[int], start: int) -> int | None:
        """Find the end of a turn that starts here: after its last stop token, else its last special token."""
        for stops in ({self.ending.stop}, self.special):
            for index in range(len(ids) - 1, start - 1, -1):
                if ids[index] in stops:
                    return index + 1
        return None

    def marks(
        self, messages: Sequence[Message], tools: Sequence[Any] = ()
    ) -> tuple[list[int], list[tuple[int, int]], str] | None:
        """Tokenise a conversation into (ids, ranges inside {% generation %}, their text); None without marks."""
        marked = self.chat.marked(messages, tools) if self.tokenizer.is_fast else None
        if marked is None:
            return None
        text, spans = marked
        out = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        inside = [any(a < end <= b for a, b in spans) for _, end in out["offset_mapping"]]
        runs = [
            list(run) for within, run in itertools.groupby(range(len(inside)), inside.__getitem__) if within
        ]
        if not runs:
            return None
        said = "".join(text[a:b] for a, b in spans)
        return out["input_ids"], [(run[0], run[-1] + 1) for run in runs], said
