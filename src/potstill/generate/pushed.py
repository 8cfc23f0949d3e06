"""Engines that write with weights which are pushed to them: vLLM in this process, or a server of vLLM.

Both read weights from a folder by vLLM's own `reload_weights`, so nothing here knows how vLLM holds them. Prompts go
in as ids and answers are the ids that come out; every setting is stated.
"""

from __future__ import annotations

import hashlib
import json
import urllib.error
import urllib.request
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from potstill.errors import MachineError, RecipeError
from potstill.generate import vllm_settings
from potstill.generate.request import Completion
from potstill.generate.sampling import Sampling

WANTED_BY = "strategy.on_policy.engine: vllm"
IN_FLIGHT = 64  # requests to a server at a time
TIMEOUT = 600.0  # seconds that a server may take for one call
DEV_MODE = "Start it with VLLM_SERVER_DEV_MODE=1, on this machine or with the run's folder at the same path"
NEWER = "Use a version of vLLM whose reload_weights takes weights_path, or engine: local."


@dataclass(frozen=True)
class Wanted:
    """Prompts to complete.

    Args:
        prompts: token ids.
        seeds: one for each prompt.
        stop_ids: ids that end a completion.
        vocabulary: number of ids that may be written.
        width: rows of the model's head; those from `vocabulary` on are never written.
        unused: ids below it that are no token.
    """

    prompts: Sequence[Sequence[int]]
    sampling: Sampling
    seeds: Sequence[int]
    samples: int
    stop_ids: Collection[int]
    vocabulary: int
    width: int
    unused: Collection[int] = ()

    def asked(self) -> Iterator[tuple[int, int, dict[str, Any]]]:
        """Prompt, sample and all settings, for each completion."""
        never = [*self.unused, *range(self.vocabulary, self.width)]
        for index in range(len(self.prompts)):
            for sample in range(self.samples):
                seed = _seed(self.seeds[index], sample)
                yield (
                    index,
                    sample,
                    vllm_settings.settings(self.sampling, stop_ids=self.stop_ids, never=never, seed=seed),
                )

    def completion(self, index: int, sample: int, ids: Sequence[int], reason: str | None) -> Completion:
        """A completion from what the engine returned.

        Raises:
            ModelError: it is none that vLLM may return.
        """
        finish = vllm_settings.finish(
            ids,
            reason,
            self.sampling,
            stop_ids=self.stop_ids,
            unused=self.unused,
            vocabulary=self.vocabulary,
            way_out="Lower max_new_tokens, or raise the server's --max-model-len,",
        )
        return Completion(index, sample, tuple(ids), finish)


