"""A teacher in an engine of its own (vLLM, SGLang), which scores ids: the likeliest ids at every position."""

from __future__ import annotations

import ipaddress
import json
import logging
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal
from urllib.parse import urlsplit

import torch

from potstill.data.batch import collate, rows_of
from potstill.errors import MachineError, ProviderError, RecipeError
from potstill.models import generation, loading
from potstill.models import licence as licences
from potstill.signals.topk import TopK
from potstill.teachers import served
from potstill.teachers._context import TeacherContext
from potstill.teachers._engines import ENGINES, Likeliest, most_allowed
from potstill.types import Batch, Example

PROBE = 3  # ids that are scored before all others
UNSTEADY, ROUNDED = (
    0.05,
    1e-3,
)  # nats between two answers about one id: of another distribution, of half precision
log = logging.getLogger("potstill")


def build(
    context: TeacherContext,
    *,
    scores: str,
    model: str,
    server: Literal["vllm", "sglang"] = "vllm",
    served_as: str | None = None,
    top_k: int = 20,
    revision: str | None = None,
    key_env: str | None = None,
    seconds: float = 600.0,
    at_once: int = 8,
    terms: str = "",
) -> ScoredTeacher:
    """A teacher whose weights are in an engine. Asks nobody before a signal is needed.

    Args:
        scores: the engine's address, such as http://localhost:8000.
        model: hub id or folder of the model that it serves; its tokenizer is read, and no weight.
        server: which engine; it decides how ids are scored.
        served_as: what the server calls the model; the only one that it serves by default.
        top_k: how many of the likeliest ids are asked for at each position; vLLM gives 20 unless it is started with
            --max-logprobs.
        key_env: the environment variable that holds the server's key, if it wants one.
        seconds: the longest that one row may take.
        at_once: rows that are asked about together.
        terms: under which terms it is used, where its licence does not say it all; no part of its fingerprint.

    Raises:
        RecipeError: an option cannot be as it is.
        ModelError: the tokenizer cannot be read.
    """
    parts = urlsplit(scores)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
        raise RecipeError("is no address.", path="teacher.scores", fix="Write http://HOST:PORT.")
    for name, value in (("top_k", top_k), ("at_once", at_once)):
        if value < 1:
            raise RecipeError(f"must be at least 1, not {value}.", path=f"teacher.{name}")
    source = loading.find_source(model, base=context.base, revision=revision)
    root = scores.rstrip("/").removesuffix("/v1")
    return ScoredTeacher(root, source, context, server, served_as, top_k, key_env, seconds, at_once, terms)


