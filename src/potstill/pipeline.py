"""The stages of one run, in order, each fed with what came before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from potstill import compose, resolve
from potstill.artifacts import Artifact, key_of
from potstill.compose import DTYPES, Parts
from potstill.data.examples import Encoded, encode
from potstill.data.rows import Row
from potstill.errors import DataError
from potstill.fused import DEFAULT_CHUNK_BYTES
from potstill.generate.sampling import Sampling
from potstill.presets import Default, resolve_auto
from potstill.recipe_stages import Distill, Evaluate, Finetune, Generate, StageSpec, Training
from potstill.report.gather import Outcome
from potstill.rundir import RunDir
from potstill.stages import evaluate, generate, student, train
from potstill.stages.common import World
from potstill.training import objective_of, settings_of, settled
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
    evaluation: Artifact | None = None
    max_new_tokens: int | None = None
    stages: dict[str, Artifact] = field(default_factory=dict)
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
        for stage in stages[:last]:
            self.folder.update({"stage": stage.name})
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
            stage, compose.facts(self.parts, train_tokens, parameters, self.max_new_tokens)
        )
        self.defaults += chosen
        return settled

    def _generate(self, stage: Generate) -> Artifact:
        stage = self._resolved(stage)
        templater = self.parts.teacher_templater
        room = self.parts.max_length - stage.max_new_tokens
        # One answer each for rows that are measured on: two answers to one prompt are not two prompts.
        trained = {row.id for row in self.parts.data.train}
        prompts, too_long = [], 0
        for row in self.parts.data.everything:
            ids = templater.prompt_ids(row.prompt, list(row.tools) or None)
            if len(ids) > room:
                too_long += 1
                continue
            prompts.append(generate.Prompt(row.id, tuple(ids), stage.samples if row.id in trained else 1))
        self.funnel["prompt too long"] = too_long
        if not prompts:
            raise DataError(
                f"all {too_long} prompts are longer than {room} tokens, which max_length {self.parts.max_length} "
                f"leaves beside {stage.max_new_tokens} new ones.",
                path="data.max_length",
                fix="Raise max_length, or shorten the prompts.",
            )
        self.answers = generate.run(
            self.world,
            stage.name,
            self.parts.teacher,
            prompts,
            Sampling(stage.max_new_tokens, stage.sampling_temperature, stage.top_p, stage.top_k),
            batch_rows=settled(stage.batch_rows),
            stop_ids=tuple(templater.stop_ids),
            pad_id=self.parts.pad_id,
        )
        self.max_new_tokens = stage.max_new_tokens
        self._examples.clear()
        return self.answers

    def _rows(self, split: str) -> Sequence[Row]:
        return getattr(self.parts.data, split)

    def examples(self, split: str) -> list[Example]:
        """The rows of a split as token ids: with the teacher's answers once they are written."""
        if split not in self._examples:
            rows = self._rows(split)
            found = self._answered(rows) if self.answers is not None else self._own(rows, split)
            self._examples[split] = found
            self.lengths[split] = [len(example.input_ids) for example in found]
        return self._examples[split]

    def _answered(self, rows: Sequence[Row]) -> list[Example]:
        assert self.answers is not None
        by_id = {row.id: row for row in rows}
        templater = self.parts.student_templater
        found = []
        for written in generate.read(self.answers):
            row = by_id.get(written.row_id)
            if row is None or not written.ids:
                continue
            prompt = templater.prompt_ids(row.prompt, list(row.tools) or None)
            name = row.id if written.sample == 0 else f"{row.id}#{written.sample}"
            found.append(
                templater.generated(name, prompt, written.ids, "teacher", end=written.finish == "stop")
            )
        return found

    def _own(self, rows: Sequence[Row], split: str) -> list[Example]:
        if not rows:
            return []
        encoded = self._encode(rows)
        if split == "train":
            self.funnel |= encoded.funnel
        return list(encoded.examples)

    def _student(self) -> Artifact:
        """The student as it is now; made on first use."""
        if self.current is None:
            if self.parts.student is not None:
                self.untrained = student.from_model(self.world, self.parts.student)
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
            self.world, self.parts.teacher, plan, self.examples("train"), self.parts.pad_id
        )

    def _train(self, stage: Training) -> Artifact:
        before = self._student()
        if stage.verb == "control":
            assert self.untrained is not None
            before = self.untrained
        examples = self.examples("train")
        if isinstance(stage, Finetune) and stage.data is not None:
            examples = self._finetune_rows(stage)
        stage = self._resolved(stage, sum(example.count for example in examples))
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
            validation=self.examples("validation"),
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
            data_key=key_of("examples", {"rows": [[e.id, e.input_ids, e.scored] for e in examples]}),
        )
        trained = train.run(self.world, job)
        self.folder.update({"training": None})
        if stage.verb == "control":
            self.control = trained
        else:
            self.current = trained
        return trained

    def _started(self, metrics: Path, steps: int) -> None:
        self.folder.update({"training": {"metrics": str(metrics.resolve()), "steps": steps}})

    def _finetune_rows(self, stage: Finetune) -> list[Example]:
        assert stage.data is not None
        spec = self.parts.recipe.data.model_copy(
            update={
                "train": stage.data,
                "format": stage.format,
                "columns": stage.columns,
                "limit": stage.limit,
            }
        )
        rows = compose.read_files(spec, spec.train, self.parts.opened.base).rows
        return list(self._encode(rows).examples)

    def _encode(self, rows: Sequence[Row]) -> Encoded:
        return encode(
            rows,
            self.parts.student_templater,
            max_length=self.parts.max_length,
            on_bad_row=self.parts.recipe.data.on_bad_row,
        )

    def _evaluate(self, stage: Evaluate) -> Artifact:
        stage = self._resolved(stage)
        current = self._student()
        assert self.untrained is not None
        students = {"before": self.untrained}
        if current is not self.untrained:
            students["after"] = current
        if self.control is not None:
            students["control"] = self.control
        examples = self.examples("heldout")
        self.evaluation = evaluate.run(
            self.world,
            evaluate.Job(
                name=stage.name,
                teacher=self.parts.teacher,
                students=students,
                examples=examples,
                questions=self._questions(examples, settled(stage.samples)),
                metrics=tuple(stage.metrics),
                max_new_tokens=settled(stage.max_new_tokens),
                resamples=stage.resamples,
                vocabulary=self.parts.vocabulary.size,
                pad_id=self.parts.pad_id,
                stop_ids=tuple(self.parts.student_templater.stop_ids),
                forward_kl=resolve.load("divergences", "forward_kl").value,
                reverse_kl=resolve.load("divergences", "reverse_kl").value,
            ),
        )
        return self.evaluation

    def _questions(self, examples: Sequence[Example], most: int) -> list[evaluate.Question]:
        """The first held-out rows with one answer each, as prompt and reference."""
        rows = {row.id: row for row in self.parts.data.heldout}
        tokenizer = self.parts.tokenizer
        questions: list[evaluate.Question] = []
        for example in examples:
            row = rows.get(example.id)
            if row is None or len(questions) >= most:
                continue
            first = example.scored.index(True)
            answer = [t for t, scored in zip(example.input_ids, example.scored, strict=True) if scored]
            text = tokenizer.decode(answer, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            questions.append(
                evaluate.Question(
                    row_id=row.id,
                    prompt_ids=example.input_ids[:first],
                    prompt=row.prompt_text,
                    reference=text,
                    reference_tokens=len(answer),
                    family=str(row.extra.get("family") or ""),
                    unseen=bool(row.extra.get("unseen")),
                )
            )
        return questions
