"""A run whose teacher is a folder of likeliest ids that another program wrote down."""

from __future__ import annotations

import math

import pytest

from builders import places
from builders.chats import write_lines
from builders.cli import potstill
from potstill.console import Console
from potstill.stages import _rows
from potstill.stages._context import Context, State
from potstill.store.artifacts import Store

STAGES = "[{distill: {steps: 2}}, {evaluate: {metrics: [likelihood, agreement], samples: 2, max_new_tokens: 4, resamples: 100}}]"
BOUNDS = "forward_kl_bucket", "reverse_kl_bucket", "stated_mass"


def lines(place, splits):
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
    write_lines(tmp_path / "their.jsonl", *lines(tmp_path, splits))
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
