"""What a student loses that is trained from a cache: paired seeds, held-out KL beside that of the live teacher.

SmolLM2-135M-Instruct teaches its own shallow cut on grade-school answers: a seed has rows of its own, twice through in
its own order, the same for every arm; forward KL, AdamW, a rate that falls to 0. The live arm asks the teacher in
every step; the others read a cache that was written once, so drawn targets are the same draws in both epochs. Each arm
is one JSON file in the folder: what is finished is not done again. One thread, so that CPU seconds are those of the arm.
"""

from __future__ import annotations

import copy
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from kept import keep
from pair import TEACHER, TEST, missing, product_dtype, rows
from protocol import Figure, Report, alone

# An arm, its kind and setting (None is the live teacher), and the bar of its mean loss; topk is reported alone.
ARMS: Mapping[str, tuple[str | None, Mapping[str, Any], float | None]] = {
    "live": (None, {}, None),
    "hidden": ("hidden", {"format": "int8"}, 0.005),
    "sampled": ("sampled", {}, 0.03),
    "topk_sampled": ("topk_sampled", {}, 0.03),
    "topk": ("topk", {}, None),
}
T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}  # of n seeds
BEGIN, END = "<!-- cache-quality:begin -->\n", "<!-- cache-quality:end -->"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"
Arm = Mapping[str, Any]


@dataclass(frozen=True)
class Settings:
    """What all arms of a folder have in common."""

    layers: int = 6
    steps: int = 20
    batch: int = 4
    heldout: int = 16
    learning_rate: float = 5e-4


def figures(report: Report, script: str, folder: Path, seeds: int, settings: Settings) -> None:
    """Every arm of every seed that is not there yet, then a figure a kind, and the table."""
    if why := missing(TEST):
        return report.say(why)
    folder.mkdir(parents=True, exist_ok=True)
    common = _once(folder / "settings.json", lambda: asdict(settings))
    if common != asdict(settings):
        raise SystemExit(f"{folder} was made with {common}: give another --folder")
    for seed in range(seeds):
        if not all(_file(folder, name, seed).is_file() for name in ARMS):
            report.say(f"    seed {seed}")
            alone(script, "quality", threads=1, folder=str(folder.resolve()), seed=seed)
    results = results_of(folder, seeds)
    for name, (_, _, bar) in ARMS.items():
        if name != "live":
            loss = losses(results["live"], results[name])
            contenders = {name: results[name][0], "live": results["live"][0]}
            note = f"seed by seed {min(loss):+.2%} to {max(loss):+.2%}"
            value, label = round(statistics.mean(loss), 5), f"heldout_kl_of_{name}"
            report.add(Figure(label, value, "share", bar, "lower", contenders, common, note))
    report.say(table(results))
    return None


def results_of(folder: Path, seeds: int) -> dict[str, list[Arm]]:
    """What a folder holds of the first seeds."""
    return {
        name: [json.loads(_file(folder, name, seed).read_text(encoding="utf-8")) for seed in range(seeds)]
        for name in ARMS
    }


def _file(folder: Path, name: str, seed: int) -> Path:
    return folder / f"{name}-{seed}.json"


def _once(file: Path, make: Callable[[], Any]) -> Any:
    """The content of a JSON file, made where it is not there."""
    if not file.is_file():
        temporary = file.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(make(), indent=1) + "\n", encoding="utf-8")
        temporary.replace(file)
    return json.loads(file.read_text(encoding="utf-8"))


def losses(live: Sequence[Arm], arm: Sequence[Arm]) -> list[float]:
    """By how much the held-out KL of an arm is above that of the live teacher's, seed by seed."""
    return [mine["kl"] / theirs["kl"] - 1 for mine, theirs in zip(arm, live, strict=True)]


