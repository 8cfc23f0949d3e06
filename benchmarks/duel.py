"""Equal wall time: potstill as a user runs it, TRL's GKD trainer and a plain dense loop; held-out KL and agreement.

SmolLM2-135M-Instruct teaches its cut of 20 layers (by block influence, cut and saved once, loaded by all) on
grade-school mathematics with human answers, forward KL, the same rows and seed, two threads. Every arm is a process
of its own, in turn; its time runs from before its start to its end, so imports, loading, tokenizing, validation and
saving count. potstill's arm is `potstill run` on a recipe with one distill stage whose steps fill the time by the
pace of a short run; the others then have as many seconds as it took, and their learning rate follows the clock.

Rows a step and learning rate are screened for each arm by runs of an eighth of the time: 2, 4 and 8 rows at 5e-4,
then 2.5e-4 and 1e-3 with the best of them, by held-out KL on other rows than those of the result. `--quick` gives
each arm two minutes with the settings in `FIXED`. One scorer reads all saved students and the teacher in fp32.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duel_peers
import torch
from pair import LAYERS, TEACHER, TEST, TRAIN, missing, rows
from protocol import Figure, Report, alone, answer, arguments, installed, use_threads

TRAINED, WATCHED, SCREENING, SCORED, THREADS, SEED = 2000, 16, 24, 96, 2, 0
SECONDS, QUICK_SECONDS = 480.0, 120.0
ROWS, RATES = (2, 4, 8), (2.5e-4, 5e-4, 1e-3)
PILOT = 6  # steps that tell potstill's pace
VALIDATING = 1.05  # potstill's validations take at most 5 % of its training
LATE = 1.03
FIGURES = (("heldout_kl_vs_trl_gkd", "trl_gkd", 0.70), ("heldout_kl_vs_plain_loop", "plain_loop", 1.0))
RECIPE = """\
version: 1
name: duel
seed: 0
teacher: {model: ./teacher}
student: {model: ./student}
data:    {train: train.jsonl}
stages:
  - distill: {divergence: forward_kl}
