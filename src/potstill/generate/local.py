"""Text from a model in this process.

The decode loop is potstill's own because a row's text must depend on the request alone: not on the
model's generation settings, not on its training state, not on the rows that share its batch.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from potstill.devices import ranks
from potstill.errors import DataError, RecipeError
from potstill.generate.decode import Decoder, Pending
from potstill.generate.request import Completion, GenerationProgress, Request
from potstill.generate.sampling import Sampling, uniforms
from potstill.models.beside import evaluating
from potstill.models.shards import is_sharded


def write(request: Request) -> Iterator[Completion]:
    """Write the completions of a request with weights in this process; raises as `generate` does."""
    return generate(
        _writer(request.teacher, request.sampling),
        request.prompts,
        request.sampling,
        stop_ids=request.stop_ids,
        pad_id=request.pad_id,
        seed=request.seed,
        batch_rows=request.batch_rows,
        vocabulary=request.vocabulary,
        unused=request.unused,
        samples=request.samples,
        skip=request.skip,
        on_progress=request.on_progress,
        should_stop=request.should_stop,
        keep=request.keep,
    )


def _writer(teacher: Any, sampling: Sampling) -> Any:
    """The model that writes: the teacher's own, or what one that is made of several says of itself."""
    return teacher.writer(sampling.temperature) if hasattr(teacher, "writer") else teacher.loaded().model


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    stop_ids: Collection[int],
    pad_id: int,
    seed: int | Sequence[int],
    batch_rows: int,
    vocabulary: int | None = None,
    unused: Collection[int] = (),
    samples: int = 1,
    skip: Collection[tuple[int, int]] = (),
    on_progress: Callable[[GenerationProgress], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    keep: bool = False,
) -> Iterator[Completion]:
    """Complete each prompt `samples` times; `request.Request` describes the arguments.

    Completions are yielded as they finish, in no particular order. Equal prompts have equal draws: samples of
    one are written by `samples`. `seed` may be one for each prompt. The head's padded rows beyond `vocabulary` are never drawn, nor are the
    `unused` ones below. `should_stop` is asked before every forward pass. Whenever a completion
    is yielded, each module of the model is in the mode (training or evaluation) in which it was given.

    Raises:
        RecipeError: `batch_rows` or `samples` is below 1, or prompt and completion together exceed
            the model's positions.
        DataError: a prompt has no tokens.
        ModelError: while iterating: the logits are not finite, or the model keeps no cache.
    """
    _check(model, prompts, sampling, batch_rows, samples)
    # Longest prompts first: neighbours need little padding, and memory peaks near the start.
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    seeds = [seed] * len(prompts) if isinstance(seed, int) else seed
    queue = deque(
        Pending(
            index,
            sample,
            prompts[index],
            uniforms(seeds[index], prompts[index], sample, sampling.max_new_tokens),
        )
        for index in order
        for sample in range(samples)
        if (index, sample) not in skip
    )
    ids = (frozenset(stop_ids), pad_id)
    decoder = Decoder(model, queue, sampling, *ids, batch_rows, vocabulary, tuple(unused), keep)
    return _run(decoder, on_progress, should_stop)


def _run(
    decoder: Decoder,
    on_progress: Callable[[GenerationProgress], None] | None,
    should_stop: Callable[[], bool],
) -> Iterator[Completion]:
    # Of a sharded model every forward pass needs all processes, those with nothing left to write as well.
    pace = ranks.anyone if is_sharded(decoder.model) else bool
    total, done, start = len(decoder.queue), 0, time.monotonic()
    going = True
    while going:
        finished: list[Completion] = []
        # The caller may train between two completions, so evaluation mode ends before each yield.
        # It also ends gradient checkpointing, which drops the cache.
        with evaluating(decoder.model):
            while not finished and (going := pace(busy := decoder.busy and not should_stop())):
                finished = decoder.step() if busy else decoder.idle()
                done += len(finished)
                if on_progress:
                    on_progress(GenerationProgress(done, total, decoder.tokens, time.monotonic() - start))
        yield from finished


def _check(
    model: Any, prompts: Sequence[Sequence[int]], sampling: Sampling, batch_rows: int, samples: int
) -> None:
    for name, value in (("batch_rows", batch_rows), ("samples", samples)):
        if value < 1:
            raise RecipeError(f"{name} cannot be {value}.", fix="Use 1 or more.", path=name, value=value)
    for index, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise DataError(
                f"Prompt {index} has no tokens.", fix="Give it a start token, or leave the row out."
            )
    limit = getattr(model.config, "max_position_embeddings", None)
    longest = max(map(len, prompts), default=0)
    if limit is not None and longest + sampling.max_new_tokens > limit:
        raise RecipeError(
            f"The longest prompt has {longest} tokens and max_new_tokens is {sampling.max_new_tokens}: "
            f"together more than the model's {limit} positions.",
            fix="Lower max_new_tokens, or leave long prompts out.",
            path="max_new_tokens",
            value=sampling.max_new_tokens,
        )
