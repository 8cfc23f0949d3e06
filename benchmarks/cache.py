"""A teacher's cache: bytes a position, what they keep, and how fast they are read.

SmolLM2-135M over three texts: grade-school mathematics, its own greedy answers to the same questions, and Python
source; scored positions only. `topk` is cut where the mean tail mass of all positions together is 0.10 and 0.145, with
the fewest bits whose mean |Δ log p| is at most 0.02 nats; each text alone, cut at the same tail mass, stands beside it.
Bytes are those of the files. Reading is timed on one thread from a cache of many examples; its memory is what a process
needs to hold one batch of all of them and to go through it chunk by chunk, over the bytes of the shards. `--quality`
trains students instead: five seeds, one arm a kind, finished arms kept in a folder.
"""

from __future__ import annotations

import argparse
import inspect
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cache_captures
import cache_quality
import cache_runs
import torch
from pair import TEACHER, TEST, missing, rows
from protocol import Figure, Report, alone, answer, arguments, clock, forget_peak, resident, use_threads
from torch import Tensor

ALONE = "topk", "replies"  # figures of captures that --only measures
MOST = 256
MEASURED, REPEATED = 1024, 60  # positions of a text; how often all are stored to be read
Example = tuple[list[int], list[bool], Tensor]  # ids, scored, hidden states [n, H]


@dataclass(frozen=True)
class Corpus:
    """The texts, and the head that reads their hidden states."""

    texts: Mapping[str, Sequence[Example]]
    head: Any

    def examples(self, name: str | None = None) -> list[Example]:
        """Those of one text, or all."""
        return [one for text, examples in self.texts.items() if name in (None, text) for one in examples]

    def lp(self, name: str | None = None) -> Iterator[Tensor]:
        """Log-probabilities [n, V] of each example."""
        from potstill.models.projection import plain_logits

        for _, _, hidden in self.examples(name):
            yield plain_logits(self.head, hidden).log_softmax(-1)


