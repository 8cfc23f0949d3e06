"""Text of the local engine beside transformers' own `generate`, and of a served teacher: what asking costs.

SmolLM2-135M-Instruct answers 64 questions of mixed length greedily, 96 tokens at most, in the format that a run
picks for this processor, two threads. A useful token is one up to a row's first end token: what a batch computes
behind it counts for nobody. `generate` is used as its documentation shows: one prompt at a time, and in batches
of the same size, padded on the left, in the order of the file. Each contender in a process of its own.

A served teacher answers after 50 ms; potstill asks it on one core, with everything written down (`endpoint.py`).
What the journal costs is the CPU time that a response takes with it over the time without, runs taken in turn.

The share of the limit is the time of the decoding's matrix products alone, for as many rows as were unfinished at
each step, over the time that the engine took for everything.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import endpoint
import torch
from pair import TEACHER, TEST, missing, product_dtype
from protocol import Figure, Report, alone, answer, arguments, spread, use_threads

PROMPTS, ROWS, NEW_TOKENS, THREADS = 64, 32, 96, 2
ALONE = 12  # prompts that are asked one at a time; their rate stands for all
RESPONSES, FEW_RESPONSES, PAIRS = 20_000, 3_000, 5
API: tuple[tuple[str, str, str, float, Literal["lower", "higher"]], ...] = (
    ("api_responses_per_second", "responses_per_second", "1/s", 300, "higher"),
    ("api_memory_growth", "memory_growth_mb", "MB", 80, "lower"),
    ("api_open_files", "open_files", "files", 256, "lower"),
)
FIGURES = (("local_vs_batch1", "one_by_one", 6.0), ("local_vs_same_batch", "in_batches", 1.5))
Runs = Mapping[str, list[dict[str, Any]]]


def teacher() -> Any:
    """The model with its tokenizer, as a run loads it."""
    from potstill.models import loading

    return loading.load(loading.find_source(TEACHER), dtype=product_dtype())


def prompts(tokenizer: Any, count: int = PROMPTS) -> list[list[int]]:
    """Questions through the chat template; every second one is cut to its last sentence, so that lengths differ."""
    with TEST.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in itertools.islice(lines, count)]
    texts = [row["question"] if i % 2 else row["question"].split(". ")[-1] for i, row in enumerate(rows)]
    chats = [[{"role": "user", "content": text}] for text in texts]
    return [
        tokenizer.apply_chat_template(c, add_generation_prompt=True, tokenize=True)["input_ids"]
        for c in chats
    ]


def rated(lengths: Sequence[int], seconds: float, **more: Any) -> dict[str, Any]:
    """Useful tokens a second, and what they were counted from."""
    return {"tokens_per_second": round(sum(lengths) / seconds, 2), "tokens": sum(lengths)} | more


def local() -> dict[str, Any]:
    """potstill's engine, and the time of its products alone."""
    from potstill.generate import local as engine
    from potstill.generate.sampling import Sampling
    from potstill.models.vocabulary import read_vocabulary

    loaded = teacher()
    end, pad = loaded.tokenizer.eos_token_id, loaded.tokenizer.pad_token_id
    asked = prompts(loaded.tokenizer)
    began = time.perf_counter()
    written = list(
        engine.generate(
            loaded.model,
            asked,
            Sampling(max_new_tokens=NEW_TOKENS, temperature=0.0),
            stop_ids=[end],
            pad_id=pad,
            seed=0,
            batch_rows=ROWS,
            vocabulary=read_vocabulary(loaded.tokenizer).size,
        )
    )
    seconds = time.perf_counter() - began
    lengths = [len(completion.ids) for completion in written]
    floor = products(loaded.model, lengths)
    return rated(lengths, seconds, share_of_limit=round(floor / seconds, 3))


def products(model: Any, lengths: Sequence[int]) -> float:
    """Seconds of the matrix products alone of decoding rows of these lengths, `ROWS` side by side."""
    waiting, active, by_count = sorted(lengths, reverse=True), list[int](), dict[int, int]()
    while waiting or active:
        while waiting and len(active) < ROWS:
            active.append(waiting.pop(0))
        by_count[len(active)] = by_count.get(len(active), 0) + 1
        active = [left - 1 for left in active if left > 1]
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    seconds = 0.0
    with torch.no_grad():
        for count, steps in by_count.items():
            inputs = [torch.randn(count, layer.in_features, dtype=layer.weight.dtype) for layer in layers]
            tries = []
            for _ in range(3):
                began = time.perf_counter()
                for layer, rows in zip(layers, inputs, strict=True):
                    torch.nn.functional.linear(rows, layer.weight)
                tries.append(time.perf_counter() - began)
            seconds += steps * min(tries)
    return seconds


