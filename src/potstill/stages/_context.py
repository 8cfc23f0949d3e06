"""Where stages work (`Context`, `Setup`), and what passes from one to the next (`State`). All of it frozen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from potstill.console import Console
from potstill.data.dataset import Dataset
from potstill.data.mix import Plan
from potstill.data.reader import Readers
from potstill.data.task import Task
from potstill.devices import ranks
from potstill.errors import Interrupted
from potstill.models.loading import fast_bf16
from potstill.objectives import compiled
from potstill.recipe import plugins
from potstill.recipe.defaults import Default, Facts
from potstill.recipe.devices import DevicesSpec
from potstill.recipe.specs import Choice
from potstill.recipe.stages import StageSpec, replaced
from potstill.signals.teacher import Teacher
from potstill.store.artifacts import Artifact, Store
from potstill.students._built import StudentContext

Spec = TypeVar("Spec", bound=StageSpec)


@dataclass(frozen=True)
class StudentRef:
    """How the student is made: a plug-in of the family `students` with its options."""

    plugin: Any
    name: str
    options: Mapping[str, Any]
    context: StudentContext  # as far as it is known before the first stage
    cut: bool  # from the teacher, not yet healed
    template: str | None  # the chat template that it is trained with, where it is not its tokenizer's own
    hidden_width: int | None = None  # values that its output layer reads, where that is known


@dataclass(frozen=True)
class Setup:
    """What a recipe names, read and found to fit together, before any weight is loaded."""

    device: torch.device
    base: Path
    teacher: Teacher
    student: StudentRef
    readers: Readers
    data: Dataset
    weight: str | None  # the column that weighs rows
    on_bad_row: Literal["error", "skip"]
    max_length: int
    context_length: int
    notes: tuple[str, ...] = ()
    devices: DevicesSpec = field(default_factory=DevicesSpec)
    date: datetime | None = None  # what templates print that print the date, from the run's first start
    data_seed: int = 0  # of splits, answers and resampled prompts; `Context.seed` trains
    mix: Plan | None = None  # shares of several sources in what is trained on
    task: Task | None = None  # what the answers have to be
    compares: bool = False  # a stage compares distributions, so the teacher is given the student's ids
    domain: str | None = None  # the column that says which of several teachers are asked about a row

    @property
    def known_ids(self) -> int | None:
        """Ids that rows may hold where both models read them; None where any may stand."""
        return self.readers.shared_ids if self.compares else None

    def facts(
        self,
        *,
        untrained: bool,
        parameters: int | None = None,
        answer_tokens: int | None = None,
        sizes: Mapping[str, int] | None = None,
        whole: bool = True,
    ) -> Facts:
        """What `auto` values may depend on; `untrained` says that no stage has trained the student yet, `sizes` what is
        known of its rows, and `whole` that it is compared with the whole distribution of one teacher."""
        kind = self.device.type
        return Facts(
            device=kind if kind in ("cuda", "mps") else "cpu",  # type: ignore[arg-type]
            bf16=fast_bf16(self.device),
            fp16=kind == "cuda",
            student_kind="cut" if self.student.cut and untrained else "full",
            parameters=parameters,
            answer_tokens=answer_tokens,
            context=self.context_length,
            engine=getattr(self.teacher, "engine", "local"),
            whole=whole,
            no_compiler=compiled.why_not(self.device),
            teacher_format=getattr(self.teacher, "number_format", None),
            **(sizes or {}),
        )


@dataclass(frozen=True)
class State:
    """What the stages before have left."""

    answers: Artifact | None = None  # what the teacher wrote, as far as it is used
    written: Artifact | None = None  # all that it wrote
    answer_tokens: int | None = None  # the most tokens of one of them
    left_out: Mapping[str, int] = field(default_factory=dict)  # prompts that were not asked, by reason
    captured: Artifact | None = None  # what the teacher said of the rows, where a stage wrote it down
    untrained: Artifact | None = None  # the student before any training
    student: Artifact | None = None  # the student as it is now
    control: Artifact | None = None
    evaluation: Artifact | None = None
    trained: tuple[str, ...] = ()  # the stages that trained the student, in order
    artifacts: Mapping[str, Artifact] = field(default_factory=dict)  # of every stage by its name
    resolved: Mapping[str, StageSpec] = field(default_factory=dict)  # every stage without an `auto`
    defaults: tuple[Default, ...] = ()  # what `auto` became

    def after(
        self, spec: StageSpec, artifact: Artifact, defaults: tuple[Default, ...] = (), **changes: Any
    ) -> State:
        """The state behind a stage that left `artifact`."""
        return replace(
            self,
            artifacts={**self.artifacts, spec.name: artifact},
            resolved={**self.resolved, spec.name: spec},
            defaults=self.defaults + defaults,
            **changes,
        )


@dataclass(frozen=True)
class Context:
    """Where stages work.

    `stages` are those of the run as the recipe writes them. `stop_signal` returns the number of a received
    signal, 0 before one came. `announce` tells the run folder where a stage's progress is written. `track` passes
    a training's steps and validations on to the recipe's trackers. `memo` keeps what is read once and used by
    several stages.
    """

    setup: Setup
    store: Store
    console: Console
    seed: int
    stages: tuple[StageSpec, ...] = ()
    stop_signal: Callable[[], int] = lambda: 0
    announce: Callable[[Mapping[str, Any]], None] = lambda values: None
    yes: bool = False  # whoever started the run agrees to what it costs
    track: Callable[[str, Mapping[str, Any]], None] = lambda stage, event: None
    memo: dict[Any, Any] = field(default_factory=dict)

    def stop_if_signalled(self) -> None:
        """Raise once a signal has arrived; what is on disk lets the stage go on later.

        Raises:
            Interrupted: a signal arrived.
        """
        if number := self.stop_signal():
            raise Interrupted(
                "stopped by a signal; everything finished so far is kept.", signal_number=number
            )

    def stop_together(self) -> None:
        """`stop_if_signalled` in all processes of the run at once, where they would wait for each other.

        Raises:
            Interrupted: a signal arrived in one of them.
        """
        if number := ranks.highest(self.stop_signal()):
            raise Interrupted(
                "stopped by a signal; everything finished so far is kept.", signal_number=number
            )

    def settle(
        self, spec: Spec, state: State, sizes: Mapping[str, int] | None = None, *, whole: bool = True
    ) -> tuple[Spec, tuple[Default, ...]]:
        """Give every option that the recipe leaves open its value, with a line on each."""
        spec, shared = spec.completed(self.stages, state.resolved)
        facts = self.setup.facts(
            untrained=spec.from_untrained or not state.trained,
            parameters=None if state.untrained is None else state.untrained.facts["params"],
            answer_tokens=state.answer_tokens,
            sizes=sizes,
            whole=whole,
        )
        spec, chosen = replaced(spec, spec.automatic(facts))
        return spec, shared + chosen

    def plugin(self, choice: Choice) -> Any:
        """The code of a plug-in that a stage names."""
        return plugins.load(choice.family, choice.name, choice.options)

    def identity(self, choice: Choice) -> Any:
        """What identifies a plug-in and its options in an artifact's key."""
        return plugins.identity(choice.family, choice.name, choice.options)
