"""What vLLM is told for one text and what it may return, for a teacher's answers and for rollouts alike.

Every setting is stated, so neither vLLM's defaults nor the model's own have a say.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal

from potstill.errors import MachineError, ModelError
from potstill.generate.sampling import Sampling

NEVER = -100.0  # the lowest bias that vLLM takes
COLDEST, HOTTEST = 0.01, 2.0  # vLLM raises a lower temperature without an error, and refuses a higher one


def takes(temperature: float) -> bool:
    """Whether vLLM draws at this temperature as it is."""
    return temperature == 0 or COLDEST <= temperature <= HOTTEST


def settings(
    sampling: Sampling, *, stop_ids: Collection[int], never: Collection[int], seed: int
) -> dict[str, Any]:
    """The fields of vLLM's `SamplingParams`, which a server takes by the same names.

    Its own end of text is off, so that `stop_ids` alone end a text. Ids in `never`, such as rows of the head that
    stand for no token, get the lowest bias there is.
    """
    return {
        "n": 1,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "max_tokens": sampling.max_new_tokens,
        "stop_token_ids": sorted(stop_ids),
        "ignore_eos": True,
        "seed": seed,
        "logit_bias": dict.fromkeys(never, NEVER) or None,
    }


def finish(
    ids: Sequence[int],
    reason: str | None,
    sampling: Sampling,
    *,
    stop_ids: Collection[int],
    unused: Collection[int],
    vocabulary: int | None,
    way_out: str,
) -> Literal["stop", "length"]:
    """How a text ended.

    Args:
        way_out: what to do where the text did not fit into vLLM.

    Raises:
        ModelError: it holds an id that is no token, or vLLM ended it in another way: it was aborted, or an id ended
            it that should not.
    """
    wrong = [index for index in ids if index in unused or (vocabulary is not None and index >= vocabulary)]
    if wrong:
        raise ModelError(
            f"vLLM wrote the id {wrong[0]}, which stands for no token.",
            fix="Use engine: local, or repair the model's head.",
        )
    if ids and ids[-1] in stop_ids:
        return "stop"
    if reason == "length" and len(ids) == sampling.max_new_tokens:
        return "length"
    raise ModelError(
        f"vLLM ended an answer after {len(ids)} ids with {reason!r}.",
        fix=f"{way_out} where prompt and answer do not fit; else use engine: local.",
    )


def package(wanted_by: str) -> Any:
    """The module vllm.

    Raises:
        MachineError: it, or one of its own parts, cannot be imported.
    """
    try:
        import vllm
    except ImportError as error:
        raise missing(wanted_by) from error
    return vllm


def missing(wanted_by: str) -> MachineError:
    """What to say where vLLM is not installed."""
    return MachineError(
        f"the package vllm cannot be imported, and {wanted_by} writes with it.",
        fix="Install it: pip install 'potstill[vllm]' (it needs a GPU), or use engine: local.",
    )
