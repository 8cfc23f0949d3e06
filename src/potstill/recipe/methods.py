"""Published methods by name: each expands to stages as a recipe writes them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Method:
    """Stages of a published method as a recipe writes them, and where it is published."""

    stages: tuple[Any, ...]
    source: str


METHODS: Mapping[str, Method] = {
    "kd": Method(
        ("generate", {"distill": {"divergence": "forward_kl"}}, "evaluate"),
        "Word-level distillation: Hinton, Vinyals and Dean 2015, arXiv:1503.02531; for sequences Kim and "
        "Rush 2016, arXiv:1606.07947. Forward KL at every token, here without a hard-label term and on text "
        "that the teacher wrote.",
    ),
    "seqkd": Method(
        ("generate", "finetune", "evaluate"),
        "Sequence-level distillation: Kim and Rush 2016, arXiv:1606.07947. The student is trained on the "
        "teacher's text alone; the paper writes it by beam search, here it is sampled.",
    ),
    "sft": Method(
        ("finetune", "evaluate"),
        "Supervised fine-tuning on the data's own answers, without a teacher: the baseline that papers on "
        "distillation compare with.",
    ),
}


def stages_of(method: object) -> list[Any]:
    """The stages of a method as a recipe writes them; those of `kd` for None or an unknown name."""
    return copy.deepcopy(list(METHODS.get(str(method), METHODS["kd"]).stages))