def _seed(seed: int, sample: int) -> int:
    """31 bits for one sample of a prompt."""
    digest = hashlib.sha256(f"{seed}/{sample}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


class Engine(Protocol):
    """Writes with the weights that were loaded last."""

    def load(self, folder: Path) -> None:
        """Take the weights in a folder of safetensors."""

    def write(self, wanted: Wanted) -> list[Completion]:
        """Complete the prompts."""

    def first(self, prompt: Sequence[int]) -> tuple[int, float]:
        """The likeliest first id behind a prompt, and its log-probability: what the weights are recognised by."""

    def rest(self) -> None:
        """Give memory back until the next `load`, where the engine can."""

    def keeps(self) -> bool:
        """Whether it still has the weights that were loaded last."""


class InProcess:
    """vLLM in this process; between two texts it holds neither weights nor a cache.

    Args:
        model: folder of a model of the same form, from which config and first weights are read.
        dtype: as vLLM calls it.
        memory: share of the GPU for weights and cache while it writes.

    Raises:
        MachineError: vLLM cannot be imported.
    """

    def __init__(self, model: Path, dtype: str, memory: float) -> None:
        self._vllm = vllm = vllm_settings.package(WANTED_BY)
        self._llm = vllm.LLM(
            model=str(model),
            dtype=dtype,
            generation_config="vllm",  # without the model's own sampling settings
            gpu_memory_utilization=memory,
            enable_sleep_mode=True,
            skip_tokenizer_init=True,
        )
        self.rest()

    def load(self, folder: Path) -> None:
        self._llm.wake_up(tags=["weights"])
        try:
            self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
        except TypeError as error:
            raise MachineError(f"this version of vLLM takes no weights: {error}.", fix=NEWER) from error
        self._llm.wake_up(tags=["kv_cache"])
        self._llm.reset_prefix_cache()

    def write(self, wanted: Wanted) -> list[Completion]:
        asked = list(wanted.asked())
        outputs = self._generate(
            [wanted.prompts[index] for index, _, _ in asked], [settings for _, _, settings in asked]
        )
        return [
            wanted.completion(index, sample, one.token_ids, one.finish_reason)
            for (index, sample, _), one in zip(asked, outputs, strict=True)
        ]

    def first(self, prompt: Sequence[int]) -> tuple[int, float]:
        (one,) = self._generate(
            [prompt], [{"temperature": 0.0, "max_tokens": 1, "logprobs": 1, "ignore_eos": True}]
        )
        token = one.token_ids[0]
        return token, float(one.logprobs[0][token].logprob)

    def rest(self) -> None:
        self._llm.sleep(level=2)

    def keeps(self) -> bool:
        return False

    def _generate(self, prompts: Sequence[Sequence[int]], settings: Sequence[Mapping[str, Any]]) -> list[Any]:
        vllm = self._vllm
        outputs = self._llm.generate(
            [vllm.TokensPrompt(prompt_token_ids=list(prompt)) for prompt in prompts],
            [vllm.SamplingParams(**one, detokenize=False) for one in settings],
            use_tqdm=False,
        )
        return [output.outputs[0] for output in outputs]


class Served:
    """A server of vLLM that reads the run's folder and takes weights in its development mode.

    Args:
        address: up to the version, as http://localhost:8000/v1.

    Raises:
        RecipeError: nobody answers there, or the server takes no weights.
    """

    def __init__(self, address: str) -> None:
        self._address = address.rstrip("/")
        self._root = self._address.removesuffix("/v1")
        self._model = str(self._call(f"{self._address}/models")["data"][0]["id"])

    def load(self, folder: Path) -> None:
        wanted = {"method": "reload_weights", "kwargs": {"weights_path": str(folder.resolve())}}
        self._call(f"{self._root}/collective_rpc", wanted, takes_weights=True)
        self._call(f"{self._root}/reset_prefix_cache", {}, takes_weights=True)

    def write(self, wanted: Wanted) -> list[Completion]:
        def one(asked: tuple[int, int, dict[str, Any]]) -> Completion:
            index, sample, settings = asked
            answer = self._complete(
                wanted.prompts[index], {k: v for k, v in settings.items() if v is not None}
            )
            return wanted.completion(index, sample, answer["token_ids"], answer["finish_reason"])

        with ThreadPoolExecutor(IN_FLIGHT) as pool:  # the server batches what arrives together
            return list(pool.map(one, wanted.asked()))

    def first(self, prompt: Sequence[int]) -> tuple[int, float]:
        one = self._complete(prompt, {"temperature": 0.0, "max_tokens": 1, "logprobs": 1, "ignore_eos": True})
        return int(one["token_ids"][0]), float(one["logprobs"]["token_logprobs"][0])

    def rest(self) -> None:
        return None

    def keeps(self) -> bool:
        return True

    def _complete(self, prompt: Sequence[int], settings: Mapping[str, Any]) -> Mapping[str, Any]:
        body = {"model": self._model, "prompt": list(prompt), "return_token_ids": True, **settings}
        choice: Mapping[str, Any] = self._call(f"{self._address}/completions", body)["choices"][0]
        if choice.get("token_ids") is None:
            raise RecipeError(
                f"the server at {self._address} returns text and no ids.",
                path="strategy.on_policy.server",
                fix="Use a version of vLLM that knows return_token_ids, or engine: local.",
            )
        return choice

    def _call(self, url: str, body: Any = None, *, takes_weights: bool = False) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        fix = (
            DEV_MODE if takes_weights else "Check the address: up to the version, as http://localhost:8000/v1"
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            what = "takes no weights" if takes_weights else "refuses"
            reason = f"the server at {self._address} {what}: {error.code} {error.reason}"
        except (OSError, ValueError) as error:
            reason = f"the server at {self._address} cannot be asked: {error}"
        raise RecipeError(f"{reason}.", path="strategy.on_policy.server", fix=f"{fix}; or use engine: local.")