# ── texts ─────────────────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def read_texts(count: int) -> Corpus:
    """About `count` scored positions of each text."""
    from potstill.models import heads, loading

    loaded = loading.load(loading.find_source(TEACHER), dtype=torch.float32)
    model, tokenizer = loaded.model.eval(), loaded.tokenizer
    chats = rows(tokenizer, max(8, count // 70), TEST)
    given = [(list(example.input_ids), list(example.scored)) for _, example in chats]
    asked = [ids[: marks.index(True)] for ids, marks in given[: max(4, count // 100)]]
    written = []
    for prompt in asked:
        mask = torch.ones(1, len(prompt), dtype=torch.long)
        out = model.generate(
            torch.tensor([prompt]), attention_mask=mask, max_new_tokens=96, do_sample=False, pad_token_id=0
        )
        ids = out[0].tolist()
        written.append((ids, [i >= len(prompt) for i in range(len(ids))]))
    source = tokenizer(inspect.getsource(json.decoder) + inspect.getsource(inspect)[: 8 * count]).input_ids
    code = [
        (part, [False] + [True] * (len(part) - 1)) for part in _parts(source[: count + count // 256], 256)
    ]
    texts = {
        name: [(ids, scored, _hidden(model, ids, scored)) for ids, scored in pairs]
        for name, pairs in {"gsm8k": given, "written by the teacher": written, "code": code}.items()
    }
    return Corpus(texts, heads.head_of(model, len(tokenizer)))


def _parts(ids: list[int], size: int) -> list[list[int]]:
    return [ids[start : start + size] for start in range(0, len(ids), size)]


def _hidden(model: Any, ids: list[int], scored: list[bool]) -> Tensor:
    states = model.base_model(torch.tensor([ids])).last_hidden_state[0]
    return states[:-1][torch.tensor(scored[1:])].clone()


# ── storing ───────────────────────────────────────────────────────────────────────────────────────


def store(
    corpus: Corpus, folder: Path, kind: str, setting: Mapping[str, Any], name: str | None = None
) -> Any:
    """The open cache of the corpus, or of one of its texts."""
    from potstill.cache.header import Header
    from potstill.cache.keys import key_of
    from potstill.cache.reader import Cache
    from potstill.cache.writer import Writer
    from potstill.signals.hidden import Hidden

    header = Header(kind, setting, "benchmark", corpus.head.vocabulary)
    entries = [(key_of(ids, scored), Hidden(h, corpus.head)) for ids, scored, h in corpus.examples(name)]
    with Writer(folder, header) as writer:
        for start in range(0, len(entries), 16):
            writer.add_block(entries[start : start + 16])
        writer.finish()
    return Cache.open(folder)


def bytes_of(cache: Any) -> float:
    """Bytes of the shards a position."""
    stats = cache.stats()
    return round(stats["bytes"] / stats["tokens"], 2)


def threshold_at(corpus: Corpus, tail: float, name: str | None = None) -> float:
    """The p above which ids are kept so that the mean tail mass is `tail`."""
    top = torch.cat([lp.topk(MOST).values for lp in corpus.lp(name)]).double().exp()
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        kept = top > middle
        kept[:, 0] = True
        mean = float(1 - (top * kept).sum(-1).mean())
        low, high = (middle, high) if mean < tail else (low, middle)
    return high


def differences(corpus: Corpus, cache: Any, name: str | None = None) -> dict[str, float]:
    """What a stored top-k keeps: mean |Δ log p|, mean tail mass, ids a position."""
    errors, tails, ids = [], [], []
    for (tokens, scored, _), lp in zip(corpus.examples(name), corpus.lp(name), strict=True):
        read = cache.signal(tokens, scored).whole()
        used = read.ids >= 0
        true = lp.gather(1, read.ids.clamp(min=0))
        errors.append((read.lp - true)[used].abs())
        tails.append(1 - torch.where(used, true.double().exp(), 0.0).sum(-1))
        ids.append(used.sum(-1))
    values = {"dlogp": torch.cat(errors).double(), "tail": torch.cat(tails), "ids": torch.cat(ids).double()}
    return {name: round(float(value.mean()), 5) for name, value in values.items()}


def topk_at(corpus: Corpus, tail: float, name: str | None = None) -> dict[str, Any]:
    """Bytes and errors of `topk` at a tail mass, with the fewest bits whose error is at most 0.02 nats."""
    threshold = threshold_at(corpus, tail, name)
    for bits in (6, 7, 8):
        setting = {"threshold": threshold, "most": MOST, "bits": bits}
        with tempfile.TemporaryDirectory() as folder:
            cache = store(corpus, Path(folder), "topk", setting, name)
            kept = differences(corpus, cache, name)
            result = {"bytes": bytes_of(cache), "bits": bits, **kept, "threshold": round(threshold, 6)}
        if kept["dlogp"] <= 0.02:
            break
    return result


# ── figures ───────────────────────────────────────────────────────────────────────────────────────


def add(
    report: Report,
    name: str,
    value: float,
    unit: str,
    bar: float,
    contenders: Mapping[str, Any],
    shape: Mapping[str, Any],
    better: Literal["lower", "higher"] = "lower",
) -> None:
    """One figure."""
    report.add(Figure(name, value, unit, bar, better, contenders, shape))


def sizes(corpus: Corpus, report: Report, shape: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of bytes and errors; the setting of `topk` at tail mass 0.10."""
    from potstill.cache.measure import measure
    from potstill.signals.hidden import Hidden

    peers = {0.10: ("DistillKit recommended", 312), 0.145: ("DistillKit budget", 114)}
    found = {}
    for tail, bar, label in ((0.10, 150, "0.10"), (0.145, 67, "0.145")):
        found[tail] = topk_at(corpus, tail)
        peer, figure = peers[tail]
        contenders = {"potstill": found[tail], peer: {"bytes": figure}}
        contenders |= {f"{name} alone": topk_at(corpus, tail, name) for name in corpus.texts}
        add(report, f"topk_bytes_at_tail_{label}", found[tail]["bytes"], "bytes", bar, contenders, shape)
        if tail == 0.10:
            add(report, "topk_dlogp_at_tail_0.10", found[tail]["dlogp"], "nats", 0.02, contenders, shape)
    with tempfile.TemporaryDirectory() as folder:
        drawn = {
            kind: bytes_of(store(corpus, Path(folder) / kind, kind, {}))
            for kind in ("sampled", "topk_sampled")
        }
        add(report, "sampled_bytes", drawn["sampled"], "bytes", 40, drawn, shape)
        eight = bytes_of(store(corpus, Path(folder) / "hidden", "hidden", {"format": "int8"}))
    sample = Hidden(torch.cat([hidden for _, _, hidden in corpus.examples()]), corpus.head)
    formats = [("hidden", {"format": name, "dtype": "float32"}) for name in ("int8", "fp16")]
    kept = dict(zip(("int8", "fp16"), measure(sample, formats), strict=True))
    of_each = {name: {"bytes": m["bytes_per_token"]} for name, m in kept.items()}
    add(report, "hidden_int8_bytes", eight, "bytes", 650, of_each, shape)
    errors = {name: {"kl": m["kl_mean"], "p99": m["kl_p99"]} for name, m in kept.items()}
    add(report, "hidden_int8_kl", kept["int8"]["kl_mean"], "nats", 1e-3, errors, shape)
    return found[0.10]


def reading(corpus: Corpus, report: Report, top: Mapping[str, Any], shape: Mapping[str, Any]) -> None:
    """Figures of reading a larger cache, in which every example stands many times under other keys."""
    from potstill.cache.reader import Cache

    setting = {"threshold": top["threshold"], "most": MOST, "bits": top["bits"]}
    speed: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as place:
        for name, kind, chosen in (
            ("topk", "topk", setting),
            ("sampled", "sampled", {}),
            ("topk_sampled", "topk_sampled", {}),
            ("hidden int8", "hidden", {"format": "int8"}),
        ):
            folder = Path(place) / name.replace(" ", "-")
            repeat(store(corpus, folder / "once", kind, chosen), folder / "many")
            cache = Cache.open(folder / "many")
            keys = list(cache.keys())
            batches = [keys[start : start + 32] for start in range(0, len(keys), 32)]

            def read(cache: Any = cache, batches: Sequence[Sequence[bytes]] = batches) -> None:
                for batch in batches:
                    signal = cache.batch(batch)
                    signal.whole() if hasattr(signal, "whole") else None

            read()  # checksums once, as in the first epoch
            speed[name] = round(cache.stats()["tokens"] / min(clock(read).cpu for _ in range(5)))
        add(
            report,
            "decode_tokens_per_second",
            speed["topk"],
            "tokens/s",
            200_000,
            speed,
            shape,
            better="higher",
        )
        needs = {
            kind: alone(__file__, "memory", threads=1, folder=str(Path(place) / kind / "many"))
            for kind in ("topk", "sampled", "topk_sampled")
        }
    most = max(one["ratio"] for one in needs.values())
    add(report, "decode_ram_vs_stored", most, "ratio", 2.0, needs, shape)


def repeat(cache: Any, folder: Path) -> None:
    """Every example of a cache many times, under other keys: the same bytes, as a larger corpus would have."""
    from potstill.cache import blocks

    folder.mkdir()
    once = folder.parent / "once"
    for name in ("header.json", "head.safetensors", "head.sha256"):
        if (once / name).is_file():
            (folder / name).write_bytes((once / name).read_bytes())
    index = cache._index
    raw = (once / blocks.shard_name(0)).read_bytes()
    payloads = [
        (int(row["tokens"]), raw[int(row["offset"]) : int(row["offset"]) + int(row["bytes"])])
        for row in index.entries
    ]
    with (folder / blocks.shard_name(0)).open("wb") as file:
        file.write(blocks.shard_header(0))
        for number in range(REPEATED):
            entries = [
                blocks.Encoded((number << 64 | place).to_bytes(16, "big"), tokens, payload)
                for place, (tokens, payload) in enumerate(payloads)
            ]
            file.write(blocks.pack_block(number, entries))


def memory(folder: str) -> dict[str, float]:
    """What a process needs to hold all of a cache as one batch and to go through it, over the stored bytes."""
    from potstill import divergences
    from potstill.cache.reader import Cache
    from potstill.divergences._divergence import Divergence

    use_threads(1)
    cache = Cache.open(folder)
    keys = list(cache.keys())
    forward = Divergence.from_module(divergences.forward_kl)
    logits = torch.empty(0, cache.header.vocabulary)

    def go(keys: Sequence[bytes]) -> None:
        packed = cache.batch(keys)
        chunks = packed.chunks(forward, "bucket")
        for start in range(0, packed.rows, 256):
            chunks(slice(start, min(start + 256, packed.rows)), logits)

    go(keys[:8])
    before = forget_peak()
    go(keys)
    grown, stored = resident("VmHWM") - before, cache.stats()["bytes"]
    return {
        "ratio": round(grown / stored, 3),
        "megabytes": round(grown / 1e6, 1),
        "stored": round(stored / 1e6, 1),
    }


def main() -> None:
    """All figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--quality", action="store_true", help="students of each kind over seeds (15 core minutes)"
    )
    parser.add_argument("--only", choices=ALONE, help="measure this alone, within two minutes")
    parser.add_argument("--seeds", type=int, default=5, help="of --quality")
    parser.add_argument("--folder", type=Path, default=Path("runs/cache-quality"), help="of --quality's arms")
    parser.add_argument("--write", action="store_true", help="put --quality's table into docs/benchmarks.md")
    options = arguments(__doc__, parser)
    if options.task:
        use_threads(1)
        return answer(options.task, {"memory": memory, "quality": cache_quality.quality})
    report = Report("cache", options.json)
    if options.quality:
        cache_quality.figures(report, __file__, options.folder, options.seeds, cache_quality.Settings())
        return cache_quality.write_page(options.folder) if options.write else None
    use_threads(1)
    if options.only == "replies":
        return cache_captures.replies(report)
    if why := missing(TEST):
        return report.say(why)
    if options.only == "topk":
        return cache_captures.topk(report, {}, quick=options.quick)
    corpus = read_texts(MEASURED // 2 if options.quick else MEASURED)
    shape = {name: sum(len(h) for _, _, h in examples) for name, examples in corpus.texts.items()}
    with torch.no_grad():
        top = sizes(corpus, report, shape)
        reading(corpus, report, top, shape)
    cache_runs.figures(report, shape, quick=options.quick)
    cache_captures.topk(report, shape, quick=options.quick)
    cache_captures.replies(report)
    cache_runs.beside_trl(report, shape, quick=options.quick)
    return None


if __name__ == "__main__":
    main()
