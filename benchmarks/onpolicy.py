"""Rollouts inside the training loop beside TRL GKD's: tokens a second, one thread; `--study` compares methods.

SmolLM2-135M-Instruct cut to 20 layers answers prompts of the quickstart in training mode, in the format that a run
trains in on this processor. TRL's trainer checkpoints activations unless it is told otherwise, and then generates
without a key-value cache; both write the same number of new tokens for the same prompts, so that all of them are
useful, by CPU seconds, interleaved in one process. `--quick` also prints the share of a step of `method: gkd` that
goes into generation, scoring and training, on the quickstart.

`--study` trains seven methods in equal processor time from one warm start a seed (study.py, study_arms.py, scorer.py).
An arm alone: `--study --arms gkd --seed 2`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from pair import LAYERS, TEACHER, TEST, TRAIN, micro_batch_tokens, missing, pair, product_dtype
from protocol import Figure, Report, alone, answer, arguments, installed, interleave, spread, use_threads

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = ROOT / "examples" / "data" / "prompts.jsonl"
ROWS, NEW_TOKENS, ROUNDS, BAR = 8, 64, 4, 3.0
NAME = "rollout_tokens_vs_trl_gkd"


def rollouts(rows: int, new_tokens: int, rounds: int) -> dict[str, Any]:
    """Useful tokens a CPU second of both, round by round."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.gkd import GKDTrainer

    student: Any
    loaded, student = pair(torch.float32)
    tokenizer, dtype = loaded.tokenizer, product_dtype()
    writer = _writer(student, tokenizer, dtype)
    with PROMPTS.open(encoding="utf-8") as lines:
        texts = [json.loads(line)["prompt"] for line in itertools.islice(lines, rows)]
    chats = [[{"role": "user", "content": text}] for text in texts]
    asked = [
        tokenizer.apply_chat_template(c, add_generation_prompt=True, tokenize=True)["input_ids"]
        for c in chats
    ]
    tokenizer.padding_side = "left"
    padded = tokenizer.pad({"input_ids": asked}, return_tensors="pt")
    inputs = {"prompts": padded["input_ids"], "prompt_attention_mask": padded["attention_mask"]}
    settings = _trl_settings(new_tokens, tokenizer.pad_token_id)

    def ours() -> None:
        from potstill.generate.sampling import Sampling

        written = writer.write(asked, Sampling(new_tokens), seeds=list(range(rows)))
        assert sum(len(one.ids) for one in written) == rows * new_tokens

    def trl_gkd() -> None:
        # TRL's training step generates with the module as it is trained, here in the format of ours.
        with torch.no_grad(), torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            ids, _, _ = GKDTrainer.generate_on_policy_outputs(student, inputs, settings)
        assert ids.shape[1] == inputs["prompts"].shape[1] + new_tokens

    student.generation_config.eos_token_id = None  # `generate` would fill it in
    student.train()
    timings = interleave({"ours": ours, "trl_gkd": trl_gkd}, rounds)
    tokens = rows * new_tokens
    rates = {name: round(tokens / timings.seconds(name)["cpu_median"], 1) for name in ("ours", "trl_gkd")}
    ratios = [1 / ratio for ratio in timings.ratios("ours", "trl_gkd")]
    return {"ratios": ratios, "tokens_per_second": rates, "noisy": timings.noisy}


def _writer(student: Any, tokenizer: Any, dtype: torch.dtype) -> Any:
    """The writer of a training, without end tokens."""
    from potstill.models.vocabulary import read_vocabulary
    from potstill.train.step import StudentModule
    from potstill.train.writer import Writer

    size = read_vocabulary(tokenizer).size
    return Writer(
        StudentModule(student, size),
        pad_id=tokenizer.pad_token_id,
        packed=False,
        micro_batch_tokens=micro_batch_tokens(),
        seed=0,
        steps=1,
        stop_ids=(),
        vocabulary=size,
        autocast=None if dtype == torch.float32 else dtype,
    )


def _trl_settings(new_tokens: int, pad: int) -> Any:
    """What GKDTrainer makes of GKDConfig's defaults, without an end token."""
    from transformers import GenerationConfig
    from trl.experimental.gkd import GKDConfig

    with tempfile.TemporaryDirectory() as folder:
        config = GKDConfig(output_dir=folder, use_cpu=True, bf16=False, report_to="none")
    return GenerationConfig(
        max_new_tokens=new_tokens,
        temperature=config.temperature,
        do_sample=True,
        top_k=0,
        top_p=1.0,
        use_cache=not config.gradient_checkpointing,
        pad_token_id=pad,
    )


