"""A teacher that is the student itself, and what a teacher reads that the student does not."""

from __future__ import annotations

from collections.abc import Iterator

from potstill.recipe.specs import Conflict, Count, Share, Spec, StrategyChoice, Text

PROMPT, SHOWN = "{prompt}", "{shown}"
TEMPLATE = (
    "{prompt}\n\nThis is an example for a response to the question:\n{shown}\n\n"
    "Now answer with a response of your own, including the thinking process."
)


class SelfTeacherSpec(Spec):
    """The student itself is the teacher of this stage: a copy of its weights that follows them (SDFT)."""

    rate: Share = 0.01
    """How far the copy follows: teacher = (1 - rate) * teacher + rate * student. 0 keeps the student as it was before
    the stage, 1 is the student as it is now."""
    every: Count = 1
    """Steps between two such moves."""


class PrivilegedSpec(Spec):
    """What the teacher reads beside the prompt, and the student does not (SDFT, on-policy self-distillation)."""

    column: Text | None = None
    """The column of the rows that is shown to the teacher; null shows the row's answer, or the one that a generate
    stage wrote."""
    template: Text = TEMPLATE
    """The last user turn as the teacher reads it: {prompt} is its text, {shown} what is shown."""

    def conflicts(self) -> Iterator[Conflict]:
        for part in (PROMPT, SHOWN):
            if part not in self.template:
                yield Conflict("template", f"does not hold {part}.", f"Write {part} where it belongs.")


def conflicts(
    privileged: PrivilegedSpec, strategy: StrategyChoice, *, reads_rows: bool
) -> Iterator[Conflict]:
    """What of it cannot stand beside a strategy; `reads_rows` says that a term asks the teacher about rows' answers."""
    if privileged.column is None and reads_rows:
        yield Conflict(
            "privileged",
            "shows the teacher a row's answer, and would ask it about the same answer in steps on the rows.",
            "Write strategy: on_policy with on_policy_fraction: 1 and without keep_rows (or with supervised.ce_weight: "
            "1), or name a column.",
        )
    for name, takes_part in (("teacher_share", strategy.teacher_share), ("proposals", strategy.proposes)):
        if takes_part:
            yield Conflict(
                "privileged",
                f"cannot stand beside strategy.{name}: text is written behind the student's prompt alone.",
                "Leave one of the two out.",
            )