"""


@dataclass(frozen=True)
class Setting:
    """Rows of an optimizer step, and the highest learning rate."""

    rows: int
    rate: float


FIXED = {  # chosen, not screened: what NOTES.md found good for our loop
    "ours": Setting(4, 5e-4),
    "trl_gkd": Setting(4, 5e-4),
    "plain_loop": Setting(4, 5e-4),
}

# ── in processes of their own ─────────────────────────────────────────────────────────────────────


def prepare(folder: str) -> dict[str, float]:
    """Save the teacher and its cut in bf16, and the rows; returns mean scored tokens of a row."""
    from potstill.data.batch import collate
    from potstill.models import loading, saving
    from potstill.students import depth

    home = Path(folder)
    loaded = loading.load(loading.find_source(TEACHER), dtype=torch.float32)
    train = rows(loaded.tokenizer, TRAINED + WATCHED)
    test = rows(loaded.tokenizer, SCREENING + SCORED, TEST)
    parts = {
        "watch.jsonl": train[:WATCHED],
        "train.jsonl": train[WATCHED:],
        "screen.jsonl": test[:SCREENING],
        "score.jsonl": test[SCREENING:],
    }
    for name, part in parts.items():
        lines = [json.dumps({"messages": chat}) + "\n" for chat, _ in part]
        (home / name).write_text("".join(lines), encoding="utf-8")
    (home / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    examples = [example for _, example in parts["train.jsonl"]]
    pad = loaded.tokenizer.pad_token_id
    batches = [collate(examples[i : i + 8], pad_id=pad) for i in range(0, 64, 8)]
    saving.save(loaded.model, loaded.tokenizer, home / "teacher", torch.bfloat16)
    influence = depth.block_influence(loaded.model, batches)
    student = depth.cut(loaded.model, depth.most_influential(influence, LAYERS))
    saving.save(student, loaded.tokenizer, home / "student", torch.bfloat16)
    return {"scored_tokens_a_row": statistics.mean(example.count for example in examples)}


@torch.no_grad()
def score(folder: str, student: str, file: str) -> dict[str, float]:
    """Mean KL(teacher ‖ student) in nats a scored token and top-1 agreement, both models in fp32."""
    from transformers import AutoTokenizer

    home = Path(folder)
    tokenizer = AutoTokenizer.from_pretrained(home / "teacher")
    models = [duel_peers.load(path, torch.float32).eval() for path in (home / "teacher", Path(student))]
    kl = agreed = tokens = 0.0
    for chat in duel_peers.chats(home / file):
        ids, prompt = duel_peers.encode(tokenizer, chat)
        logits = [model(input_ids=torch.tensor([ids])).logits[0, prompt - 1 : -1] for model in models]
        teacher, ours = (torch.log_softmax(z, -1) for z in logits)
        kl += float((teacher.exp() * (teacher - ours)).sum(dtype=torch.float64))
        agreed += float((teacher.argmax(-1) == ours.argmax(-1)).sum())
        tokens += len(teacher)
    return {"kl": round(kl / tokens, 4), "agreement": round(agreed / tokens, 4), "tokens": tokens}


# ── the arms ──────────────────────────────────────────────────────────────────────────────────────


def timed(command: Sequence[str], folder: Path) -> tuple[str, dict[str, float]]:
    """Run a command; what it prints, and its wall seconds and peak memory."""
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    environment |= {"TOKENIZERS_PARALLELISM": "false"}
    began = time.perf_counter()
    with (folder / "out").open("w+") as out, (folder / "err").open("w+") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, env=environment, cwd=folder)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - began
        out.seek(0), err.seek(0)
        if process.returncode != 0:
            raise RuntimeError(f"{' '.join(command)[:300]} failed: {err.read().strip()[-2000:]}")
        text = out.read()
    return text, {"seconds": round(seconds, 1), "peak_gb": round(usage.ru_maxrss * 1024 / 1e9, 2)}


class Duel:
    """The prepared pair and rows, and what is known of potstill's pace."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.row_tokens = alone(__file__, "prepare", threads=torch.get_num_threads(), folder=str(folder))[
            "scored_tokens_a_row"
        ]
        self.pace: tuple[float, float] | None = None  # seconds beside the steps, and of a scored token
        self.runs = 0

    def race(self, arm: str, setting: Setting, seconds: float, file: str) -> dict[str, Any]:
        """Give an arm so much time, and score its student on the rows of a file."""
        self.runs += 1
        place = self.folder / f"{arm}-{self.runs}"
        place.mkdir()
        run = self._ours if arm == "ours" else self._peer
        found = run(arm, setting, seconds, place)
        scores = self.score(found.pop("student"), file)
        return scores | {"rows": setting.rows, "learning_rate": setting.rate} | found

    def score(self, student: str, file: str) -> dict[str, Any]:
        """Score a saved student."""
        options = {"folder": str(self.folder), "student": student, "file": file}
        scores: dict[str, Any] = alone(__file__, "score", threads=torch.get_num_threads(), **options)
        return scores

    def _peer(self, arm: str, setting: Setting, seconds: float, place: Path) -> dict[str, Any]:
        student = str(place / "student")
        options = {"folder": str(self.folder), "out": student, "began": time.time(), "seconds": seconds}
        options |= {"rate": setting.rate, "rows": setting.rows, "seed": SEED}
        task = json.dumps({"name": arm, "options": options})
        printed, cost = timed([sys.executable, __file__, "--task", task], place)
        return json.loads(printed.splitlines()[-1]) | cost | {"student": student}

    def _ours(self, arm: str, setting: Setting, seconds: float, place: Path) -> dict[str, Any]:
        if self.pace is None:
            pilot = self._run(setting, PILOT, place / "pilot")
            a_step = statistics.median(pilot["step_seconds"])
            beside = pilot["seconds"] - sum(pilot["step_seconds"])
            self.pace = beside, a_step / (setting.rows * self.row_tokens)
        beside, a_token = self.pace
        a_step = a_token * setting.rows * self.row_tokens * VALIDATING
        found = self._run(setting, max(1, int((seconds - beside) / a_step)), place)
        times = found.pop("step_seconds")
        spent = statistics.median(times) / (setting.rows * self.row_tokens)
        self.pace = found["seconds"] - VALIDATING * sum(times), spent
        return found

    def _run(self, setting: Setting, steps: int, place: Path) -> dict[str, Any]:
        """`potstill run` for so many steps."""
        place.mkdir(exist_ok=True)
        options = {"steps": steps, "learning_rate": setting.rate}
        options |= {"tokens_per_step": round(setting.rows * self.row_tokens)}
        overrides = [f"distill.{key}={value}" for key, value in options.items()]
        recipe = str(self.folder / "recipe.yaml")
        command = [sys.executable, "-m", "potstill", "run", recipe, *overrides, f"runs={place}", "--json"]
        printed, cost = timed(command, place)
        run = Path(json.loads(printed)["path"])
        metrics = run / "stages" / "distill" / "metrics.jsonl"
        events = [json.loads(line) for line in metrics.read_text().splitlines()]
        times = [event["seconds"] for event in events if event["event"] == "step"]
        return cost | {"steps": len(times), "step_seconds": times, "student": str(run / "student")}