class ScoredTeacher:
    """Asks an engine about each row by its ids. Its limits are tried with a few ids before the first row."""

    provides = frozenset({"topk"})
    temperatures = frozenset({1.0})  # of others it gives no log-sum-exp

    def __init__(
        self,
        root: str,
        source: loading.Source,
        context: TeacherContext,
        server: str,
        served_as: str | None,
        top_k: int,
        key_env: str | None,
        seconds: float,
        at_once: int,
        terms: str = "",
    ) -> None:
        config = loading.load_config(source)
        self.name, self.terms = source.path.name, terms
        self.licence = licences.licence(source)
        self.reads = context.reader(
            loading.load_tokenizer(source), generation.end_ids(source, loading.width(config))
        )
        self.context_length = loading.context_length(config)
        # Which weights the engine holds it alone knows; `model` and `served_as` are what the recipe says of them.
        said = "" if served_as is None else f" as {served_as}"
        self.fingerprint = f"{loading.fingerprint(source)} scored by {server}{said}, {top_k} ids"
        self._engine, self._root, self.top_k = ENGINES[server], root, top_k
        self._model, self._key_env = served_as or "", key_env
        self._seconds, self._at_once = seconds, at_once
        self._device = context.read_on or context.device
        self._probed = False

    def signal(self, batch: Batch) -> TopK:
        """The likeliest ids of each scored position, with their log-probabilities over the whole vocabulary.

        Raises:
            ProviderError: the engine cannot be reached, refuses, or leaves out something that was asked for.
        """
        self._probe()
        rows = [row for row in rows_of(batch) if row.count]
        said = self._said_together([row.input_ids[0].tolist() for row in rows])
        scored: list[Likeliest] = []
        for row, positions in zip(rows, said, strict=True):
            scored += [positions[place] for place in row.predicts[0].nonzero().flatten().tolist()]
        return self._together(scored)

    def each(self, examples: Sequence[Example]) -> Iterator[tuple[Example, TopK]]:
        """Each example with its signal, in their order; several are asked about together."""
        for start in range(0, len(examples), self._at_once):
            part = examples[start : start + self._at_once]
            signal, begin = self.signal(collate(part, pad_id=0).for_teacher), 0
            for example in part:
                count = sum((example.reading or example).scored[1:])
                yield example, signal.at(slice(begin, begin := begin + count))

    def _together(self, scored: Sequence[Likeliest]) -> TopK:
        width = max((len(one) for one in scored), default=1)
        ids = torch.full((len(scored), width), -1)
        lp = torch.full((len(scored), width), -torch.inf)
        for number, one in enumerate(scored):
            ids[number, : len(one)] = torch.tensor([index for index, _ in one])
            lp[number, : len(one)] = torch.tensor([value for _, value in one])
        return TopK(ids.to(self._device), lp.to(self._device), vocabulary=self.reads.vocabulary.size)

    def _said_together(self, rows: Sequence[Sequence[int]]) -> list[list[Likeliest]]:
        """What the engine says of several rows, half as many at once each time that it fails over them.

        Raises:
            ProviderError: it fails over one row by itself.
        """
        while True:
            try:
                with ThreadPoolExecutor(self._at_once) as pool:
                    return list(pool.map(self._said, rows))
            except _Overloaded as error:
                if self._at_once == 1:
                    raise
                self._at_once //= 2
                log.warning("%s; %d rows at once from now on", error.message, self._at_once)

    def _said(self, ids: Sequence[int], temperature: float = 0.0) -> list[Likeliest]:
        """What the engine says at each position: the likeliest ids to follow ids[: i + 1] stand at i."""
        body = self._engine.body(self._model, ids, self.top_k, temperature)
        return self._engine.said(self._post(self._engine.path, body), ids)

    def _probe(self) -> None:
        """Try the engine's limits once, with a few ids.

        Raises:
            MachineError: it gives fewer log-probabilities than are asked for; says how many.
            ProviderError: it serves another model, or leaves out something that was asked for.
        """
        if self._probed:
            return
        listed = self._get("/v1/models").get("data") or []
        names = [str(one.get("id")) for one in listed]
        if self._model not in names:
            if self._model or len(names) != 1:
                raise ProviderError(
                    f"{self._root} serves {', '.join(names) or 'nothing'}, not {self._model or 'one model alone'}.",
                    fix="Set teacher.served_as to one of its names.",
                )
            self._model = names[0]
        positions = self._said(list(range(PROBE)))
        if (fewest := min(map(len, positions))) < min(self.top_k, self.reads.vocabulary.size - 1):
            raise MachineError(
                f"{self._root} gives {fewest} log-probabilities at a position, and teacher.top_k is {self.top_k}.",
                fix=f"Set teacher.top_k: {fewest}, or start the engine with a higher limit.",
            )
        self._require_steady(positions)
        self._probed = True

    def _require_steady(self, positions: Sequence[Likeliest]) -> None:
        """Refuse an engine whose word for the same ids changes with sampling settings, or with what was asked before.

        Raises:
            ProviderError: it does, by more than half precision rounds.
        """
        ids = list(range(PROBE))
        longer = self._said([*ids, PROBE])[: len(positions)]
        changes = {
            "behind a longer prompt": (
                longer,
                "Start it without a prefix cache (--no-enable-prefix-caching).",
            ),
            "asked again": (self._said(ids), "Start it without a prefix cache (--no-enable-prefix-caching)."),
            "at another sampling temperature": (
                self._said(ids, 2.0),
                "Start it so that log-probabilities are raw (vLLM: --logprobs-mode raw_logprobs).",
            ),
        }
        for what, (again, fix) in changes.items():
            apart = _apart(positions, again)
            if apart > UNSTEADY:
                raise ProviderError(
                    f"{self._root} gives log-probabilities that are {apart:.3g} nats apart for the same ids {what}.",
                    fix=fix,
                )
            if apart > ROUNDED:
                log.warning("%s rounds: %.2g nats apart for the same ids %s", self._root, apart, what)

    def _get(self, path: str) -> dict[str, Any]:
        return self._ask(urllib.request.Request(self._root + path, headers=self._headers()))

    def _post(self, path: str, body: Any) -> dict[str, Any]:
        content = json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} | self._headers()
        return self._ask(urllib.request.Request(self._root + path, content, headers))

    def _headers(self) -> dict[str, str]:
        if self._key_env is None:
            return {}
        return {"Authorization": f"Bearer {served.secret(self._key_env, 'teacher.key_env')}"}

    def _ask(self, request: urllib.request.Request) -> dict[str, Any]:
        try:
            with _opener(self._root).open(request, timeout=self._seconds) as response:
                reply = json.loads(response.read())
        except urllib.error.HTTPError as error:
            said = error.read(4096).decode("utf-8", "replace")
            if (most := most_allowed(said)) is not None:
                raise MachineError(
                    f"{self._root} gives at most {most} log-probabilities, and teacher.top_k is {self.top_k}.",
                    fix=f"Set teacher.top_k: {most}, or start it with --max-logprobs {self.top_k}.",
                ) from error
            kind = _Overloaded if error.code >= 500 else ProviderError
            raise kind(
                f"{request.full_url} refuses ({error.code}): {said[:300]}", fix="Look at the engine's log."
            ) from error
        except (OSError, ValueError) as error:  # a refused connection, a time-out, or no JSON
            raise ProviderError(
                f"{request.full_url} does not answer: {error}.",
                fix="Start the engine, and name its address in teacher.scores.",
            ) from error
        if not isinstance(reply, dict):
            raise ProviderError(
                f"{request.full_url} answers with no JSON object.", fix="Ask the engine itself."
            )
        return reply

    def close(self) -> None:
        """Try the engine anew before the next row."""
        self._probed = False


class _Overloaded(ProviderError):
    """The engine failed over a request, as one does that runs out of memory."""


def _apart(some: Sequence[Likeliest], others: Sequence[Likeliest]) -> float:
    """The largest difference between two log-probabilities of one id at one position."""
    pairs = [(dict(a), dict(b)) for a, b in zip(some, others, strict=True)]
    return max((abs(a[i] - b[i]) for a, b in pairs for i in a.keys() & b.keys()), default=0.0)


class _Nowhere(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: a key would be sent wherever it leads."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _opener(root: str) -> urllib.request.OpenerDirector:
    """A way to the engine, past the environment's proxy where it is on this machine."""
    host = urlsplit(root).hostname or ""
    try:
        near = ipaddress.ip_address(host).is_loopback
    except ValueError:
        near = host == "localhost"
    return urllib.request.build_opener(_Nowhere, *([urllib.request.ProxyHandler({})] if near else []))
