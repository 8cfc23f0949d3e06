"""generate: the teacher writes an answer to every prompt; each is on disk as soon as it is finished."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from potstill.recipe import filters
from potstill.recipe.defaults import Automatic, Facts
from potstill.recipe.specs import (
    Auto,
    Conflict,
    Count,
    EngineChoice,
    FilterChoice,
    Int,
    VerifierChoice,
)
from potstill.recipe.stages import StageName, StageSpec

if TYPE_CHECKING:
    from potstill.stages._context import Context, State


class Generate(StageSpec):
    """The teacher writes answers to the training prompts."""

    needs: ClassVar[frozenset[str]] = frozenset({"text"})

    verb: Literal["generate"] = "generate"
    name: StageName = "generate"
    engine: EngineChoice | Auto = "auto"
    """What runs the teacher: local, vllm and ray load its weights, openai and batch ask its endpoint."""
    max_new_tokens: Count = 128
    """Most tokens in an answer."""
    sampling_temperature: Annotated[float, Field(ge=0)] = 0.7
    """0 is greedy: always the likeliest token."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Draw from the likeliest tokens that hold this much probability; 1 is off."""
    top_k: Int = 0
    """Draw from so many likeliest tokens; 0 is off."""
    batch_rows: Count | Auto = "auto"
    """Answers written side by side; of a served teacher, most requests in flight at once."""
    samples: Count = 1
    """Answers per prompt."""
    keep: Literal["hidden", "topk"] | None = None
    """Keep what tokens were drawn from. hidden: the final hidden states; topk: the likeliest ids at temperature 1 with the
    mass of the others. A capture behind this stage then asks the teacher nothing about its own answers; sums are in
    another order than those of a pass over the whole row. A served teacher states topk alone, and distill trains by it
    without asking."""

    filters: Annotated[tuple[FilterChoice, ...], Field(strict=False)] | None = ()
    """Changes to what an answer must not be, to be trained on: those that work by themselves work unless they are named
    with `action: ignore`; null turns all off. Other filters never ask the teacher again."""
    verifier: VerifierChoice | None = None
    """Who says whether an answer is right; wrong ones are not trained on (rejection sampling)."""
    keep_answers: Literal["first", "best", "all"] = "first"
    """Which right answers to a prompt are trained on."""
    right_from: Annotated[float, Field(gt=0, le=1)] = 0.5
    """The verifier's score from which on an answer is right."""

    def conflicts(self) -> Iterator[Conflict]:
        engine = "local" if self.engine == "auto" else self.engine.name
        if (self.keep == "hidden" and engine != "local") or (self.keep and engine == "ray"):
            able = "the local engine" + (", vllm and endpoints" if self.keep == "topk" else "")
            yield Conflict("keep", f"works with {able}.", "Leave one of the two out.")
        if self.keep and self.engine != "auto" and self.engine.options.get("quantization"):
            what = "has no effect on what is kept as the teacher's: quantised weights are another teacher"
            yield Conflict("keep", f"{what}.", "Leave quantization or keep out.")
        yield from filters.conflicts(self.filters)
        if self.verifier is None:
            for key in ("keep_answers", "right_from"):
                if self.changed(key):
                    yield Conflict(
                        key, "has no effect without a verifier.", "Name one, such as verifier: numeric."
                    )
        if self.sampling_temperature > 0:
            return
        why = "because sampling_temperature 0 is greedy"
        fix = "Raise sampling_temperature, or leave this out."
        if self.samples > 1:
            yield Conflict("samples", f"{self.samples} answers would be the same text, {why}.", fix)
        for key in ("top_p", "top_k"):
            if self.changed(key):
                yield Conflict(key, f"has no effect, {why}.", fix)

    def notes(self) -> Iterator[str]:
        yield f"{self.name}: filters: {filters.in_words(filters.at_work(self.filters))}."
        if self.verifier is not None:
            which = {"first": "the first right answer", "best": "the right answer of the highest score"}
            kept = which.get(self.keep_answers, "every right answer")
            yield f"{self.name}: of {self.samples} answers to a prompt, {kept} by {self.verifier.name} is kept."

    def automatic(self, facts: Facts) -> dict[str, Automatic]:
        chosen: dict[str, Automatic] = {}
        if self.engine == "auto":
            reasons = {"local": "the teacher's weights are here", "cached": "the teacher's answers are here"}
            why = reasons.get(facts.engine, "the teacher is served")
            chosen["engine"] = EngineChoice(name=facts.engine), why
        if self.batch_rows != "auto":
            return chosen
        if facts.engine == "cached":
            return chosen | {"batch_rows": (1, "nothing is computed")}
        if facts.engine != "local":
            return chosen | {"batch_rows": (32, "usual for an endpoint; it is halved where that is too many")}
        usual = 128 if facts.accelerated else 32
        rows = usual if facts.rows is None else max(1, min(usual, facts.rows * self.samples))
        return chosen | {"batch_rows": (rows, f"chosen for {facts.machine}; small batches leave it waiting")}


def run(spec: Generate, state: State, context: Context) -> State:
    """Write an answer, or several, to every prompt."""
    from potstill.generate.sampling import Sampling
    from potstill.stages import _alternatives, _asking, _filtering, _generation, _judging, _rows

    spec, defaults = context.settle(spec, state)
    prompts, left_out = _rows.prompts(context, spec.max_new_tokens, spec.samples)
    assert spec.batch_rows != "auto"
    assert spec.engine != "auto"
    sampling = Sampling(spec.max_new_tokens, spec.sampling_temperature, spec.top_p, spec.top_k)
    local = context.setup.readers.teacher is not None
    # Beside answers that were captured stands what was kept of them.
    keep = None if spec.engine.name == "cached" else spec.keep
    parts = (spec.name, spec.engine, prompts, sampling, spec.batch_rows, context)
    if local:
        written = _generation.write_answers(*parts, keep=keep)
    else:
        judge = _judging.judge_of(spec, context)
        written = _asking.ask(*parts, judge=judge, keep=spec.keep == "topk")
    answers = _filtering.filtered(spec, written, context)
    left_out = {**left_out, **answers.facts.get("left_out", {})}
    most = max(spec.max_new_tokens, spec.engine.options.get("retry_truncated") or 0)
    # What was captured before is of other text.
    state = state.after(
        spec,
        answers,
        defaults,
        answers=answers,
        written=written,
        answer_tokens=most,
        left_out=left_out,
        captured=None,
    )
    if local or spec.keep != "topk":
        return state
    return replace(state, captured=_alternatives.signals_of(spec.name, state, context))
