"""A figure's prompts survive a file."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from potstill.evaluate import by_prompt, stats
from potstill.types import Figure


@pytest.mark.parametrize("transform", [None, np.exp])
def test_a_figure_is_restored_with_its_prompts_and_shape(transform):
    figure = stats.ratio([2.0, 0.25, 0.0], [2.0, 3.0, 0.0], figure=Figure("ppl"), transform=transform)
    entry = json.loads(json.dumps(by_prompt.stored(figure, "rows")))
    assert entry["measured_on"] == "rows"
    bare = replace(figure, pairs=(), shape=None)
    assert by_prompt.restored(bare, entry) == figure


def test_a_figure_without_prompts_or_of_another_shape_is_not_stored():
    assert by_prompt.stored(Figure("speed", value=2.0), "rows") is None
    assert by_prompt.stored(stats.ratio([1.0], [1.0], transform=np.square), "rows") is None
