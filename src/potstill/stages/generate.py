"""generate: the teacher writes an answer to every prompt; each is on disk as soon as it is finished."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from potstill.recipe.defaults import Automatic, Facts
from potstill.recipe.specs import Auto, Conflict, Count, EngineChoice, Int
from potstill.recipe.stages import StageName, StageSpec

if TYPE_CHECKING:
    from potstill.stages._context import Context, State


class Generate(StageSpec):
    """The teacher writes answers to the training prompts."""

    needs: ClassVar[frozenset[str]] = frozenset({"text"})

    verb: Literal["generate"] = "generate"
    name: StageName = "generate"
    engine: EngineChoice | Auto = "auto"
    """What runs the teacher: local loads its weights into this process, openai asks its endpoint."""
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

    def automatic(self, facts: Facts) -> dict[str, Automatic]:
        chosen: dict[str, Automatic] = {}
        if self.engine == "auto":
            why = "the teacher's weights are here" if facts.engine == "local" else "the teacher is served"
            chosen["engine"] = EngineChoice(name=facts.engine), why
        if self.batch_rows != "auto":
            return chosen
        if facts.engine != "local":
            return chosen | {"batch_rows": (32, "usual for an endpoint; it is halved where that is too many")}
        usual = 128 if facts.accelerated else 32
        rows = usual if facts.rows is None else max(1, min(usual, facts.rows * self.samples))
        return chosen | {"batch_rows": (rows, f"chosen for {facts.machine}; small batches leave it waiting")}


def run(spec: Generate, state: State, context: Context) -> State:
    """Write an answer, or several, to every prompt."""
    from potstill.generate.sampling import Sampling
    from potstill.stages import _asking, _generation, _rows

    spec, defaults = context.settle(spec, state)
    prompts, left_out = _rows.prompts(context, spec.max_new_tokens, spec.samples)
    assert spec.batch_rows != "auto"
    assert spec.engine != "auto"
    sampling = Sampling(spec.max_new_tokens, spec.sampling_temperature, spec.top_p, spec.top_k)
    write = _generation.write_answers if context.setup.readers.teacher is not None else _asking.ask
    answers = write(spec.name, spec.engine, prompts, sampling, spec.batch_rows, context)
    left_out = {**left_out, **answers.facts.get("left_out", {})}
    return state.after(
        spec, answers, defaults, answers=answers, answer_tokens=spec.max_new_tokens, left_out=left_out
    )
