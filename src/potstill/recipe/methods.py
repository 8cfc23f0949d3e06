"""Published methods by name: each expands to stages as a recipe writes them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from potstill.recipe import plugins


@dataclass(frozen=True)
class Method:
    """Stages of a published method as a recipe writes them, and where it is published."""

    stages: tuple[Any, ...]
    source: str


COLD = (
    "A student that has not learnt from its teacher's text yet cannot learn from its own: a short warm-up comes "
    "first, where the paper starts from a fine-tuned student."
)
WARM_UP = {"distill": {"name": "warm_up", "divergence": "forward_kl", "epochs": 1}}


def _on_policy(strategy: Mapping[str, Any], **options: Any) -> tuple[Any, ...]:
    """A teacher's answers, a warm-up on them, and a stage on the student's own text."""
    stage = {"distill": {"strategy": {"on_policy": dict(strategy)}, **options}}
    return ("generate", WARM_UP, stage, "evaluate")


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
    "gkd": Method(
        _on_policy(
            {"on_policy_fraction": 1.0, "sampling_temperature": 1.0, "max_new_tokens": 64},
            divergence={"jsd": {"beta": 0.9}},
            normalize="sequence_mean",
        ),
        "GKD: Agarwal et al. 2024, arXiv:2306.13649. λ = 1 (on-policy text in every step), JSD(0.9) and answers of "
        "64 tokens as for summaries in the paper; it takes JSD(0.1) for translation, forward KL for mathematics and "
        f"reverse KL for instructions. A row's loss is the mean over its tokens. {COLD}",
    ),
    "minillm": Method(
        _on_policy(
            {"teacher_share": 0.2, "collect": 4, "inner_epochs": 4, "keep_rows": True},
            divergence="reverse_kl",
            policy_gradient={
                "discount": 1.0,
                "counts_from": "next",
                "length_normalized": True,
                "clip": 0.2,
                "importance": "per_token",
            },
            supervised={"weight": 1.0, "divergence": "forward_kl", "ce_weight": 0.5},
            own_means=True,
        ),
        "MiniLLM: Gu, Dong, Wei and Huang 2024, arXiv:2306.08543. Reverse KL of whole answers: the exact term of each "
        "token, the return of later ones divided by their number, text from 0.2 teacher and 0.8 student with weights "
        "per token, PPO's clip 0.2 over 4 inner epochs, and a supervised loss, here on the recipe's rows where the "
        "paper has pre-training text. The official code's discount of 0.95, reward scale, whitening and doubled "
        f"first reward are deviations from the paper and off. {COLD}",
    ),
    "distillm": Method(
        _on_policy(
            {"on_policy_fraction": 0.0, "adaptive": 0.1, "replay": 1000, "refresh": "falling"},
            divergence={"skew_kl": {"alpha": 0.1}},
        ),
        "DistiLLM: Ko et al. 2024, arXiv:2402.03898. Skew KL with α = 0.1; the share of the student's text rises by "
        "0.1 whenever the cross-entropy on validation rows does, and comes from a buffer of 1000 that is written anew ever more "
        f"rarely. The paper's loss on plain text is left out. {COLD}",
    ),
    "distillm2": Method(
        (
            {"generate": {"sampling_temperature": 0.8}},
            *_on_policy(
                {"sampling_temperature": 0.8, "keep_rows": True},
                divergence={"skew_reverse_kl": {"alpha": 0.1}},
                supervised={"weight": 1.0, "divergence": {"skew_kl": {"alpha": 0.1}}},
                own_means=True,
                normalize="sequence_mean",
            )[1:],
        ),
        "DistiLLM-2: Ko et al. 2025, arXiv:2503.07067. Contrastive pairs: skew KL on the teacher's answer, skew "
        "reverse KL on the student's own to the same prompt, both drawn at temperature 0.8. The paper writes the "
        "student's once an epoch, here in every step; its α that moves with the models' gap stands at 0.1, and so does the weight of the "
        "skew reverse KL, which grows over the training there, at 1. An answer's loss is the mean over its tokens. "
        f"{COLD}",
    ),
    "opd": Method(
        _on_policy(
            {"on_policy_fraction": 1.0},
            divergence="reverse_kl",
            divergence_weight=0.0,
            policy_gradient={"discount": 0.0, "counts_from": "this"},
        ),
        "On-policy distillation: Lu and Thinking Machines 2025. The advantage of a drawn token is log p - log q of "
        "itself alone, coefficient 1, discount 0; the published runs train a LoRA of rank 32. The same divergence "
        "over the whole vocabulary (divergence: reverse_kl without policy_gradient) has a fifth of the noise where "
        f"the teacher's weights are at hand. {COLD}",
    ),
    "speculative_kd": Method(
        _on_policy({"proposals": 25}, divergence="forward_kl"),
        "Speculative knowledge distillation: Xu et al. 2025, arXiv:2410.11325. The student proposes each token; one "
        "that is not among the teacher's 25 likeliest is drawn from the teacher instead, and forward KL is taken on "
        f"the mixed text. The paper proposes blocks of five tokens, here one at a time. {COLD}",
    ),
    "self_distill": Method(
        (
            {
                "distill": {
                    "strategy": {"on_policy": {"on_policy_fraction": 1.0}},
                    "divergence": "reverse_kl",
                    "self_teacher": {"rate": 0.01},
                    "privileged": {},
                }
            },
            "evaluate",
        ),
        "Self-distillation fine-tuning (SDFT): Shenfeld et al. 2026, arXiv:2601.19897. The student answers; a moving "
        "average of the student that also reads the row's own answer as an example says how likely each token is, and "
        "the student, which reads the prompt alone, follows by reverse KL over the whole vocabulary. Average and "
        "wording are those of the official code, whose loss is forward KL where the paper has reverse KL. Rows need "
        "answers; teacher and student are usually the same model, which is then what the result is compared with. No "
        "warm-up: a model that cannot use an example in its prompt has nothing to teach itself.",
    ),
}


def method_for(teacher: object) -> str | None:
    """The method of a recipe that names none: one that needs text alone where its teacher, as it is written or as
    it was read, gives nothing else."""
    name = getattr(teacher, "name", None)
    if isinstance(teacher, Mapping):
        (first, *others) = teacher or [""]
        name = plugins.requiring("teachers", teacher) or (None if others else first)
    known = plugins.plugins("teachers")
    return "seqkd" if name in known and known[name].constants.get("PROVIDES") == {"text"} else None


def stages_of(method: object) -> list[Any]:
    """The stages of a method as a recipe writes them; those of `kd` for None or an unknown name."""
    return copy.deepcopy(list(METHODS.get(str(method), METHODS["kd"]).stages))
