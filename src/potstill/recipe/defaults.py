"""What a recipe leaves open: the stages behind a method, and the values behind `auto`.

Pure functions of the recipe and of what is known about machine, data and student.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from potstill.recipe.specs import Divergence
from potstill.recipe.stages import Control, Distill, Evaluate, Finetune, Generate, StageSpec, Training

if TYPE_CHECKING:
    from potstill.recipe.recipe import Recipe

AnyStage = TypeVar("AnyStage", bound=StageSpec)


@dataclass(frozen=True)
class Method:
    """Stages of a published method, and where it is published."""

    stages: tuple[StageSpec, ...]
    source: str


METHODS: Mapping[str, Method] = {
    "kd": Method(
        (Generate(), Distill(divergence=Divergence(name="forward_kl")), Evaluate()),
        "Word-level distillation: Hinton, Vinyals and Dean 2015, arXiv:1503.02531; for sequences Kim and "
        "Rush 2016, arXiv:1606.07947. Forward KL at every token, here without a hard-label term and on text "
        "that the teacher wrote.",
    ),
    "seqkd": Method(
        (Generate(), Finetune(), Evaluate()),
        "Sequence-level distillation: Kim and Rush 2016, arXiv:1606.07947. The student is trained on the "
        "teacher's text alone; the paper writes it by beam search, here it is sampled.",
    ),
    "sft": Method(
        (Finetune(), Evaluate()),
        "Supervised fine-tuning on the data's own answers, without a teacher: the baseline that papers on "
        "distillation compare with.",
    ),
}
_DEFAULT = METHODS["kd"].stages


def stages_of(method: object) -> tuple[StageSpec, ...]:
    """The stages of a method; of the default pipeline for None or an unknown name."""
    return METHODS[method].stages if isinstance(method, str) and method in METHODS else _DEFAULT


def expand(recipe: Recipe) -> Recipe:
    """The recipe with its stages written out and no method; a recipe with stages is returned as it is."""
    if recipe.stages:
        return recipe
    return recipe.model_copy(update={"stages": stages_of(recipe.method), "method": None})


@dataclass(frozen=True)
class Facts:
    """What `auto` may depend on. None is unknown."""

    device: Literal["cpu", "cuda", "mps"]
    bf16: bool = False  # bfloat16 arithmetic is fast here
    fp16: bool = False  # float16 arithmetic is fast here
    student_kind: Literal["full", "cut", "adapter"] = "full"  # cut: fresh from the teacher, not yet healed
    parameters: int | None = None  # the student's
    rows: int | None = None  # training prompts
    train_tokens: int | None = None  # scored tokens in an epoch
    answer_tokens: int | None = None  # most tokens that an earlier stage may write
    context: int = 2048  # tokens

    @property
    def accelerated(self) -> bool:
        """Whether a GPU does the work."""
        return self.device != "cpu"


@dataclass(frozen=True)
class Default:
    """A value that `auto` became, where it stands, and why."""

    path: str
    value: object
    source: str


Choice = tuple[object, str]


def resolve_auto(stage: AnyStage, facts: Facts) -> tuple[AnyStage, tuple[Default, ...]]:
    """The stage with every `auto` replaced, and what each became. What the recipe says stays."""
    chosen: dict[str, Choice] = {}
    if isinstance(stage, Training):
        chosen = _training(stage, facts)
    elif isinstance(stage, Generate) and stage.batch_rows == "auto":
        usual = 128 if facts.accelerated else 32
        rows = usual if facts.rows is None else max(1, min(usual, facts.rows * stage.samples))
        chosen = {"batch_rows": (rows, f"chosen for {_machine(facts)}; small batches leave it waiting")}
    elif isinstance(stage, Evaluate):
        chosen = _evaluation(stage, facts)
    defaults = tuple(
        Default(f"stages.{stage.name}.{key}", value, source) for key, (value, source) in chosen.items()
    )
    return stage.model_copy(update={key: value for key, (value, _) in chosen.items()}), defaults


def twin_of(
    control: Control, stages: Sequence[StageSpec], settled: Mapping[str, Training]
) -> tuple[Control, tuple[Default, ...]]:
    """A control with what it leaves open as its twin has it; `settled` holds the stages before it."""
    name = control.of(stages)
    if name not in settled:
        return control, ()
    why = "what a control leaves open is as its twin has it, so that both have one budget"
    twin = settled[name]
    written = next(stage for stage in stages if stage.name == name)
    if getattr(written, "learning_rate", "auto") == "auto":
        # What suits a distribution, or the student's own text, need not suit plain text.
        twin = twin.model_copy(update={"learning_rate": "auto"})
    return control.like(twin), (Default(f"stages.{control.name}", f"as {name}", why),)


def _training(stage: Training, facts: Facts) -> dict[str, Choice]:
    chosen: dict[str, Choice] = {}

    def settle(key: str, choice: Choice) -> None:
        if getattr(stage, key, None) == "auto":
            chosen[key] = choice

    epochs = stage.epochs
    if stage.epochs is None and stage.steps is None:
        epochs, why = _epochs(facts.train_tokens)
        chosen["epochs"] = epochs, why
    total = None if epochs is None or facts.train_tokens is None else int(facts.train_tokens * epochs)
    settle("learning_rate", _learning_rate(stage, facts))
    settle("tokens_per_step", _tokens_per_step(total, facts))
    per_step = chosen["tokens_per_step"][0] if "tokens_per_step" in chosen else stage.tokens_per_step
    assert isinstance(per_step, int)
    steps = stage.steps or (None if total is None else max(1, math.ceil(total / per_step)))
    settle(
        "micro_batch_tokens",
        (16384 if facts.accelerated else 384, f"chosen for {_machine(facts)}; does not change the result"),
    )
    settle("precision", _precision(facts))
    settle("validate_every", _every(steps, 6, "validations"))
    settle("checkpoint_every", _every(steps, 10, "checkpoints"))
    settle("chunk_bytes", (96 * 2**20, "chosen; logits of a whole batch never exist"))
    return chosen


def _learning_rate(stage: Training, facts: Facts) -> Choice:
    if isinstance(stage, Distill) and stage.strategy.name == "on_policy":
        return 5e-6, "on-policy distillation is stable at 1e-6 to 5e-6; its text changes with every step"
    if facts.student_kind == "adapter":
        return 1e-4, "adapters take about ten times the learning rate of full training"
    if facts.student_kind == "cut":
        return 5e-4, (
            "a freshly cut student is far from any optimum; 5e-4 healed SmolLM2-135M cut from 30 to 20 "
            "layers, held-out KL 3.15 to 0.46 nats in 42 thousand tokens of grade-school mathematics (NOTES.md)"
        )
    if facts.parameters is not None and facts.parameters < 1_000_000_000:
        return 1e-4, "chosen for full training of a student below one billion parameters"
    return 1e-5, "usual for full training of a student of one billion parameters or more, or of unknown size"


def _tokens_per_step(total: int | None, facts: Facts) -> Choice:
    usual = 32768 if facts.accelerated else 256
    if total is None or total // 50 >= usual:
        return usual, f"usual on {_machine(facts)}"
    return max(
        128, total // 50
    ), f"{total} scored tokens in all: about 50 steps, and no step below 128 tokens"


def _epochs(train_tokens: int | None) -> tuple[float, str]:
    if train_tokens is None:
        return 1.0, "the size of the data is not known"
    for limit, epochs in ((50_000, 3.0), (5_000_000, 2.0)):
        if train_tokens < limit:
            return epochs, f"{train_tokens} scored tokens, fewer than {limit}"
    return 1.0, f"{train_tokens} scored tokens are enough for one pass"


def _precision(facts: Facts) -> Choice:
    if facts.bf16 and facts.device != "mps":
        return "bfloat16", f"fast on this {facts.device} device, with the range of float32"
    if facts.device == "cuda" and facts.fp16:
        return "float16", "this GPU has no fast bfloat16; gradients are scaled against underflow"
    return "float32", f"this {facts.device} device has no fast half precision that is safe to train in"


def _every(steps: int | None, times: int, what: str) -> Choice:
    if steps is None:
        return 100, "the number of steps is not known"
    return max(1, round(steps / times)), f"about {times} {what} in {steps} steps"


def _evaluation(stage: Evaluate, facts: Facts) -> dict[str, Choice]:
    chosen: dict[str, Choice] = {}
    if stage.max_new_tokens == "auto" and facts.answer_tokens is not None:
        chosen["max_new_tokens"] = facts.answer_tokens, "as many as the teacher may write"
    elif stage.max_new_tokens == "auto":
        chosen["max_new_tokens"] = min(128, max(1, facts.context // 2)), "as long as generated answers are"
    if stage.samples == "auto":
        chosen["samples"] = (500 if facts.accelerated else 60), f"chosen for {_machine(facts)}"
    return chosen


def _machine(facts: Facts) -> str:
    return "a GPU" if facts.accelerated else "a CPU"
