"""What engines are sent to score ids, and what comes back: vLLM's `prompt_logprobs` and SGLang's `/generate`.

Both key every log-probability by its id, so no text is ever read as a token. At position i stands what the model
says of token i, given those before it; nothing stands at position 0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from potstill.errors import ProviderError

Likeliest: TypeAlias = list[tuple[int, float]]  # ids with their log-probabilities
MOST_MASS = 1.001  # of the ids at a position
NOTHING = -9999.0  # what vLLM writes for log 0, which JSON cannot hold
_MOST = re.compile(r"greater than max allowed: (\d+)")


class Engine(Protocol):
    """One way to ask. A reply that lacks what was asked for is an error."""

    path: str  # below the server's root

    def body(self, model: str, ids: Sequence[int], top_k: int, temperature: float = 0.0) -> dict[str, Any]:
        """The request that scores these ids. What is said of them must not depend on the temperature of sampling."""

    def said(self, reply: Mapping[str, Any], ids: Sequence[int]) -> list[Likeliest]:
        """The likeliest ids at the positions 1, 2, … of the ids.

        Raises:
            ProviderError: something that was asked for is not in the reply, or belongs to other ids.
        """


class Vllm:
    """`/v1/completions` with a prompt of ids: `prompt_logprobs`, a mapping by id at each position."""

    path = "/v1/completions"

    def body(self, model: str, ids: Sequence[int], top_k: int, temperature: float = 0.0) -> dict[str, Any]:
        # One token is written, the fewest that every version takes, and its name shows that ids are ids.
        return {
            "model": model, "prompt": list(ids), "max_tokens": 1, "temperature": temperature, "logprobs": 1,
            "prompt_logprobs": top_k, "return_tokens_as_token_ids": True, "add_special_tokens": False,
        }  # fmt: skip

    def said(self, reply: Mapping[str, Any], ids: Sequence[int]) -> list[Likeliest]:
        choice = (reply.get("choices") or [{}])[0]
        positions = choice.get("prompt_logprobs")
        if not isinstance(positions, list):
            raise _missing("prompt_logprobs", "Ask a vLLM server, or set teacher.server: sglang.")
        tokens = (choice.get("logprobs") or {}).get("tokens") or []
        if not tokens or not str(tokens[0]).startswith("token_id:"):
            raise _missing(
                "return_tokens_as_token_ids", "Use vLLM 0.6 or newer, without a proxy that drops it."
            )
        _require_length(positions, ids)
        result = []
        for place, (position, token) in enumerate(zip(positions[1:], ids[1:], strict=True), 1):
            if not position:
                raise ProviderError(
                    f"the server left out position {place} of {len(ids)}, as one does for a prompt in its prefix cache.",
                    fix="Start it with --no-enable-prefix-caching.",
                )
            if str(token) not in position:
                raise _other_ids(place, token)
            # The given token stands there too, however unlikely it is; only the likeliest are a top k.
            entries = sorted(((_number(e["logprob"]), int(i)) for i, e in position.items()), reverse=True)
            rank = position[str(token)].get("rank")
            beyond = entries[-1][1] == token and (rank is None or rank > len(entries) > 1)
            result.append(_likeliest(entries, place, beyond))
        return result


class Sglang:
    """`/generate` with `input_ids`: `input_top_logprobs`, a list of [log-probability, id, text] at each position."""

    path = "/generate"

    def body(self, model: str, ids: Sequence[int], top_k: int, temperature: float = 0.0) -> dict[str, Any]:
        # From the first token on: what stands in the prefix cache is then computed again.
        return {
            "input_ids": list(ids), "sampling_params": {"max_new_tokens": 0, "temperature": temperature},
            "return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": top_k,
            "return_text_in_logprobs": False,
        }  # fmt: skip

    def said(self, reply: Mapping[str, Any], ids: Sequence[int]) -> list[Likeliest]:
        meta = reply.get("meta_info") or {}
        tokens, positions = meta.get("input_token_logprobs"), meta.get("input_top_logprobs")
        if not isinstance(tokens, list):
            raise _missing("input_token_logprobs", "Ask an SGLang server, or set teacher.server: vllm.")
        if not isinstance(positions, list):
            raise _missing("input_top_logprobs", "Use an SGLang that knows top_logprobs_num.")
        _require_length(tokens, ids)
        _require_length(positions, ids)
        result = []
        for place in range(1, len(ids)):
            if tokens[place][1] != ids[place]:
                raise _other_ids(place, ids[place])
            if not positions[place]:
                raise ProviderError(
                    f"the server left out position {place} of {len(ids)}.",
                    fix="Start it with --disable-radix-cache.",
                )
            entries = sorted(((_number(e[0]), int(e[1])) for e in positions[place]), reverse=True)
            result.append(_likeliest(entries, place, False))
        return result


ENGINES: Mapping[str, Engine] = {"vllm": Vllm(), "sglang": Sglang()}


def most_allowed(message: str) -> int | None:
    """The limit that a refusal of too many log-probabilities names; None where it is about something else."""
    found = _MOST.search(message)
    return int(found[1]) if found else None


def _likeliest(entries: Sequence[tuple[float, int]], place: int, last_is_given: bool) -> Likeliest:
    """Entries from the likeliest on, without what has no probability.

    The last one may be the given token, likelier ones than which were left out, so that it is not of a top k.
    """
    if any(math.isnan(lp) or lp > 1e-3 for lp, _ in entries):
        raise ProviderError(
            f"the server gives {entries[0][0]} as a log-probability at position {place}, which is at most 0.",
            fix="Look at the server's log: its weights may hold NaN.",
        )
    if entries[0][0] == -math.inf:
        raise ProviderError(
            f"the server gives no log-probability at position {place}.", fix="Look at the server's log."
        )
    kept = entries[:-1] if last_is_given else entries
    if (mass := sum(math.exp(lp) for lp, _ in kept)) > MOST_MASS:
        raise ProviderError(
            f"the server's probabilities at position {place} sum to {mass:.3f}: they are not the model's own.",
            fix="Start it so that log-probabilities are raw (vLLM: --logprobs-mode raw_logprobs).",
        )
    return [(index, min(lp, 0.0)) for lp, index in kept if lp > NOTHING] or [(entries[0][1], entries[0][0])]


def _number(value: Any) -> float:
    """A log-probability of a reply; null is that of an id without one."""
    return -math.inf if value is None else float(value)


def _require_length(positions: Sequence[Any], ids: Sequence[int]) -> None:
    if len(positions) != len(ids):
        raise ProviderError(
            f"the server gives {len(positions)} positions for {len(ids)} ids.",
            fix="Something between adds or drops tokens; ask the engine itself.",
        )


def _missing(field: str, fix: str) -> ProviderError:
    return ProviderError(f"the server's reply lacks {field}, which was asked for.", fix=fix)


def _other_ids(place: int, token: int) -> ProviderError:
    return ProviderError(
        f"the server scored another token than id {token} at position {place}.",
        fix="Something between changes the prompt; ask the engine itself.",
    )
