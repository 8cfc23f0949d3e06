"""A training holds as much memory at its end as after its first steps."""

from __future__ import annotations

import json
import os

import pytest

from builders import places
from builders.many import start
from potstill.devices import memory

# Words of a row; as many as make thousands of different sums of lengths.
LENGTHS = [5 + 37 * index % 83 for index in range(200)]


def rows() -> list[dict[str, str]]:
    def words(count: int, first: int) -> str:
        return " ".join(f"w{12 + (first + 7 * place) % 100}" for place in range(count))

    return [
        {"id": f"p{i}", "prompt": words(2 + i % 9, i), "response": words(length, 3 * i)}
        for i, length in enumerate(LENGTHS)
    ]


@pytest.mark.prove
@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_memory_is_flat_over_two_thousand_steps(tmp_path, precision):
    """Kernels and buffers of ever new shapes are let go: the peak of all steps is within 5 % of that of the first
    20, on processors that generate code for bf16 and on others."""
    distill = (
        f"{{distill: {{steps: 2000, precision: {precision}, learning_rate: 0.0001, tokens_per_step: 300, "
        "micro_batch_tokens: 400}}"
    )
    places.write(tmp_path, rows(), stages=f"[{distill}]")
    process = start(tmp_path, "run", "r.yaml")
    _, said = process.communicate()
    assert process.returncode == 0, said
    lines = (tmp_path / "runs/r/stages/distill/metrics.jsonl").read_text().splitlines()
    steps = [event for event in map(json.loads, lines) if event["event"] == "step"]
    assert len(steps) == 2000
    assert steps[-1]["peak_rss_bytes"] <= 1.05 * steps[19]["peak_rss_bytes"]


def test_the_environments_own_numbers_of_kernels_stay(monkeypatch):
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "7")
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "")
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY")
    memory.bound_caches()
    assert os.environ["LRU_CACHE_CAPACITY"] == "7"
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == memory.KERNELS
