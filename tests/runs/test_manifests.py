"""What the store says of an artifact takes as much room for many rows as for few."""

from __future__ import annotations

import re

import pytest

from builders import places
from builders.chats import write_lines
from potstill.console import Console
from potstill.runs.run import run
from potstill.store.artifacts import MANIFEST, Store

STAGES = (
    "[{distill: {steps: 1, learning_rate: 0.01, tokens_per_step: 40, micro_batch_tokens: 40, validation_rows: 4}}, "
    "{finetune: {steps: 1, learning_rate: 0.01, tokens_per_step: 40, micro_batch_tokens: 40, validation_rows: 4}}, "
    "{evaluate: {metrics: [likelihood]}}]"
)


def manifests(place, rows: int) -> dict[str, int]:
    """The bytes of every manifest of a run on so many rows, without the digits of its numbers, by stage."""
    place.mkdir()
    text = "{train: rows.jsonl, heldout: heldout.jsonl, max_length: 64}"
    places.write(place, places.answered(rows), data=text, stages=STAGES, runs=str(place / "runs"), name="few")
    write_lines(place / "heldout.jsonl", *[row | {"id": f"h{i}"} for i, row in enumerate(places.answered(5))])
    run(place / "r.yaml", console=Console(quiet=True))
    files = sorted((place / "runs/.store").glob(f"[a-z]*/{MANIFEST}"))
    assert len(files) >= 4
    sizes: dict[str, int] = {}
    for file in files:
        stage = file.parent.name.rpartition("-")[0]
        plain = re.sub(r"[\d.e-]+", "0", re.sub(r"[0-9a-f]{64}", "", file.read_text()))
        sizes[stage] = sizes.get(stage, 0) + len(plain)
    return sizes


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_runs_manifests_do_not_grow_with_its_rows(tmp_path):
    few, many = manifests(tmp_path / "few", 20), manifests(tmp_path / "many", 10_000)
    assert few.keys() == many.keys()
    for stage in few:
        assert abs(few[stage] - many[stage]) <= 120, stage


def test_a_manifest_holds_the_hash_of_inputs_that_grow_with_the_rows(tmp_path):
    def size(rows: int) -> int:
        store, key = Store(tmp_path), f"{rows:064d}"
        folder = store.work("generate", key)
        (folder / "answers.jsonl").write_text("{}\n" * rows)
        made = store.finish("generate", key, {"prompts": [[row] * 40 for row in range(rows)]}, {})
        return (made.path / MANIFEST).stat().st_size

    assert size(10_000) < size(10) < 10_000
    assert size(20_000) == size(10_000)
