"""As much of vLLM's offline API as potstill uses, with its names, defaults, checks and habits, over transformers.

`LLM(model, *, ...)` takes further engine arguments by name and refuses unknown ones; `generate` takes prompts by
position, one `SamplingParams` for each, and returns `RequestOutput`s in the prompts' order. `token_ids` keep the id
that stopped an answer, without `detokenize` too. `calls` holds what the engine was told.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypedDict

import torch
from transformers import AutoModelForCausalLM

ENGINE_ARGS = {
    "tokenizer_revision", "revision", "trust_remote_code", "dtype", "generation_config", "max_num_seqs",
    "tensor_parallel_size", "gpu_memory_utilization", "max_model_len", "quantization", "enforce_eager",
    "max_logprobs", "logprobs_mode",
}  # fmt: skip
calls: list[Any] = []
writes: dict[str, Any] = {}  # forced ids or finish reasons, for answers that a sound engine would not give


class TokensPrompt(TypedDict):
    prompt_token_ids: list[int]


@dataclass
class SamplingParams:
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    detokenize: bool = True
    logit_bias: dict[int, float] | None = None
    logprobs: int | None = None

    def __post_init__(self) -> None:
        if 0 < self.temperature < 1e-2:
            self.temperature = 1e-2
        if not 0 <= self.temperature <= 2:
            raise ValueError(f"temperature must be in [0, 2], got {self.temperature}.")
        if self.top_k < -1 or not 0 < self.top_p <= 1:
            raise ValueError("top_k or top_p")
        if self.n > 1 and self.temperature < 1e-5:
            raise ValueError("n must be 1 when using greedy sampling")


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: Any = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass
class RequestOutput:
    request_id: str
    prompt: str | None
    prompt_token_ids: list[int] | None
    outputs: list[CompletionOutput]
    finished: bool = True
    metrics: Any = None


@dataclass
class LLM:
    model: str
    settings: dict[str, Any] = field(default_factory=dict)

    def __init__(self, model: str, **settings: Any) -> None:
        if unknown := settings.keys() - ENGINE_ARGS:
            raise TypeError(f"unexpected keyword arguments {sorted(unknown)}")
        calls.append(("LLM", model, settings))
        self._model = AutoModelForCausalLM.from_pretrained(
            model, dtype=getattr(torch, settings["dtype"])
        ).eval()
        self._eos = self._model.config.eos_token_id
        self._max_logprobs = settings.get("max_logprobs", 20)

    def generate(
        self, prompts: list[TokensPrompt], sampling_params: list[SamplingParams], *, use_tqdm: bool = True
    ) -> list[RequestOutput]:
        calls.append(("generate", prompts, sampling_params))
        if len(prompts) != len(sampling_params):
            raise ValueError("The lengths of prompts and params must be the same.")
        return [
            RequestOutput(str(number), None, list(prompt["prompt_token_ids"]), [self._one(prompt, params)])
            for number, (prompt, params) in enumerate(zip(prompts, sampling_params, strict=True))
        ]

    @torch.no_grad()
    def _one(self, prompt: TokensPrompt, params: SamplingParams) -> CompletionOutput:
        if writes:
            return CompletionOutput(0, "", list(writes["ids"]), finish_reason=writes["finish"])
        start, generator = list(prompt["prompt_token_ids"]), torch.Generator()
        if params.seed is not None:
            generator.manual_seed(params.seed)
        stops = set(params.stop_token_ids or ()) | (set() if params.ignore_eos else {self._eos})
        if (params.logprobs or 0) > self._max_logprobs:
            raise ValueError(
                f"Requested sample logprobs of {params.logprobs}, which is greater than max allowed"
            )
        new: list[int] = []
        shown: list[dict[int, Logprob]] | None = None if params.logprobs is None else []
        while len(new) < (params.max_tokens or 16):
            logits = self._model(torch.tensor([start + new])).logits[0, -1].float()
            raw = logits.log_softmax(-1)
            for token, bias in (params.logit_bias or {}).items():
                logits[token] += bias
            if params.temperature < 1e-5:
                new.append(int(logits.argmax()))
            else:
                logits /= params.temperature
                if params.top_k > 0:
                    logits[logits < logits.topk(params.top_k).values[-1]] = -torch.inf
                new.append(int(torch.multinomial(logits.softmax(-1), 1, generator=generator)))
            if shown is not None:  # the drawn id first, then the likeliest ones
                ids = [new[-1], *raw.topk(params.logprobs or 0).indices.tolist()]
                shown.append({token: Logprob(float(raw[token])) for token in ids})
            if new[-1] in stops:
                return CompletionOutput(0, "", new, logprobs=shown, finish_reason="stop", stop_reason=new[-1])
        return CompletionOutput(0, "", new, logprobs=shown, finish_reason="length")