def screen(duel: Duel, arm: str, seconds: float, report: Report) -> Setting:
    """The best rows a step at the middle rate, then the best rate with them."""
    seen: dict[Setting, float] = {}

    def best(settings: Sequence[Setting]) -> Setting:
        for setting in settings:
            if setting not in seen:
                found = duel.race(arm, setting, seconds, "screen.jsonl")
                seen[setting] = found["kl"]
                report.say(f"    screen {arm}: {found}")
        return min(settings, key=lambda setting: seen[setting])

    chosen = best([Setting(count, RATES[1]) for count in ROWS])
    return best([Setting(chosen.rows, rate) for rate in RATES])


# ── the figures ───────────────────────────────────────────────────────────────────────────────────


def figures(found: Mapping[str, Mapping[str, Any]], shape: Mapping[str, Any]) -> list[Figure]:
    """Our held-out KL over each peer's."""
    made = []
    for name, peer, bar in FIGURES:
        value, note = None, "the package trl is not installed"
        if peer in found:
            ours, other = found["ours"], found[peer]
            value = ours["kl"] / other["kl"]
            note = f"agreement {ours['agreement']:.3f} against {other['agreement']:.3f}"
            if max(other["seconds"] / ours["seconds"], ours["seconds"] / other["seconds"]) > LATE:
                note += f"; TIMES DIFFER: {ours['seconds']:.0f} s against {other['seconds']:.0f} s"
        made.append(Figure(name, value, "ratio", bar, contenders=found, shape=shape, note=note))
    return made


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, help="of an arm, with the settings of --quick")
    parser.add_argument("--threads", type=int, default=THREADS)
    options = arguments(__doc__, parser)
    if options.task:
        peers = {"plain_loop": duel_peers.plain, "trl_gkd": duel_peers.trl_gkd}
        return answer(options.task, {"prepare": prepare, "score": score, **peers})
    use_threads(options.threads)
    report = Report(f"equal wall time, {options.threads} threads", options.json)
    fixed = options.quick or options.seconds is not None
    seconds = options.seconds or (QUICK_SECONDS if options.quick else SECONDS)
    shape: dict[str, Any] = {
        "seconds": seconds,
        "student_layers": LAYERS,
        "threads": options.threads,
        "seed": SEED,
    }
    shape |= {"train_rows": TRAINED, "scored_rows": SCORED, "screened": not fixed}
    if reason := missing(TRAIN, TEST):
        for name, _, bar in FIGURES:
            report.add(Figure(name, None, "ratio", bar, shape=shape, note=reason))
        return None
    arms = ["ours", "plain_loop"] + ["trl_gkd"] * installed("trl")
    with tempfile.TemporaryDirectory() as folder:
        duel = Duel(Path(folder))
        report.say(f"    untrained: {duel.score(str(Path(folder) / 'student'), 'score.jsonl')}")
        settings = {arm: FIXED[arm] if fixed else screen(duel, arm, seconds / 8, report) for arm in arms}
        found: dict[str, dict[str, Any]] = {}
        for arm in arms:
            limit = found["ours"]["seconds"] if found else seconds
            found[arm] = duel.race(arm, settings[arm], limit, "score.jsonl")
            report.say(f"    {arm}: {found[arm]}")
    for figure in figures(found, shape):
        report.add(figure)
    return None


if __name__ == "__main__":
    main()
