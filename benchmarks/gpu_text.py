"""The local engine beside transformers' `generate` on a GPU, with a model of random weights."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from gpu_clock import Clock, Result
from gpu_models import STUDENT, model

PROMPTS, NEW_TOKENS, ONE_BY_ONE = 64, 128, 3


def generate(clock: Clock, tiny: bool) -> Result:
    """Greedy text of the local engine beside transformers' `generate`: tokens a second."""
    new, count = (12, 8) if tiny else (NEW_TOKENS, PROMPTS)
    writer = model(clock.device, torch.bfloat16, STUDENT, tiny=tiny, seed=0).eval()
    drawn, vocabulary = random.Random(1), writer.config.vocab_size
    lengths = [drawn.randrange(8, 24) if tiny else drawn.randrange(32, 384) for _ in range(count)]
    prompts = [[drawn.randrange(1, vocabulary) for _ in range(length)] for length in lengths]
    clock.add("shape", {"prompts": count, "new_tokens": new})
    asked = {
        "ours": partial(_ours_write, writer, prompts),
        "transformers": partial(_theirs_write, writer, prompts, clock.device),
    }
    clock.each({f"{who}, all at once": partial(_timed, clock, write, new) for who, write in asked.items()})
    one = partial(_theirs_write, writer, prompts[:ONE_BY_ONE], clock.device, rows=1)
    clock.each({"transformers, one by one": partial(_timed, clock, one, new)})
    return clock.found


def _timed(clock: Clock, write: Callable[[int], int], new: int) -> Result:
    """Tokens a second of the second time: what is planned or loaded for a shape is there by then."""
    first = clock.wall(lambda: write(new))
    tokens: list[int] = []
    seconds = clock.wall(lambda: tokens.append(write(new)))
    rate = round(tokens[0] / seconds, 1)
    return {
        "tokens_per_second": rate,
        "tokens": tokens[0],
        "first_time_seconds": round(first, 2),
        "seconds": round(seconds, 2),
    }


def _ours_write(writer: Any, prompts: Sequence[list[int]], new: int) -> int:
    from potstill.devices import placement
    from potstill.generate import local
    from potstill.generate.sampling import Sampling

    placement.leave_out_planned_attention()  # as a run does
    sampling = Sampling(max_new_tokens=new, temperature=0.0)
    asked: dict[str, Any] = {"stop_ids": (), "pad_id": 0, "seed": 0, "batch_rows": len(prompts)}
    written = local.generate(writer, prompts, sampling, vocabulary=writer.config.vocab_size, **asked)
    return sum(len(one.ids) for one in written)


def _theirs_write(
    writer: Any, prompts: Sequence[list[int]], device: torch.device, new: int, rows: int | None = None
) -> int:
    from potstill.data.batch import left_pad

    torch.backends.cuda.enable_cudnn_sdp(True)  # as torch begins
    tokens, at_once = 0, rows or len(prompts)
    for start in range(0, len(prompts), at_once):
        ids, mask, _ = left_pad(prompts[start : start + at_once], 0, device)
        with torch.no_grad():
            out = writer.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=0
            )
        tokens += out[:, ids.shape[1] :].numel()
    return tokens
