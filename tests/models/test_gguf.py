"""Nothing in a GGUF file is skipped without a word."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from builders.tiny import save_tiny_gguf, tiny_model
from potstill.errors import ModelError
from potstill.models import loading


def load(tmp_path, monkeypatch, **extra: Any) -> Any:
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    file = save_tiny_gguf(tmp_path / "x.gguf", extra=extra)
    return loading.load_model(loading.find_source(str(file)), dtype=torch.float32)


def test_frequencies_that_scale_nothing_do_not_matter(tmp_path, monkeypatch):
    model = load(tmp_path, monkeypatch, **{"rope_freqs.weight": np.ones(8, np.float32)})
    wanted = tiny_model().state_dict()["lm_head.weight"]
    torch.testing.assert_close(model.lm_head.weight, wanted)


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("blk.0.attn_q.bias", 32, "holds 32 numbers that transformers does not read"),
        ("blk.1.attn_q_norm.weight", 16, "holds 16 numbers that transformers does not read"),
        ("blk.0.strange.weight", 7, "holds 7 numbers that transformers does not read"),
        ("rope_freqs.weight", 8, r"scales its rotary frequencies \(rope_freqs\.weight\)"),
        ("rope_factors_long.weight", 8, "scales its rotary frequencies"),
    ],
)
def test_what_transformers_skips_is_refused(tmp_path, monkeypatch, name, size, words):
    with pytest.raises(ModelError, match=words):
        load(tmp_path, monkeypatch, **{name: np.full(size, 2, np.float32)})
    assert not list((tmp_path / "cache" / "gguf").iterdir())
