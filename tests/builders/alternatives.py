"""Replies that state alternatives beside their tokens, in the forms that servers have."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from builders.chats import bytes_tokenizer
from builders.endpoint import Act
from potstill.data.reader import Reader, reader_of
from potstill.data.template import Templater

Rows = Sequence[
    Mapping[int, float]
]  # the probabilities of each position, by id; the first is the drawn token's


def reader(tokenizer: Any = None) -> Reader:
    made = tokenizer or bytes_tokenizer()
    return reader_of(made, Templater(made))


def rows_of(ids: Sequence[int], others: Sequence[int] = (300, 301), share: float = 0.7) -> Rows:
    """Each id with this share of the mass, and two others with less."""
    rest = (1 - share) / 2
    # Its neighbours in the vocabulary stay clear of the drawn token.
    return [{index: share, **{o: rest / 2**n for n, o in enumerate(others) if o != index}} for index in ids]


def by_string(reader: Reader, rows: Rows, *, with_bytes: bool = True) -> dict[str, Any]:
    """As OpenAI writes them: a string for each token, with its bytes."""

    def entry(index: int, p: float) -> dict[str, Any]:
        text = reader.tokenizer.decode([index])
        raw = list(text.encode()) if with_bytes else None
        return {"token": text, "bytes": raw, "logprob": math.log(p)}

    return _content(rows, entry)


def by_id(rows: Rows) -> dict[str, Any]:
    """As vLLM writes them with return_tokens_as_token_ids."""
    return _content(
        rows, lambda i, p: {"token": f"token_id:{i}", "bytes": list(b"token_id"), "logprob": math.log(p)}
    )


def _content(rows: Rows, entry: Any) -> dict[str, Any]:
    content = []
    for row in rows:
        drawn = next(iter(row.items()))
        content.append({**entry(*drawn), "top_logprobs": [entry(*one) for one in row.items()]})
    return {"content": content}


def body(text: str, stated: Any, **choice: Any) -> bytes:
    """A whole reply of chat completions."""
    first = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop", "logprobs": stated}
    usage = {"prompt_tokens": 10, "completion_tokens": 5}
    return json.dumps({"model": "big", "choices": [{**first, **choice}], "usage": usage}).encode()


def reply(text: str, stated: Any, **choice: Any) -> Act:
    return Act(body=body(text, stated, **choice))
