"""A validation divides as the training does, in however many processes and passes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from builders.captures import together
from builders.losses import token_loss
from builders.steps import local_teacher, ragged_rows
from builders.tiny import tiny_model
from potstill.data.batch import collate
from potstill.devices import ranks
from potstill.train.step import StudentModule
from potstill.train.validation import Validation

ROWS = [
    replace(row, weight=1.0 + i % 3, share=[1.0, 0.25, 0.75][i % 3]) for i, row in enumerate(ragged_rows(7))
]


def figures(tokens: int) -> dict[str, float]:
    module = StudentModule(tiny_model(), 128)
    return dict(Validation(ROWS, local_teacher(), token_loss(), None, tokens, pad_id=0, by_row=True)(module))


@pytest.fixture(scope="module")
def by_hand() -> float:
    """Σ of weight, share and mean KL of each row over Σ of weight and share."""
    module, teacher, above, below = StudentModule(tiny_model(), 128), local_teacher(), 0.0, 0.0
    for row in ROWS:
        if row.count:
            batch = replace(collate([row], pad_id=0), weights=None)
            with torch.no_grad():
                total, tokens, _ = module(batch, teacher.signal(batch), token_loss())
            above += row.weight * row.share * float(total / tokens)
            below += row.weight * row.share
    return above / below


@pytest.mark.parametrize("tokens", [1, 40, 10_000])
def test_rows_of_a_conversation_share_its_weight_in_any_number_of_passes(by_hand, tokens):
    assert figures(tokens)["loss"] == pytest.approx(by_hand, rel=1e-5)


def test_processes_that_have_no_row_left_change_nothing(tmp_path, by_hand):
    def work() -> None:
        said = figures(10_000)  # one batch for three processes
        (tmp_path / f"{ranks.rank()}.json").write_text(json.dumps(said))

    together(tmp_path / "job", 3, work)
    said = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    assert said[0] == said[1] == said[2]
    assert said[0]["loss"] == pytest.approx(by_hand, rel=1e-5)