def table(results: Mapping[str, Sequence[Arm]]) -> str:
    """A row an arm, as Markdown."""
    lines = [
        "| kept as | bytes a token | tail mass | held-out KL (nats) | above live, mean [95 % of the mean] | seed by seed | bar |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, arms in results.items():
        kl = f"{statistics.mean(arm['kl'] for arm in arms):.4f}"
        if name == "live":
            lines.append(f"| live teacher | – | – | {kl} | – | – | – |")
            continue
        loss, bar = losses(results["live"], arms), ARMS[name][2]
        mean = statistics.mean(loss)
        above = f"{mean:+.2%}"
        if len(loss) > 1:
            around = T_95.get(len(loss), 1.96) * statistics.stdev(loss) / math.sqrt(len(loss))
            above += f" [{mean - around:+.2%}, {mean + around:+.2%}]"
        tail = arms[0]["tail"]
        cells = [
            f"`{name}`",
            f"{statistics.mean(arm['bytes'] for arm in arms):.0f}",
            "–" if tail is None else f"{tail:.3f}",
            kl,
            above,
            ", ".join(f"{one:+.2%}" for one in loss),
            "–" if bar is None else f"≤ {bar:.1%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write_page(folder: Path, page: Path = PAGE) -> None:
    """Put the table of a folder between the marks of the page of benchmarks."""
    seeds = len([*folder.glob("live-*.json")])
    results = results_of(folder, seeds)
    settings = json.loads((folder / "settings.json").read_text())
    made = results["live"][0]
    seconds = sum(arm["cpu_seconds"] for arms in results.values() for arm in arms)
    words = (
        f"{seeds} seeds, a cut of {settings['layers']} layers, {settings['steps']} steps of {settings['batch']} rows "
        f"({made['tokens']:,} scored tokens in the first seed), held-out KL of the untrained student "
        f"{made['before']:.2f} nats, on {made['heldout_tokens']:,} tokens; {seconds / 60:.0f} minutes of processor time."
    )
    head, rest = page.read_text(encoding="utf-8").split(BEGIN)
    page.write_text(
        head + BEGIN + table(results) + f"\n\n{words}\n" + END + rest.split(END)[1], encoding="utf-8"
    )


# ── the arms of a seed ────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Pair:
    """A teacher, its untrained cut, and the rows of a seed."""

    teacher: Any
    cut: Any
    train: Sequence[Any]
    heldout: Sequence[Any]
    size: int  # ids
    pad: int
    dtype: torch.dtype

    def student(self) -> Any:
        """A copy of the cut, as a step takes it."""
        from potstill.train.step import StudentModule

        autocast = None if self.dtype == torch.float32 else self.dtype
        return StudentModule(copy.deepcopy(self.cut), self.size, autocast=autocast)


def quality(folder: str, seed: int) -> dict[str, Any]:
    """Train and measure the students of a seed that are not in the folder yet."""
    settings = Settings(**json.loads((Path(folder) / "settings.json").read_text(encoding="utf-8")))
    pair = pair_of(settings, seed)
    before, tokens = divergence(pair.student(), pair, pair.heldout)
    said = {"before": before, "heldout_tokens": tokens}
    for name in ARMS:
        _once(_file(Path(folder), name, seed), partial(arm, pair, settings, name, seed, said))
    return {"seed": seed}


def pair_of(settings: Settings, seed: int) -> Pair:
    """The models, and the rows of a seed, which no other seed has."""
    from potstill.models import anatomy, loading, vocabulary
    from potstill.students import depth
    from potstill.teachers.local import LocalTeacher

    dtype = product_dtype()
    loaded = loading.load(loading.find_source(TEACHER), dtype=dtype)
    size = vocabulary.read_vocabulary(loaded.tokenizer).size
    kept = depth.uniform(len(anatomy.layers(loaded.model)), settings.layers)
    each = settings.batch * settings.steps // 2  # twice through
    mine = [example for _, example in rows(loaded.tokenizer, each * (seed + 1))][each * seed :]
    heldout = [example for _, example in rows(loaded.tokenizer, settings.heldout, TEST)]
    cut = depth.cut(loaded.model, kept)
    teacher = LocalTeacher(loaded.model, vocabulary=size, fingerprint="benchmark")
    return Pair(teacher, cut, mine, heldout, size, loaded.tokenizer.pad_token_id, dtype)


def arm(pair: Pair, settings: Settings, name: str, seed: int, said: Mapping[str, Any]) -> dict[str, Any]:
    """Train one student, and measure it on held-out rows; `said` goes into what is known of it."""
    began = time.process_time()
    kind, setting, _ = ARMS[name]
    module, source = pair.student(), pair.teacher
    facts: dict[str, Any] = {"bytes": None, "tail": None}
    with tempfile.TemporaryDirectory() as place:
        if kind is not None:
            how = {"vocabulary": pair.size, "pad_id": pair.pad}
            source = keep(pair.teacher, pair.train, Path(place) / "kept", kind, setting, **how)
            facts = {"bytes": source.cache.stats()["bytes_per_token"], "tail": tail_of(source.cache)}
        ordered = [row for epoch in range(2) for row in in_order(pair.train, seed, epoch)]
        train(module, source, ordered, settings, pair.pad)
    after, _ = divergence(module, pair, pair.heldout)
    return {
        "kl": after,
        "tokens": sum(row.count for row in ordered),
        **facts,
        **said,
        "dtype": str(pair.dtype).removeprefix("torch."),
        "cpu_seconds": round(time.process_time() - began, 1),
    }


def in_order(examples: Sequence[Any], seed: int, epoch: int) -> list[Any]:
    """The rows of an epoch as every arm of a seed sees them."""
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(1000 * seed + epoch))
    return [examples[place] for place in order.tolist()]


def train(module: Any, teacher: Any, examples: Sequence[Any], settings: Settings, pad: int) -> None:
    """So many steps of forward KL; the rate rises over three steps and falls to 0."""
    from potstill import divergences
    from potstill.data.batch import collate
    from potstill.objectives.token import Divergence, TokenLoss
    from potstill.recipe.training import Training
    from potstill.train.loop import make_optimizer
    from potstill.train.step import accumulate

    loss = TokenLoss(Divergence.from_module(divergences.forward_kl))
    steps, batch, rate = settings.steps, settings.batch, settings.learning_rate
    optimizer = make_optimizer(module, Training(steps=steps, learning_rate=rate))
    module.train()
    for step in range(steps):
        part = sorted(examples[step * batch :][:batch], key=lambda row: len(row.input_ids))
        half = len(part) // 2
        batches = [collate(some, pad_id=pad) for some in (part[:half], part[half:])]
        for group in optimizer.param_groups:
            group["lr"] = rate * min((step + 1) / 3, 1 - step / steps)
        optimizer.zero_grad(set_to_none=True)
        accumulate(module, teacher, batches, loss)
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()


@torch.no_grad()
def divergence(module: Any, pair: Pair, examples: Sequence[Any]) -> tuple[float, int]:
    """KL(teacher ‖ student) in nats a scored token, and how many these are."""
    from potstill import divergences
    from potstill.data.batch import collate
    from potstill.objectives.token import Divergence, TokenLoss

    loss, summed, count = TokenLoss(Divergence.from_module(divergences.forward_kl)), 0.0, 0.0
    module.eval()
    ordered = sorted(examples, key=lambda row: len(row.input_ids))
    for some in _parts(ordered, 8):
        batch = collate(some, pad_id=pair.pad)
        total, weight, _ = module(batch, pair.teacher.signal(batch), loss)
        summed, count = summed + float(total), count + float(weight)
    return summed / count, int(count)


def _parts(examples: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(examples), size):
        yield examples[start : start + size]


@torch.no_grad()
def tail_of(cache: Any) -> float | None:
    """The mean mass outside the stored ids of a top-k cache."""
    if cache.header.kind != "topk":
        return None
    tails = []
    for key in list(cache.keys()):
        read = cache.batch([key]).whole()
        tails.append(1 - torch.where(read.ids >= 0, read.lp.double().exp(), 0.0).sum(-1))
    return round(float(torch.cat(tails).mean()), 5)