def shares(steps: int) -> dict[str, float]:
    """Seconds of a step of `method: gkd` on the quickstart, by what they are spent on, as shares."""
    from study_arms import stage_of

    from potstill.runs.run import run

    with tempfile.TemporaryDirectory() as folder:
        recipe = {
            "version": 1,
            "name": "shares",
            "runs": folder,
            "teacher": {"model": TEACHER},
            "student": {"from_teacher": {"keep_layers": LAYERS, "by": "uniform"}},
            "data": {"train": str(PROMPTS)},
            "stages": [stage_of("gkd", steps=steps, validation_rows=1)],
        }
        file = Path(folder) / "recipe.yaml"
        file.write_text(json.dumps(recipe), encoding="utf-8")
        result = run(file)
        metrics = (result.path / "stages" / "arm" / "metrics.jsonl").read_text(encoding="utf-8")
    done = [event for event in map(json.loads, metrics.splitlines()) if event["event"] == "step"]
    whole, writing, scoring = (
        sum(event[name] for event in done) for name in ("seconds", "generation_seconds", "scoring_seconds")
    )
    parts = {"generation": writing, "scoring": scoring, "training": whole - writing - scoring}
    return {name: round(part / whole, 3) for name, part in parts.items()}


def measure(report: Report, quick: bool) -> None:
    """The figure, and the shares beside it."""
    shape: dict[str, Any] = {"rows": ROWS, "new_tokens": NEW_TOKENS, "student_layers": LAYERS, "threads": 1}
    shape |= {"dtype": str(product_dtype()).removeprefix("torch.")}
    lacking = missing(PROMPTS) or ("" if installed("trl") else "the package trl is not installed")
    if lacking:
        report.add(Figure(NAME, None, "ratio", BAR, "higher", shape=shape, note=lacking))
        return
    rounds = 1 if quick else ROUNDS
    found = alone(__file__, "rollouts", threads=1, rows=ROWS, new_tokens=NEW_TOKENS, rounds=rounds)
    ratios = spread(found["ratios"])
    facts = {name: {"tokens_per_second": rate} for name, rate in found["tokens_per_second"].items()}
    note = f"round by round {ratios['min']:g} to {ratios['max']:g}" + "; noisy" * found["noisy"]
    report.add(Figure(NAME, ratios["median"], "ratio", BAR, "higher", facts, shape, note))
    parts = alone(__file__, "shares", threads=1, steps=3 if quick else 8)
    report.say("    a step of gkd: " + ", ".join(f"{name} {share:.0%}" for name, share in parts.items()))


def run_study(report: Report, options: argparse.Namespace) -> None:
    """The study with the options of the command line."""
    from study import METHODS, Settings, study

    if lacking := missing(TRAIN, TEST):
        raise SystemExit(lacking)
    methods = tuple(options.arms.split(",")) if options.arms else METHODS
    if unknown := set(methods) - set(METHODS):
        raise SystemExit(f"--arms knows {', '.join(METHODS)}, not {', '.join(sorted(unknown))}")
    seeds = range(options.seeds) if options.seed is None else [options.seed]
    sizes = (options.minutes, options.questions, options.prompts, options.warm_steps, options.threads)
    command = f"python benchmarks/onpolicy.py --study --minutes {options.minutes:g} --seeds {options.seeds}"
    command += f" --prompts {options.prompts}"
    docs = ROOT / "docs" / "benchmarks.md"
    study(options.folder, Settings(*sizes), methods, seeds, docs, command, report.say)


def tasks() -> SimpleNamespace:
    """What runs in a process of its own."""
    import scorer
    import study_arms

    parts = (study_arms.prepare, study_arms.warm_start, study_arms.train, scorer.score, rollouts, shares)
    return SimpleNamespace(**{part.__name__: part for part in parts})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--study", action="store_true", help="compare methods in equal processor time")
    parser.add_argument("--minutes", type=float, default=4.0, help="of processor time that an arm trains")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 .. SEEDS - 1")
    parser.add_argument("--seed", type=int, help="this one alone")
    parser.add_argument("--arms", help="methods, separated by commas; all without it")
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "runs" / "onpolicy-study", help="what is finished"
    )
    parser.add_argument("--questions", type=int, default=800, help="that are trained on")
    parser.add_argument("--prompts", type=int, default=200, help="held-out questions that are scored")
    parser.add_argument("--warm-steps", type=int, default=40, help="of the shared warm start")
    parser.add_argument("--threads", type=int, default=1, help="of the study")
    options = arguments(__doc__, parser)
    if options.task:
        use_threads(torch.get_num_threads())
        return answer(options.task, vars(tasks()))
    if options.study:
        return run_study(Report("equal processor time on the student's own text", options.json), options)
    return measure(Report("rollouts inside the loop, one thread", options.json), options.quick)


if __name__ == "__main__":
    main()
