"""Text from vLLM in this process, for teachers whose weights are here.

Prompts go in as token ids and answers are taken as the ids that come out: nothing is encoded again.
"""

from __future__ import annotations

import gc
import importlib.util
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch

from potstill.devices import ranks
from potstill.errors import DataError, ModelError, RecipeError
from potstill.generate import vllm_settings
from potstill.generate.request import Completion, GenerationProgress, Request
from potstill.generate.sampling import draw_seed
from potstill.models import loading
from potstill.signals.topk import TopK

WANTED_BY = "engine: vllm"
_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def write(
    request: Request,
    *,
    tensor_parallel_size: int = 1,
    gpu_memory_utilization: float = 0.9,
    max_model_len: int | None = None,
    quantization: str | None = None,
    enforce_eager: bool = False,
) -> Iterator[Completion]:
    """Write the completions of a request with an engine of vLLM, which is kept until the teacher is closed.

    Args:
        request: prompts; `batch_rows` is the most answers in flight.
        tensor_parallel_size: GPUs over which each layer is spread.
        gpu_memory_utilization: share of the GPU's memory for weights and cache.
        max_model_len: most tokens of prompt and answer; the model's own limit when left out.
        quantization: how vLLM reads quantised weights, as it calls it.
        enforce_eager: build no CUDA graphs: starts faster, writes more slowly.

    Raises:
        MachineError: vLLM is not installed.
        RecipeError: vLLM cannot do as the recipe says.
        DataError: a prompt has no tokens.
        ModelError: an answer holds an id that is no token.
    """
    require(request.teacher)
    _check(request)
    if request.should_stop():
        return
    asked = [
        (index, sample)
        for index in range(len(request.prompts))
        for sample in range(request.samples)
        if (index, sample) not in request.skip
    ]
    if not asked:
        return
    engine: Engine = request.teacher.kept(
        "vllm",
        lambda: Engine(
            request.teacher,
            max_num_seqs=request.batch_rows,
            tensor_parallel_size=tensor_parallel_size,
            gpu_memory_utilization=gpu_memory_utilization,
            max_model_len=max_model_len,
            quantization=quantization,
            enforce_eager=enforce_eager,
            **likeliest_settings(request.likeliest),
        ),
    )
    yield from engine.write(request, asked)


class Engine:
    """vLLM with a teacher's weights."""

    def __init__(self, teacher: Any, **settings: Any) -> None:
        vllm = vllm_settings.package(WANTED_BY)
        source = teacher.source
        self._llm = vllm.LLM(
            model=source.location,
            revision=source.revision,
            tokenizer_revision=source.revision,
            trust_remote_code=source.trust_remote_code,
            dtype=_DTYPES[teacher.dtype],
            # Without the model's own sampling settings.
            generation_config="vllm",
            **settings,
        )
        self._vllm = vllm
        self._width = loading.width(loading.load_config(source)) or 0

    def close(self) -> None:
        """Free the weights and the cache."""
        del self._llm
        gc.collect()

    def write(self, request: Request, asked: Sequence[tuple[int, int]]) -> Iterator[Completion]:
        """Complete these samples of a request's prompts."""
        vllm, width, began = self._vllm, self._width, time.monotonic()
        outputs = self._llm.generate(
            [vllm.TokensPrompt(prompt_token_ids=list(request.prompts[index])) for index, _ in asked],
            [vllm.SamplingParams(**settings(request, width, index, sample)) for index, sample in asked],
            use_tqdm=False,
        )
        tokens = 0
        for done, ((index, sample), output) in enumerate(zip(asked, outputs, strict=True), start=1):
            (only,) = output.outputs
            ids = tuple(only.token_ids)
            tokens += len(ids)
            if request.on_progress is not None:
                seconds = time.monotonic() - began
                request.on_progress(GenerationProgress(done, len(asked), tokens, seconds))
            shown = likeliest(only.logprobs, request.vocabulary or width) if request.likeliest else None
            if shown is not None and shown.rows != len(ids):
                raise ModelError(
                    f"vLLM shows likeliest ids of {shown.rows} tokens beside an answer of {len(ids)}.",
                    fix="Leave keep out, or update vLLM.",
                )
            finish = _finish(ids, only.finish_reason, request)
            yield Completion(index, sample, ids, finish, likeliest=shown)


