"""The stages of one run, in order, each fed with what came before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from potstill.data.examples import Encoded, encode
from potstill.data.rows import Row
from potstill.errors import DataError
from potstill.generate.sampling import Sampling
from potstill.objectives.fused import DEFAULT_CHUNK_BYTES
from potstill.recipe import resolve
from potstill.recipe.defaults import Default, resolve_auto, twin_of
from potstill.recipe.stages import Control, Distill, Evaluate, Finetune, Generate, StageSpec, Training
from potstill.report.gather import Outcome
from potstill.runs import setup
from potstill.runs.examples import answered, by_prompt, longest_answer, prompts, questions, weighed, with_room
from potstill.runs.setup import DTYPES, Parts
from potstill.runs.training import objective_of, settings_of, settled
from potstill.stages import evaluate, generate, student, train
from potstill.stages.common import World
from potstill.store.artifacts import Artifact, key_of
from potstill.store.folder import RunDir
from potstill.types import Example


@dataclass
class Pipeline:
    """The stages of one run, in order, each fed with what came before."""

    parts: Parts
    world: World
    folder: RunDir
    until: str | None
    answers: Artifact | None = None
    untrained: Artifact | None = None
    current: Artifact | None = None
    control: Artifact | None = None
    trained: dict[str, Artifact] = field(default_factory=dict)
    evaluation: Artifact | None = None
    max_new_tokens: int | None = None
    stages: dict[str, Artifact] = field(default_factory=dict)
    settled: dict[str, Training] = field(default_factory=dict)
    defaults: list[Default] = field(default_factory=list)
    funnel: dict[str, int] = field(default_factory=dict)
    lengths: dict[str, list[int]] = field(default_factory=dict)
    _examples: dict[str, list[Example]] = field(default_factory=dict)

    def go(self) -> Outcome:
        stages = self.parts.recipe.stages
        last = len(stages)
        if self.until is not None:
            last = max(index for index, stage in enumerate(stages) if stage.verb == self.until) + 1
        for stage in stages[:last]:
            if isinstance(stage, Training):
                objective_of(stage, 2)  # refuses what its plug-ins cannot take before anything is written
        self.folder.keep_links("stages", [stage.name for stage in stages])
        for stage in stages[:last]:
            self.folder.update({"stage": stage.name})
            if isinstance(stage, Training) and any(s.verb == "evaluate" for s in stages[:last]):
                # What cannot be measured later is refused before hours of training.
                questions(self.parts, self._heldout(), 10**9, generated=self.answers is not None)
            artifact = self._run(stage)
            self.stages[stage.name] = artifact
            self.folder.link(f"stages/{stage.name}", artifact.path)
        if self.current is not None:
            self.folder.link("student", self.current.path / "student")
        return Outcome(
            recipe=self.parts.recipe,
            data=self.parts.data,
            teacher=self.parts.teacher,
            stages=self.stages,
            untrained=self.untrained,
            student=self.current,
            control=self.control,
            trained=tuple(self.trained),
            evaluation=self.evaluation,
            answers=self.answers,
            defaults=tuple(self.defaults),
            funnel=self.funnel,
            lengths=self.lengths,
            reused=tuple(self.world.reused),
        )

    def _run(self, stage: StageSpec) -> Artifact:
        if isinstance(stage, Generate):
            return self._generate(stage)
        if isinstance(stage, Evaluate):
            return self._evaluate(stage)
        assert isinstance(stage, Training)
        return self._train(stage)

    def _resolved(self, stage: Any, train_tokens: int | None = None) -> Any:
        parameters = None if self.untrained is None else self.untrained.facts["params"]
        settled, chosen = resolve_auto(
            stage,
            setup.facts(
                self.parts,
                train_tokens,
                parameters,
                self.max_new_tokens,
                untrained=self.current is self.untrained or isinstance(stage, Control),
            ),
        )
        self.defaults += chosen
        return settled

    def _generate(self, stage: Generate) -> Artifact:
        stage = self._resolved(stage)
        rows = self.parts.data.everything
        asked, left_out = prompts(self.parts, rows, stage.max_new_tokens, stage.samples)
        self.funnel |= left_out
        templater = self.parts.teacher_templater
        self.answers = generate.run(
            self.world,
            stage.name,
            self.parts.teacher,
            asked,
            Sampling(stage.max_new_tokens, stage.sampling_temperature, stage.top_p, stage.top_k),
            batch_rows=settled(stage.batch_rows),
            stop_ids=tuple(templater.stop_ids),
            pad_id=self.parts.teacher_pad_id,
        )
        self.max_new_tokens = stage.max_new_tokens
        self._examples.clear()
        return self.answers

    def examples(self, split: str) -> list[Example]:
        """The rows of a split as token ids: with the teacher's answers once they are written."""
        if split not in self._examples:
            rows: Sequence[Row] = getattr(self.parts.data, split)
            if self.answers is not None:
                fed = answered(self.parts, self.answers, rows)
                found, counts = fed.examples, fed.funnel
            else:
                encoded = self._encode(rows, needed=split != "validation") if rows else None
                found = list(encoded.examples) if encoded else []
                counts = encoded.funnel if encoded else {}
            if split == "train":
                self.funnel |= counts
            self._examples[split] = (
                by_prompt(found, rows) if split == "heldout" else weighed(self.parts, found, rows, split)
            )
            self.lengths[split] = [len(example.input_ids) for example in found]
        return self._examples[split]

    def _student(self) -> Artifact:
        """The student as it is now; made on first use."""
        if self.current is None:
            if self.parts.student is not None:
                self.untrained = student.from_model(self.world, self.parts.student, self.parts.template)
            else:
                self.untrained = self._cut()
            self.current = self.untrained
        return self.current

    def _cut(self) -> Artifact:
        cut = self.parts.recipe.student.from_teacher
        assert cut is not None
        listed = () if isinstance(cut.by, str) else tuple(cut.by)
        plan = student.CutPlan(cut.count, cut.by if isinstance(cut.by, str) else "list", listed)
        return student.cut_from_teacher(
            self.world,
            self.parts.teacher,
            plan,
            self.examples("train"),
            self.parts.pad_id,
            self.parts.template,
        )

    def _train(self, stage: Training) -> Artifact:
        before = self._student()
        if stage.verb == "control":
            assert self.untrained is not None
            before = self.untrained
        examples, validation = self.examples("train"), self.examples("validation")
        if isinstance(stage, Finetune) and stage.data is not None:
            examples, validation = self._finetune_rows(stage)
        if isinstance(stage, Control):
            stage, shared = twin_of(stage, self.parts.recipe.stages, self.settled)
            self.defaults += shared
        stage = self._resolved(stage, sum(example.count for example in examples))
        self.settled[stage.name] = stage
        settings = settings_of(stage, examples, self.parts.recipe.seed)
        loss_facts, loss_at, yardstick = objective_of(stage, settings.steps)
        strategy = resolve.load("strategies", "offline").build()
        if isinstance(stage, Distill):
            strategy = resolve.load("strategies", stage.strategy.name, stage.strategy.options).build(
                **stage.strategy.options
            )
        job = train.Job(
            name=stage.name,
            student=before,
            teacher=self.parts.teacher if isinstance(stage, Distill) else None,
            examples=examples,
            validation=validation,
            vocabulary=self.parts.vocabulary.size,
            pad_id=self.parts.pad_id,
            stop_ids=tuple(self.parts.student_templater.stop_ids),
            strategy=strategy,
            loss_at=loss_at,
            loss_facts=loss_facts,
            yardstick=yardstick,
            settings=settings,
            autocast=None if stage.precision == "float32" else DTYPES[stage.precision],
            chunk_bytes=getattr(stage, "chunk_bytes", DEFAULT_CHUNK_BYTES),
            activation_checkpointing=stage.activation_checkpointing,
            on_start=self._started,
            data_key=key_of(
                "examples", {"rows": [[e.id, e.input_ids, e.scored, e.weight, e.share] for e in examples]}
            ),
        )
        trained = train.run(self.world, job)
        self.folder.update({"training": None})
        if stage.verb == "control":
            self.control = trained
        else:
            self.current = self.trained[stage.name] = trained
        return trained

    def _started(self, metrics: Path, steps: int) -> None:
        self.folder.update({"training": {"metrics": str(metrics.resolve()), "steps": steps}})

    def _finetune_rows(self, stage: Finetune) -> tuple[list[Example], list[Example]]:
        """The stage's own rows to train on and to choose by, without any that is measured on."""
        train, validation = self.parts.data.finetune[stage.name]
        return (
            weighed(self.parts, self._encode(train).examples, train, "train"),
            weighed(self.parts, self._encode(validation, needed=False).examples, validation, "validation"),
        )

    def _encode(self, rows: Sequence[Row], needed: bool = True) -> Encoded:
        return encode(
            rows,
            self.parts.student_templater,
            max_length=self.parts.max_length,
            on_bad_row=self.parts.recipe.data.on_bad_row,
            needed=needed,
        )

    def _evaluate(self, stage_as_written: Evaluate) -> Artifact:
        stage = self._resolved(stage_as_written)
        current = self._student()
        assert self.untrained is not None
        students = {"before": self.untrained}
        # With two stages, what lies between them too: each is shown by what was before and after it.
        students |= {f"after {name}": student for name, student in list(self.trained.items())[:-1]}
        if current is not self.untrained:
            students["after"] = current
        if self.control is not None:
            students["control"] = self.control
        examples = self._heldout()
        auto = stage_as_written.max_new_tokens == "auto"
        asked = questions(self.parts, examples, settled(stage.samples), generated=self.answers is not None)
        new_tokens = settled(stage.max_new_tokens)
        if auto:
            new_tokens = longest_answer(self.parts, asked, new_tokens)
        fitting = with_room(self.parts, asked, new_tokens)
        self.evaluation = evaluate.run(
            self.world,
            evaluate.Job(
                name=stage.name,
                teacher=self.parts.teacher,
                students=students,
                examples=examples,
                questions=fitting,
                metrics=tuple(stage.metrics),
                max_new_tokens=new_tokens,
                resamples=stage.resamples,
                vocabulary=self.parts.vocabulary.size,
                pad_id=self.parts.pad_id,
                stop_ids=tuple(self.parts.student_templater.stop_ids),
                own=evaluate.Reader(
                    self.parts.teacher_vocabulary.size,
                    self.parts.teacher_pad_id,
                    tuple(self.parts.teacher_templater.stop_ids),
                ),
                foreign=""
                if self.parts.shared_vocabulary
                else "teacher and student have different vocabularies",
                forward_kl=resolve.load("divergences", "forward_kl").value,
                reverse_kl=resolve.load("divergences", "reverse_kl").value,
            ),
        )
        return self.evaluation

    def _heldout(self) -> list[Example]:
        """The held-out rows as examples.

        Raises:
            DataError: none can be measured.
        """
        examples = self.examples("heldout")
        if not examples:
            raise DataError(
                f"none of the {len(self.parts.data.heldout)} held-out rows can be measured.",
                path="data.heldout",
                fix="Give them answers, or shorter prompts; data.max_length is the limit.",
            )
        return examples
