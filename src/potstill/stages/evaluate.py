"""evaluate: how much of the teacher arrived, on held-out rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from potstill.recipe.defaults import Automatic, Facts
from potstill.recipe.specs import LARGEST, Auto, Conflict, Count, MetricChoice, whole
from potstill.recipe.stages import StageName, StageSpec

if TYPE_CHECKING:
    from potstill.stages._context import Context, State
    from potstill.store.artifacts import Artifact


class Evaluate(StageSpec):
    """How much of the teacher arrived, on held-out rows."""

    measures: ClassVar[bool] = True

    verb: Literal["evaluate"] = "evaluate"
    name: StageName = "evaluate"
    metrics: Annotated[tuple[MetricChoice, ...], Field(strict=False, min_length=1)] = (
        MetricChoice(name="likelihood"),
        MetricChoice(name="agreement"),
        MetricChoice(name="rouge_l"),
    )
    """What to measure."""
    max_new_tokens: Count | Auto = "auto"
    """Most tokens in an answer that is compared as text."""
    samples: Count | Auto = "auto"
    """Held-out prompts that are answered in text."""
    resamples: Annotated[int, Field(ge=100, le=LARGEST), BeforeValidator(whole)] = 2000
    """Draws of the bootstrap behind each interval."""

    def conflicts(self) -> Iterator[Conflict]:
        names = [metric.name for metric in self.metrics]
        if len(set(names)) < len(names):
            yield Conflict("metrics", "names a metric twice.", "Name each once.")

    def automatic(self, facts: Facts) -> dict[str, Automatic]:
        chosen: dict[str, Automatic] = {}
        if self.max_new_tokens == "auto" and facts.answer_tokens is not None:
            chosen["max_new_tokens"] = facts.answer_tokens, "as many as the teacher may write"
        elif self.max_new_tokens == "auto":
            half = min(128, max(1, facts.context // 2))
            chosen["max_new_tokens"] = half, "as long as generated answers are"
        if self.samples == "auto":
            chosen["samples"] = (500 if facts.accelerated else 60), f"chosen for {facts.machine}"
        return chosen


def run(spec: Evaluate, state: State, context: Context) -> State:
    """Measure the untrained student, what lies between stages, the trained student and its control."""
    from potstill.stages import _captured, _evaluation, _questions, _rows, _student

    state = _student.with_student(state, context)
    as_written, (spec, defaults) = spec, context.settle(spec, state)
    questions, new_tokens = _evaluation.asked(as_written, spec, state, context)
    job = _evaluation.Job(
        name=spec.name,
        choices=spec.metrics,
        resamples=spec.resamples,
        students=_students(state),
        examples=_rows.heldout(state, context),
        questions=questions,
        max_new_tokens=new_tokens,
        context=context,
        against=_captured.measuring(state, context),
    )
    if lacking := _questions.without_answer(state, context):
        context.console.warn(f"{spec.name}: {_without_answer(lacking, context)}")
    evaluation = _evaluation.evaluate(job)
    return state.after(spec, evaluation, defaults, evaluation=evaluation)


def _without_answer(lacking: Mapping[str, str], context: Context) -> str:
    """What becomes of held-out rows to which the teacher has no answer."""
    counts = Counter(reason.partition(" (")[0] for reason in lacking.values())
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items())
    what = (
        "they are not measured"
        if context.setup.task is None
        else "they count as invalid answers of the teacher"
    )
    return (
        f"the teacher has no answer to {len(lacking)} of {len(context.setup.data.heldout)} held-out rows "
        f"({reasons}); {what}"
    )


def _students(state: State) -> dict[str, Artifact]:
    """The students to measure, by role."""
    assert state.untrained is not None
    assert state.student is not None
    students = {"before": state.untrained}
    # With two stages, what lies between them too: each is shown by what was before and after it.
    students |= {f"after {name}": state.artifacts[name] for name in state.trained[:-1]}
    if state.student is not state.untrained:
        students["after"] = state.student
    if state.control is not None:
        students["control"] = state.control
    return students