def settings(request: Request, width: int, index: int, sample: int) -> dict[str, Any]:
    """Everything that vLLM's `SamplingParams` are told for one answer; the model's head has `width` rows."""
    chosen = vllm_settings.settings(
        request.sampling,
        stop_ids=request.stop_ids,
        never=[*request.unused, *range(request.vocabulary or width, width)],
        seed=draw_seed(request.seed, request.prompts[index], sample),
    )
    return {**chosen, "detokenize": False, **({"logprobs": request.likeliest} if request.likeliest else {})}


def likeliest_settings(count: int) -> dict[str, Any]:
    """What an engine is told that shows so many ids: their log-probabilities before any bias, temperature or cut."""
    return {"max_logprobs": count, "logprobs_mode": "raw_logprobs"} if count else {}


def likeliest(positions: Sequence[Mapping[int, Any]] | None, vocabulary: int) -> TopK:
    """The ids below `vocabulary` that vLLM shows at each position, with their log-probabilities.

    Raises:
        ModelError: it shows none, or the drawn id alone.
    """
    shown = [{i: one.logprob for i, one in place.items() if i < vocabulary} for place in positions or ()]
    if not shown or any(len(place) < 2 for place in shown):
        raise ModelError("vLLM shows no likeliest ids.", fix="Leave keep out, or update vLLM.")
    most = max(map(len, shown))
    ids = torch.full((len(shown), most), -1, dtype=torch.int64)
    lp = torch.full((len(shown), most), -torch.inf)
    for row, place in enumerate(shown):
        ids[row, : len(place)] = torch.tensor(list(place))
        lp[row, : len(place)] = torch.tensor(list(place.values())).clamp(max=0.0)
    return TopK(ids, lp)


def _finish(ids: Sequence[int], reason: str | None, request: Request) -> Literal["stop", "length"]:
    return vllm_settings.finish(
        ids,
        reason,
        request.sampling,
        stop_ids=request.stop_ids,
        unused=request.unused,
        vocabulary=request.vocabulary,
        way_out="Raise engine.vllm.max_model_len",
    )


def require(teacher: Any) -> None:
    """Refuse before anything is loaded what vLLM cannot write with.

    Raises:
        MachineError: vLLM is not installed.
        RecipeError: the teacher is a GGUF file, or the run has several processes.
    """
    if importlib.util.find_spec("vllm") is None:
        raise vllm_settings.missing(WANTED_BY)
    if teacher.source.kind == "gguf":
        raise RecipeError(
            "vLLM reads model folders and hub ids, and this teacher is a GGUF file.",
            path="generate.engine",
            fix="Use engine: local, or the model in its own format.",
        )
    if ranks.world() > 1:
        raise RecipeError(
            f"vLLM spreads a teacher over GPUs by itself, and this run has {ranks.world()} processes.",
            path="generate.engine",
            fix="Run it in one process, with engine: {vllm: {tensor_parallel_size: N}}.",
        )


def _check(request: Request) -> None:
    temperature, coldest, hottest = (
        request.sampling.temperature,
        vllm_settings.COLDEST,
        vllm_settings.HOTTEST,
    )
    if not vllm_settings.takes(temperature):
        raise RecipeError(
            f"vLLM takes temperatures from {coldest} to {hottest}, and 0 for greedy text, not {temperature}.",
            path="generate.sampling_temperature",
            fix="Use one of them, or engine: local.",
        )
    for index, prompt in enumerate(request.prompts):
        if len(prompt) == 0:
            raise DataError(
                f"Prompt {index} has no tokens.", fix="Give it a start token, or leave the row out."
            )
