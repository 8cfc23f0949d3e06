"""Another tool's rows of top-k ids: imported on the command line, verified, checked and trained from."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch

from builders import places
from builders.chats import write_lines
from builders.cli import potstill
from builders.tiny import save_tiny
from potstill.console import Console
from potstill.models import loading
from potstill.stages import _rows
from potstill.stages._context import Context, State
from potstill.store.artifacts import Store


def test_an_import_on_the_command_line_is_the_teacher_of_a_run(tmp_path):
    """Rows with their top-k ids, as another tool leaves them: imported, verified by the teacher, and trained from."""
    save_tiny(tmp_path / "student", layers=1, seed=3)
    places.write(tmp_path, student="{model: student}", teacher="{model: teacher, dtype: float32}")
    model = loading.load(loading.find_source(str(tmp_path / "teacher")), dtype=torch.float32).model
    templater = places.read(tmp_path).readers.student.templater
    write_lines(tmp_path / "rows.jsonl", *(answered_by(model, templater, row) for row in places.prompts()))
    write_lines(tmp_path / "top.jsonl", *likeliest(model, tmp_path))
    words = ("--tokenizer", "teacher", "--teacher", "big")
    done = potstill("cache", "import", "top.jsonl", "imported", *words, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == 16
    assert potstill("cache", "import", "top.jsonl", "imported", *words, cwd=tmp_path).returncode == 2
    live = potstill("cache", "verify", "imported", "--teacher", "teacher", cwd=tmp_path)
    assert live.returncode == 0, live.stdout + live.stderr
    assert "8 probe rows" in live.stdout
    places.recipe(
        tmp_path, student="{model: student}", teacher="{cache: imported}", stages="[{distill: {steps: 2}}]"
    )
    checked = potstill("check", "r.yaml", "--quick", cwd=tmp_path)
    assert re.search(
        r"captured rows: in the cache are (\d+) of \1 training rows, (\d+) of \2 valid", checked.stdout
    )
    run_of = potstill("run", "r.yaml", cwd=tmp_path)
    assert run_of.returncode == 0, run_of.stderr
    assert len(places.steps(tmp_path, "distill")) == 2


@torch.no_grad()
def likely(model, ids: list[int]) -> torch.Tensor:
    """What the teacher says behind each of these ids."""
    return model(torch.tensor([ids])).logits[0].log_softmax(-1)


def answered_by(model, templater, row: dict) -> dict:
    """A prompt with words that the teacher thinks likely."""
    prompt, words = list(templater.prompt_ids([{"role": "user", "content": row["prompt"]}])), list[int]()
    for step in range(6):
        lp = likely(model, [*prompt, *words])[-1]
        words.append(20 + int(lp[20:].topk(2).indices[step % 2]))
    return row | {"response": " ".join(f"w{word}" for word in words)}


def likeliest(model, place: Path) -> list[dict]:
    """The rows that are trained and validated on, with the teacher's ten likeliest ids at their scored positions."""
    read, made = places.read(place), []
    for row in (*read.data.train, *read.data.validation):
        (example,) = read.readers.student.templater.encode_row(row)
        top = likely(model, list(example.input_ids))[:-1][torch.tensor(example.scored[1:])].topk(10)
        ids = {"input_ids": list(example.input_ids), "scored": list(example.scored)}
        made.append({**ids, "topk_ids": top.indices.tolist(), "topk_logprobs": top.values.tolist()})
    return made


STAGES = "[{distill: {steps: 2}}, {evaluate: {metrics: [likelihood, agreement], samples: 2, max_new_tokens: 4, resamples: 100}}]"
BOUNDS = "forward_kl_bucket", "reverse_kl_bucket", "stated_mass"


def stated(place, splits):
    """Half of the mass for a row's own token, and a tenth each for four others."""
    context = Context(places.read(place), Store(place / "runs/.store"), Console(quiet=True), seed=0)
    for split in splits:
        for example in _rows.examples(State(), context, split).examples:
            first = example.scored.index(True)
            own = example.input_ids[first:]
            yield {
                "id": f"{split} {example.id}",
                "input_ids": list(example.input_ids),
                "prompt_length": first,
                "topk_ids": [[one, *(4 + (one + step) % 120 for step in (1, 2, 3, 4))] for one in own],
                "topk_logprobs": [[math.log(0.5), *[math.log(0.1)] * 4] for _ in own],
            }


@pytest.mark.parametrize(
    ("splits", "bounded"), [(("train", "validation", "heldout"), True), (("train", "validation"), False)]
)
def test_bounds_of_both_kls_are_measured_where_the_held_out_rows_were_imported_too(tmp_path, splits, bounded):
    places.write(tmp_path, stages=STAGES)
    write_lines(tmp_path / "their.jsonl", *stated(tmp_path, splits))
    words = "cache import their.jsonl cache --tokenizer teacher --teacher theirs"
    done = potstill(*words.split(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    places.write(tmp_path, teacher="{cache: cache}", student="{model: teacher}", stages=STAGES)
    done = potstill("run", "r.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    student = places.summary(tmp_path)["after"]
    assert student["forward_kl"] is None
    assert student["agreement"] is None
    assert student["ppl"]["value"] > 1
    for name in BOUNDS:
        assert (student.get(name) is not None) == bounded
    if bounded:
        assert student["stated_mass"]["value"] == pytest.approx(0.9, abs=1e-3)
        assert student["forward_kl_bucket"]["value"] > 0
        assert student["forward_kl_bucket"]["low"] <= student["forward_kl_bucket"]["value"]
