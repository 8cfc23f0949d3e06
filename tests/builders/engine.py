"""An engine on loopback that scores ids with a tiny model, as vLLM or as SGLang writes it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from builders.tiny import tiny_model

Change = Callable[[Any], Any]  # of a reply before it is sent


@dataclass
class Engine:
    """An open engine: what it was asked, and how it replies. `most` is its limit of log-probabilities."""

    url: str = ""
    names: tuple[str, ...] = ("served",)
    most: int = 20
    seed: int = 1
    vocab: int = 128
    change: Change = lambda reply: reply
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model = tiny_model(
            seed=self.seed, vocab=self.vocab
        )  # once: it seeds the process, and requests come together

    def scores(self, ids: list[int]) -> Any:
        with torch.no_grad():
            return self.model(torch.tensor([ids])).logits[0].log_softmax(-1)

    def vllm(self, body: dict[str, Any]) -> tuple[int, Any]:
        ids, k = body["prompt"], body["prompt_logprobs"]
        if k > self.most:
            said = f"Requested prompt logprobs of {k}, which is greater than max allowed: {self.most}"
            return 400, {"error": {"message": said, "type": "BadRequestError", "code": 400}}
        positions: list[Any] = [None]
        for row, token in zip(self.scores(ids)[:-1], ids[1:], strict=True):
            ranks = (row > row[token]).sum() + 1
            top = dict(zip(*[part.tolist() for part in reversed(row.topk(k))], strict=True))
            entries = {
                i: {"logprob": lp, "rank": n, "decoded_token": "x"}
                for n, (i, lp) in enumerate(top.items(), 1)
            }
            entries.setdefault(
                token, {"logprob": float(row[token]), "rank": int(ranks), "decoded_token": "x"}
            )
            positions.append({str(index): entry for index, entry in entries.items()})
        choice = {
            "index": 0,
            "text": "x",
            "prompt_logprobs": positions,
            "logprobs": {"tokens": ["token_id:5"]},
        }
        return 200, {"object": "text_completion", "choices": [choice]}

    def sglang(self, body: dict[str, Any]) -> tuple[int, Any]:
        ids, k = body["input_ids"], body["top_logprobs_num"]
        tokens, tops = [[None, ids[0], None]], [None]
        for row, token in zip(self.scores(ids)[:-1], ids[1:], strict=True):
            tokens.append([float(row[token]), token, None])
            tops.append([[float(lp), int(i), None] for lp, i in zip(*row.topk(k), strict=True)])  # type: ignore[arg-type]
        return 200, {"text": "", "meta_info": {"input_token_logprobs": tokens, "input_top_logprobs": tops}}


@contextmanager
def engine(**how: Any) -> Iterator[Engine]:
    """An open engine on a free port."""
    open_one = Engine(**how)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(200, {"object": "list", "data": [{"id": name} for name in open_one.names]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            open_one.asked.append(body)
            open_one.keys.append(self.headers["authorization"])
            status, value = open_one.vllm(body) if self.path == "/v1/completions" else open_one.sglang(body)
            self.reply(status, open_one.change(value) if status == 200 else value)

        def reply(self, status: int, value: Any) -> None:
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            return

    class Server(ThreadingHTTPServer):
        daemon_threads = True

    server = Server(("127.0.0.1", 0), Handler)
    open_one.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield open_one
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