def theirs(rows: int, count: int) -> dict[str, Any]:
    """transformers' `generate` on batches of `rows`."""
    loaded = teacher()
    tokenizer = loaded.tokenizer
    tokenizer.padding_side = "left"
    asked = prompts(tokenizer, count)
    lengths: list[int] = []
    began = time.perf_counter()
    for start in range(0, len(asked), rows):
        batch = tokenizer.pad({"input_ids": asked[start : start + rows]}, return_tensors="pt")
        with torch.no_grad():
            out = loaded.model.generate(
                **batch, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=tokenizer.pad_token_id
            )
        for row in out[:, batch["input_ids"].shape[1] :].tolist():
            end = row.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in row else len(row)
            lengths.append(end)
    return rated(lengths, time.perf_counter() - began)


def measure(quick: bool) -> Runs:
    """Every contender's runs, in turning order."""
    tasks: dict[str, tuple[str, dict[str, int]]] = {
        "local": ("local", {}),
        "in_batches": ("theirs", {"rows": ROWS, "count": PROMPTS}),
        "one_by_one": ("theirs", {"rows": 1, "count": ALONE}),
    }
    found: dict[str, list[dict[str, Any]]] = {}
    turns = 1 if quick else 2
    for turn in range(turns):
        for name in list(tasks)[:: 1 if turn % 2 == 0 else -1]:
            task, options = tasks[name]
            tell(
                f"{name}, run {turn + 1} of {turns}: {options.get('count', PROMPTS)} prompts; takes a minute or two"
            )
            found.setdefault(name, []).append(alone(__file__, task, threads=THREADS, **options))
    return found


def tell(text: str) -> None:
    """Say what is being measured; it takes minutes."""
    print(f"… {text}", file=sys.stderr, flush=True)


def asking(report: Report, quick: bool) -> None:
    """The figures of a served teacher."""
    count = FEW_RESPONSES if quick else RESPONSES
    shape = {"responses": count, "workers": endpoint.WORKERS, "delay_ms": 1000 * endpoint.DELAY, "cores": 1}
    tell(f"a served teacher: {count} responses, some {count // 300} s")
    run = alone(__file__, "api", threads=1, count=count)
    for name, key, unit, bar, better in API:
        report.add(Figure(name, run[key], unit, bar, better, {"potstill": run}, shape))
    few = FEW_RESPONSES // 2 if quick else FEW_RESPONSES
    runs: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for turn in range(PAIRS):
        for journalled in (True, False) if turn % 2 else (False, True):
            tell(
                f"{few} responses {'with' if journalled else 'without'} a journal, pair {turn + 1} of {PAIRS}"
            )
            runs[journalled].append(alone(__file__, "campaign", threads=1, count=few, journalled=journalled))
    least = {kept: min(run["cpu_ms_per_response"] for run in found) for kept, found in runs.items()}
    percent = round(100 * (least[True] / least[False] - 1), 2)
    writing = min(run["writing_ms_per_response"] for run in runs[True])
    facts = {
        "journal": {"cpu_ms_per_response": least[True], "runs": runs[True]},
        "none": {"cpu_ms_per_response": least[False], "runs": runs[False]},
    }
    note = (
        f"CPU time of a response, the least of {PAIRS} runs each: what else the machine does only adds to it; "
        f"{100 * writing / least[False]:.1f} % are the journal's own thread, the rest is workers that wait for it"
    )
    shape = {**shape, "responses": few}
    report.add(Figure("journal_overhead_percent", percent, "%", 10, "lower", facts, shape, note))


def main() -> None:
    options = arguments(__doc__)
    if options.task:
        use_threads(THREADS)
        tasks: dict[str, Callable[..., Any]] = {
            "local": local,
            "theirs": theirs,
            "api": endpoint.api,
            "campaign": endpoint.campaign,
        }
        return answer(options.task, tasks)
    report = Report("text of the local engine, two threads; of a served teacher, one core", options.json)
    asking(report, options.quick)
    shape: dict[str, Any] = {"prompts": PROMPTS, "rows": ROWS, "new_tokens": NEW_TOKENS, "threads": THREADS}
    shape |= {"dtype": str(product_dtype()).removeprefix("torch.")}
    if reason := missing(TEST):
        for name, _, bar in FIGURES:
            report.add(Figure(name, None, "ratio", bar, "higher", shape=shape, note=reason))
        return None
    found = measure(options.quick)
    for name, peer, bar in FIGURES:
        pairs = zip(found["local"], found[peer], strict=True)
        ratios = spread([ours["tokens_per_second"] / other["tokens_per_second"] for ours, other in pairs])
        facts = {
            label: {"tokens_per_second": runs[0]["tokens_per_second"], "runs": runs}
            for label, runs in found.items()
        }
        note = f"run by run {ratios['min']:g} to {ratios['max']:g}"
        report.add(Figure(name, ratios["median"], "ratio", bar, "higher", facts, shape, note))
    share = spread([run["share_of_limit"] for run in found["local"]])["median"]
    report.add(Figure("local_share_of_products", share, "share", None, "higher", {}, shape))
    return None


if __name__ == "__main__":
    main()
