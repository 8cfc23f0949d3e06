"""The stages of a recipe, one model a verb. `auto` values are resolved in `presets`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from potstill.recipe.specs import (
    Auto,
    Conflict,
    Count,
    Divergence,
    Files,
    Format,
    Int,
    Positive,
    Schedule,
    Share,
    Spec,
    Strategy,
    Text,
    TokenWeights,
    ends,
)

# No dots: an override reaches a stage by `name.key`.
StageName: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]


class StageSpec(Spec):
    """What all stages have."""

    verb: str
    name: StageName
    """How overrides, folders and reports call this stage; the verb when not given."""


class Generate(StageSpec):
    """The teacher writes answers to the training prompts."""

    verb: Literal["generate"] = "generate"
    name: StageName = "generate"
    max_new_tokens: Count = 128
    """Most tokens in an answer."""
    sampling_temperature: Annotated[float, Field(ge=0)] = 0.7
    """0 is greedy: always the likeliest token."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Draw from the likeliest tokens that hold this much probability; 1 is off."""
    top_k: Int = 0
    """Draw from so many likeliest tokens; 0 is off."""
    batch_rows: Count | Auto = "auto"
    """Answers written side by side."""
    samples: Count = 1
    """Answers per prompt."""

    def conflicts(self) -> Iterator[Conflict]:
        if self.sampling_temperature > 0:
            return
        why = "because sampling_temperature 0 is greedy"
        fix = "Raise sampling_temperature, or leave this out."
        if self.samples > 1:
            yield Conflict("samples", f"{self.samples} answers would be the same text, {why}.", fix)
        for key in ("top_p", "top_k"):
            if self.changed(key):
                yield Conflict(key, f"has no effect, {why}.", fix)


class Training(StageSpec):
    """What all training stages have."""

    epochs: Annotated[
        Positive | None,
        BeforeValidator(
            lambda value: None if value == "auto" else value, json_schema_input_type=Positive | Auto | None
        ),
    ] = None
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
    betas: Annotated[
        tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]], Field(strict=False)
    ] = (0.9, 0.95)
    """AdamW's two averages."""
    max_grad_norm: Positive | None = 1.0
    """Longest gradient; null does not clip."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the forward pass; master weights stay float32."""
    validate_every: Count | Auto = "auto"
    """Steps between two validations on held-out rows."""
    best_by: Literal["loss", "cross_entropy"] = "loss"
    """Which validation figure decides what the best weights are: the stage's own loss, or another."""
    patience: Count | None = None
    """Stop after so many validations without a better one."""
    checkpoint_every: Count | Auto = "auto"
    """Steps between two checkpoints."""
    packing: bool = False
    """Lay the rows of a micro-batch end to end instead of padding them; that the models keep them apart is
    proven before the first step."""
    activation_checkpointing: bool = False
    """Compute activations twice to save memory."""
    normalize: Literal["tokens", "sequence_mean"] = "tokens"
    """Every token counts the same, or every row does."""

    def conflicts(self) -> Iterator[Conflict]:
        if self.epochs is not None and self.steps is not None:
            yield Conflict(
                "steps", "epochs is given too, and both say how long to train.", "Remove one of the two."
            )


class Distill(Training):
    """The student learns the teacher's distribution, token by token."""

    verb: Literal["distill"] = "distill"
    name: StageName = "distill"
    best_by: Literal["loss", "cross_entropy", "forward_kl"] = "loss"  # type: ignore[assignment]
    """Which validation figure decides what the best weights are: the stage's own loss, or another."""
    divergence: Divergence = Divergence(name="forward_kl")
    """How far the student is from the teacher."""
    strategy: Strategy = Strategy(name="offline")
    """Who writes the text that is trained on."""
    temperature: Positive | Schedule = 1.0
    """Softens both distributions in the divergence; `sampling_temperature` is the one for text."""
    ce_weight: Share | Schedule = 0.0
    """Share of the hard-label term; the divergence has the rest."""
    token_weights: TokenWeights | None = None
    """Which tokens weigh more in the loss; a step divides by the weights' sum."""
    chunk_bytes: Count | Auto = "auto"
    """Memory for the logits that exist at one time, teacher's and student's together."""

    def conflicts(self) -> Iterator[Conflict]:
        yield from super().conflicts()
        if min(ends(self.temperature)) <= 0:
            yield Conflict("temperature", "must stay above 0 at both ends.", "1 changes nothing.")
        if not all(0 <= end <= 1 for end in ends(self.ce_weight)):
            yield Conflict("ce_weight", "must stay between 0 and 1 at both ends.", "It is a share.")
        if self.token_weights is not None and max(ends(self.ce_weight)) == 1:
            yield Conflict(
                "token_weights",
                "cannot work where ce_weight reaches 1: weights come from the teacher's distribution.",
                "Keep ce_weight below 1, or leave this out.",
            )
        if self.strategy.name != "on_policy":
            return
        fraction = self.strategy.options.get("on_policy_fraction", 1.0)
        if fraction == 0:
            yield Conflict(
                "strategy",
                "on_policy with on_policy_fraction 0 never lets the student write.",
                "Write strategy: offline, or raise the fraction.",
            )
        if fraction == 1 and max(ends(self.ce_weight)) > 0:
            yield Conflict(
                "ce_weight",
                "must be 0 with strategy on_policy: the hard-label term would train the student "
                "on its own mistakes.",
                "Set ce_weight: 0, or strategy: offline.",
            )


