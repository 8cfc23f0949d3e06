"""Rows that share a prompt: the prompt is read once, and each answer behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from potstill.data.batch import left_pad
from potstill.generate import kv
from potstill.models import anatomy
from potstill.types import Example


def prompt_of(row: Example) -> tuple[int, ...]:
    """What precedes the first scored token."""
    return row.input_ids[: row.scored.index(True)]


def shares_prompts(rows: Sequence[Example]) -> bool:
    """Whether two rows begin with one prompt."""
    return len({prompt_of(row) for row in rows}) < len(rows)


@torch.no_grad()
def states_of_rows(model: Any, rows: Sequence[Example], pad_id: int) -> list[Tensor]:
    """The final hidden states [N, H] at each row's scored positions; every prompt is read once."""
    device = next(model.parameters()).device
    places = {prompt: place for place, prompt in enumerate(dict.fromkeys(map(prompt_of, rows)))}
    ids, mask, positions = left_pad(list(places), pad_id, device)
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    read = anatomy.backbone(model)(**inputs, use_cache=True)
    chosen = torch.tensor([places[prompt_of(row)] for row in rows], device=device)
    states = read.last_hidden_state[
        chosen, -1:
    ]  # [R, 1, H], from which the first token of each answer is drawn
    answers = [row.input_ids[len(prompt_of(row)) : -1] for row in rows]
    if any(answers):
        cache = read.past_key_values
        kv.select(cache, chosen)
        longest = max(map(len, answers))
        filled = [[*answer, *[pad_id] * (longest - len(answer))] for answer in answers]
        real = [[1] * len(answer) + [0] * (longest - len(answer)) for answer in answers]
        places_in = mask.sum(1)[chosen].unsqueeze(1) + torch.arange(longest, device=device)
        behind = anatomy.backbone(model)(
            input_ids=torch.tensor(filled, device=device),
            attention_mask=torch.cat([mask[chosen], torch.tensor(real, device=device)], 1),
            position_ids=places_in,
            past_key_values=cache,
            use_cache=True,
        )
        states = torch.cat([states, behind.last_hidden_state], 1)
    marks = [row.scored[len(prompt_of(row)) :] for row in rows]
    return [
        part[: len(mark)][torch.tensor(mark, device=device)] for part, mark in zip(states, marks, strict=True)
    ]
