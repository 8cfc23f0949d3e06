"""The options that every training stage has, and what they become where they are `auto`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import BeforeValidator, Field

from potstill.recipe.defaults import Automatic, Facts
from potstill.recipe.specs import Auto, Conflict, Count, Duration, Positive
from potstill.recipe.stages import StageSpec

# A training that ran out of memory goes on with other micro-batches and more checkpoints.
# The number of validation rows is left out because the rows themselves are in the key.
_PLACE_AND_PACE = {
    "micro_batch_tokens", "checkpoint_every", "activation_checkpointing", "epochs", "steps", "validation_rows",
}  # fmt: skip
# Options that came later, at the value that stands for how it was: what older runs have trained is found again.
_AS_BEFORE = {"freeze_head": False}
# Cost is counted in tokens through both models. A token that is trained on costs three passes of the student
# and one of the teacher, a validated one a pass of each: as much at most, and a third of it without a teacher.
COST_SHARE = 0.05
VALIDATIONS = 6
LEAST_ROWS, MOST_ROWS = 16, 200  # a longer pause between validations is better than fewer rows
_AUTO_IS_NONE = BeforeValidator(
    lambda value: None if value == "auto" else value, json_schema_input_type=Positive | Auto | None
)
_Average: TypeAlias = Annotated[float, Field(ge=0, lt=1)]


class Training(StageSpec):
    """The options that every training stage has."""

    trains: ClassVar[bool] = True

    verb: str = "train"
    name: str = "train"
    epochs: Annotated[Annotated[float, Field(gt=0, le=1_000_000)] | None, _AUTO_IS_NONE] = None
    """Passes over the data. With neither epochs nor steps: by the size of the data."""
    steps: Count | None = None
    """Optimizer steps."""
    learning_rate: Positive | Auto = "auto"
    """The highest learning rate of the schedule."""
    tokens_per_step: Count | Auto = "auto"
    """Scored tokens in one optimizer step."""
    micro_batch_tokens: Count | Auto = "auto"
    """Most tokens, padding included, in one forward pass; changes memory and speed, not the result."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.03
    """Share of the steps in which the learning rate rises."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decay of matrices; vectors (norms, biases) do not decay."""
    betas: Annotated[tuple[_Average, _Average], Field(strict=False)] = (0.9, 0.95)
    """AdamW's two averages."""
    max_grad_norm: Positive | None = 1.0
    """Longest gradient; null does not clip."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the forward pass; master weights stay float32."""
    validate_every: Count | Auto = "auto"
    """Steps between two validations on rows that are not trained on; there is one before the first step and
    one behind the last too."""
    validation_rows: Count | Auto = "auto"
    """Most rows of a validation; auto keeps all validations together below 5 % of the training's cost."""
    best_by: str = "loss"
    """Which validation figure decides what the best weights are: the stage's own loss, or another."""
    patience: Count | None = None
    """Stop after so many validations without a better one."""
    checkpoint_every: Count | Duration | Auto = "auto"
    """Steps between two checkpoints, or the time: `10m`. A stop makes one too."""
    packing: bool = False
    """Lay the rows of a micro-batch end to end instead of padding them; that the models keep them apart is
    proven before the first step."""
    activation_checkpointing: bool = False
    """Compute activations twice to save memory."""
    export_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the student's file; auto is its teacher's. Weights are rounded once, behind the training:
    evaluations, and a later stage that goes on from this student, read the rounded ones."""
    freeze_head: bool = False
    """Leave the output layer as it is, and the input embeddings where both are one matrix."""
    normalize: Literal["tokens", "sequence_mean"] = "tokens"
    """Every token counts the same, or every row does (GKD's paper)."""

    def conflicts(self) -> Iterator[Conflict]:
        if self.epochs is not None and self.steps is not None:
            message = "epochs is given too, and both say how long to train."
            yield Conflict("steps", message, "Remove one of the two.")

    @property
    def passes(self) -> int:
        """How often the rows of a step are trained on."""
        return 1

    @property
    def copies(self) -> int:
        """How many further copies of the student it keeps in memory."""
        return 0

    def identity(self) -> dict[str, Any]:
        """What changes a step, for an artifact's key; micro-batches and the pace of checkpoints do not."""
        shared = set(Training.model_fields) - set(StageSpec.model_fields)
        as_before = {name for name, value in _AS_BEFORE.items() if getattr(self, name) == value}
        return self.model_dump(mode="json", include=shared - _PLACE_AND_PACE - as_before)

    def automatic(self, facts: Facts) -> dict[str, Automatic]:
        chosen = dict[str, Automatic]()
        if self.epochs is None and self.steps is None:
            chosen["epochs"] = _epochs(facts.train_tokens)
        per_step, width, steps = self.length(facts)
        why = f"chosen for {facts.machine}; does not change the result"
        values = {
            "learning_rate": self.default_learning_rate(facts),
            "tokens_per_step": per_step,
            "micro_batch_tokens": (_micro_batch_tokens(facts), why),
            "precision": _precision(facts),
            "checkpoint_every": ("5m", "so much work at most is done again; a stop saves too"),
            "export_dtype": _export(facts),
            **self._validations(steps, width, facts),
        }
        return chosen | {key: value for key, value in values.items() if getattr(self, key) == "auto"}

    def length(self, facts: Facts) -> tuple[Automatic, int, int | None]:
        """What `tokens_per_step: auto` becomes, the tokens of a step as it is, and the steps; None is not known."""
        epochs = self.epochs
        if epochs is None and self.steps is None:
            epochs, _ = _epochs(facts.train_tokens)
        total = None if epochs is None or facts.train_tokens is None else int(facts.train_tokens * epochs)
        per_step = _tokens_per_step(total, facts)
        width = per_step[0] if self.tokens_per_step == "auto" else self.tokens_per_step
        assert isinstance(width, int)
        steps = self.steps or (None if total is None else max(1, self.passes * math.ceil(total / width)))
        return per_step, width, steps

    def _validations(self, steps: int | None, width: int, facts: Facts) -> dict[str, Automatic]:
        """How often and on how many rows to validate, so that it costs a small share of the training."""
        available, usual = facts.validation_rows, _every(steps, VALIDATIONS, "validations")
        if not (steps and available and facts.train_tokens and facts.row_tokens and facts.validation_tokens):
            every_row = MOST_ROWS, "all that are kept for it; the sizes of the rows are not known"
            return {"validate_every": usual, "validation_rows": every_row}
        passes = 1 if "distribution" in self.needs else 3
        trained_on = facts.row_tokens * steps * width / facts.train_tokens
        budget = passes * COST_SHARE * trained_on * available / facts.validation_tokens  # in rows

        def affordable(every: int) -> int:
            return max(1, min(available, int(budget / (1 + math.ceil(steps / every)))))

        if self.validate_every != "auto":
            every = self.validate_every
        else:
            wanted = min(LEAST_ROWS, available)
            if self.validation_rows != "auto":
                wanted = min(self.validation_rows, available)
            paces = [math.ceil(steps / times) for times in range(VALIDATIONS, 0, -1)]
            every = next((pace for pace in paces if affordable(pace) >= wanted), steps)
        rows, count = affordable(every), 1 + math.ceil(steps / every)
        if self.validation_rows != "auto":
            rows = min(self.validation_rows, available)
        why = f"at most {COST_SHARE * rows * count / budget:.1%} of the training's cost"
        return {
            "validate_every": (
                every,
                f"{count} validations in {steps} steps, with the one before them; {why}",
            ),
            "validation_rows": (rows, f"of {available} that are kept for it, {count} times; {why}"),
        }

    def default_learning_rate(self, facts: Facts) -> Automatic:
        """What `learning_rate: auto` becomes."""
        if facts.student_kind == "adapter":
            return 1e-4, "adapters take about ten times the learning rate of full training"
        if facts.student_kind == "cut":
            return 5e-4, (
                "a freshly cut student is far from any optimum; 5e-4 healed SmolLM2-135M cut from 30 to 20 "
                "layers, held-out KL 3.15 to 0.46 nats in 42 thousand tokens of grade-school mathematics "
                "(NOTES.md)"
            )
        if facts.parameters is not None and facts.parameters < 1_000_000_000:
            return 1e-4, "chosen for full training of a student below one billion parameters"
        return 1e-5, (
            "usual for full training of a student of one billion parameters or more, or of unknown size"
        )


def _tokens_per_step(total: int | None, facts: Facts) -> Automatic:
    usual = 32768 if facts.accelerated else 256
    if total is None or total // 50 >= usual:
        return usual, f"usual on {facts.machine}"
    tokens = max(128, total // 50)
    return tokens, f"{total} scored tokens in all: about 50 steps, and no step below 128 tokens"


def _epochs(train_tokens: int | None) -> tuple[float, str]:
    if train_tokens is None:
        return 1.0, "the size of the data is not known"
    for limit, epochs in ((50_000, 3.0), (5_000_000, 2.0)):
        if train_tokens < limit:
            return epochs, f"{train_tokens} scored tokens, fewer than {limit}"
    return 1.0, f"{train_tokens} scored tokens are enough for one pass"


def _micro_batch_tokens(facts: Facts) -> int:
    """As many padded tokens as keep the products fast: bf16 units want higher ones."""
    if facts.accelerated:
        return 16384
    return 768 if facts.bf16 else 384


def _precision(facts: Facts) -> Automatic:
    if facts.bf16 and facts.device != "mps":
        return "bfloat16", f"fast on this {facts.device} device, with the range of float32"
    if facts.device == "cuda" and facts.fp16:
        return "float16", "this GPU has no fast bfloat16; gradients are scaled against underflow"
    return "float32", f"this {facts.device} device has no fast half precision that is safe to train in"


def _export(facts: Facts) -> Automatic:
    if facts.teacher_format is None:
        return "float32", "the number format of the teacher's weights is not known, so nothing is rounded"
    return facts.teacher_format, "as the teacher's weights are; validation chose the weights before rounding"


def _every(steps: int | None, times: int, what: str) -> Automatic:
    if steps is None:
        return 100, "the number of steps is not known"
    return max(1, round(steps / times)), f"about {times} {what} in {steps} steps"