class Finetune(Training):
    """The student learns from text alone: its own data, or what a generate stage wrote."""

    verb: Literal["finetune"] = "finetune"
    name: StageName = "finetune"
    data: Files | None = None
    """Rows for this stage; without it, the recipe's data with the generated answers."""
    format: Format = "auto"
    """How a row of `data` is written."""
    columns: dict[str, Text] = Field(default_factory=dict)
    """Own column name: the name that the format wants."""
    limit: Count | None = None
    """Use only so many rows of `data`."""

    def conflicts(self) -> Iterator[Conflict]:
        yield from super().conflicts()
        if self.data is None:
            for key in ("format", "columns", "limit"):
                if self.changed(key):
                    yield Conflict(key, "has no effect without data.", "Name the file in data.")


class Control(Training):
    """A twin of the student trained without the teacher's distribution, to show what that adds."""

    verb: Literal["control"] = "control"
    name: StageName = "control"
    method: Literal["sft"] = "sft"
    """How the twin is trained."""

    def of(self, stages: Sequence[StageSpec]) -> str:
        """The stage that it is a twin of: the last distill stage before it, else the last training."""
        before = [s for s in stages[: stages.index(self)] if isinstance(s, Training) and s.verb != "control"]
        on_the_same_rows = [s for s in before if getattr(s, "data", None) is None]
        twins = [s for s in before if isinstance(s, Distill)] or on_the_same_rows
        return twins[-1].name if twins else ""

    def like(self, twin: Training) -> Control:
        """What it leaves at its default as its twin has it; how often to look and save goes with the length."""
        taken = set(Training.model_fields) - set(StageSpec.model_fields) - {"best_by"}
        if self.steps is not None or self.epochs is not None:
            taken -= {"steps", "epochs", "validate_every", "checkpoint_every"}
        return self.model_copy(update={key: getattr(twin, key) for key in taken if not self.changed(key)})


class Evaluate(StageSpec):
    """How much of the teacher arrived, on held-out rows."""

    verb: Literal["evaluate"] = "evaluate"
    name: StageName = "evaluate"
    metrics: Annotated[
        tuple[Literal["likelihood", "agreement", "rouge_l", "speed"], ...],
        Field(strict=False, min_length=1),
    ] = ("likelihood", "agreement", "rouge_l")
    """What to measure."""
    max_new_tokens: Count | Auto = "auto"
    """Most tokens in an answer that is compared as text."""
    samples: Count | Auto = "auto"
    """Held-out prompts that are answered in text."""
    resamples: Annotated[Count, Field(ge=100)] = 2000
    """Draws of the bootstrap behind each interval."""

    def conflicts(self) -> Iterator[Conflict]:
        if len(set(self.metrics)) < len(self.metrics):
            yield Conflict("metrics", "names a metric twice.", "Name each once.")


STAGES: dict[str, type[StageSpec]] = {
    "generate": Generate,
    "distill": Distill,
    "finetune": Finetune,
    "control": Control,
    "evaluate": Evaluate,
}


def read_stage(value: object) -> object:
    """`verb` or `{verb: options}` as one mapping with the key `verb`."""
    if isinstance(value, str):
        return {"verb": value}
    if isinstance(value, dict) and len(value) == 1:
        verb, options = next(iter(value.items()))
        if options is None or (isinstance(options, dict) and "verb" not in options):
            return {"verb": verb, **(options or {})}
    if isinstance(value, StageSpec):
        return value
    raise PydanticCustomError(
        "stage", "must be a verb, or one verb with its options: `- distill: {epochs: 2}`."
    )


def write_stage(stage: StageSpec, **how: Any) -> str | dict[str, Any]:
    """The stage as a recipe writes it."""
    options = stage.model_dump(mode="json", by_alias=True, exclude={"verb"}, **how)
    return {stage.verb: options} if options else stage.verb


Stage: TypeAlias = Annotated[
    Annotated[Generate | Distill | Finetune | Control | Evaluate, Field(discriminator="verb")],
    BeforeValidator(read_stage),
]
