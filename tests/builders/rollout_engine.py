"""vLLM as far as weights are pushed to it: its offline API in this process, and its server, over transformers.

`sleep(level=2)` forgets the weights, `reload_weights` reads a folder of safetensors and needs them awake, a prefix
cache is stale until it is reset, and unknown settings are refused: where the real engine would fail, so does this one.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

ENGINE = {"dtype", "generation_config", "gpu_memory_utilization", "enable_sleep_mode", "skip_tokenizer_init"}
SAMPLING = {
    "n", "temperature", "top_p", "top_k", "max_tokens", "stop_token_ids", "ignore_eos", "logit_bias", "seed",
    "detokenize", "logprobs",
}  # fmt: skip


class Weights:
    """A model whose weights are replaced, and the text that it writes."""

    def __init__(self, model: str | Path, dtype: str = "float32") -> None:
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
        self.reloads = 0
        self.asked: list[dict[str, Any]] = []
        self.deaf = False  # reloads are answered and not done
        self.fresh = True  # the prefix cache is of these weights
        self._lock = threading.Lock()

    def reload_weights(self, weights_path: str) -> None:
        self.reloads += 1
        self.fresh = False
        stored = {
            k: v for file in Path(weights_path).glob("*.safetensors") for k, v in load_file(file).items()
        }
        names = dict(self.model.named_parameters())
        if stored.keys() != names.keys():
            raise ValueError(f"no module or parameter named {sorted(stored.keys() ^ names.keys())[0]!r}")
        with torch.no_grad():
            for name, value in stored.items() if not self.deaf else ():
                names[name].copy_(value)

    @torch.no_grad()
    def complete(self, prompt: list[int], settings: dict[str, Any]) -> tuple[list[int], str, float]:
        """Ids, why they end, and the log-probability of the first one."""
        assert self.fresh, "the prefix cache holds what other weights computed"
        assert settings.keys() <= SAMPLING, settings.keys() - SAMPLING
        with self._lock:
            self.asked.append(settings)
            generator = torch.Generator().manual_seed(settings.get("seed", 0))
            new: list[int] = []
            first = 0.0
            while len(new) < settings["max_tokens"]:
                logits = self.model(torch.tensor([prompt + new])).logits[0, -1].float()
                lp = logits.log_softmax(-1)
                for token, bias in (settings.get("logit_bias") or {}).items():
                    logits[int(token)] += bias
                if settings["temperature"] == 0:
                    token = int(logits.argmax())
                else:
                    probabilities = (logits / settings["temperature"]).softmax(-1)
                    token = int(torch.multinomial(probabilities, 1, generator=generator))
                first = float(lp[token]) if not new else first
                new.append(token)
                if token in (settings.get("stop_token_ids") or ()):
                    return new, "stop", first
            return new, "length", first


class LLM:
    """`vllm.LLM`."""

    def __init__(self, model: str, **settings: Any) -> None:
        if unknown := settings.keys() - ENGINE:
            raise TypeError(f"unexpected keyword arguments {sorted(unknown)}")
        self.weights = Weights(model, settings["dtype"])
        self.awake = {"weights", "kv_cache"}
        made.append(self)

    def sleep(self, level: int = 1) -> None:
        self.awake = set()
        if level == 2:
            with torch.no_grad():
                for parameter in self.weights.model.parameters():
                    parameter.zero_()

    def wake_up(self, tags: list[str] | None = None) -> None:
        self.awake |= set(tags or ["weights", "kv_cache"])

    def collective_rpc(
        self, method: str, timeout: float | None = None, args: tuple = (), kwargs: Any = None
    ) -> Any:
        assert "weights" in self.awake, "weights are asleep"
        return [getattr(self.weights, method)(*args, **(kwargs or {}))]

    def reset_prefix_cache(self) -> bool:
        self.weights.fresh = True
        return True

    def generate(self, prompts: list[Any], sampling_params: list[Any], *, use_tqdm: bool = True) -> list[Any]:
        assert self.awake == {"weights", "kv_cache"}, "asleep"
        outputs = []
        for prompt, params in zip(prompts, sampling_params, strict=True):
            ids, reason, first = self.weights.complete(list(prompt["prompt_token_ids"]), vars(params))
            logprobs = [{ids[0]: SimpleNamespace(logprob=first)}]
            outputs.append(
                SimpleNamespace(
                    outputs=[SimpleNamespace(token_ids=ids, finish_reason=reason, logprobs=logprobs)]
                )
            )
        return outputs


made: list[LLM] = []


def module() -> Any:
    """The module `vllm`."""
    made.clear()
    return SimpleNamespace(
        LLM=LLM,
        SamplingParams=lambda **settings: SimpleNamespace(**settings),
        TokensPrompt=lambda **prompt: prompt,
    )


@dataclass
class Server:
    """A running server; `takes` says whether it is in development mode."""

    address: str
    weights: Weights


@contextmanager
def served(model: Path, *, takes: bool = True) -> Iterator[Server]:
    """`vllm serve` on loopback."""
    weights = Weights(model)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            return None

        def do_GET(self) -> None:
            self._reply({"data": [{"id": "student"}]} if self.path == "/v1/models" else None)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or "null")
            if self.path == "/v1/completions":
                assert body.pop("model") == "student"
                assert body.pop("return_token_ids")
                ids, reason, first = weights.complete(body.pop("prompt"), body)
                choice = {"text": "", "token_ids": ids, "finish_reason": reason}
                self._reply({"choices": [choice | {"logprobs": {"token_logprobs": [first]}}]})
            elif takes and self.path == "/collective_rpc":
                weights.reload_weights(**body["kwargs"])
                self._reply({"results": [None]})
            elif takes and self.path == "/reset_prefix_cache":
                weights.fresh = True
                self._reply({})
            else:
                self._reply(None)

        def _reply(self, value: Any) -> None:
            data = json.dumps(value).encode()
            self.send_response(404 if value is None else 200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield Server(f"http://127.0.0.1:{server.server_port}/v1", weights)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
