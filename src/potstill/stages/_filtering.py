"""From the answers that a teacher wrote to those that are trained on: filters, then a verifier.

It is a step on top: the artifact with the answers stays, and other filters read it again without asking anybody.
What the recipe's task calls invalid is left out here too, so that no verifier prefers it and no answer is its duplicate.
Held-out answers pass as they are: figures are of all prompts, not of those whose answers pass a filter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from potstill.data.rows import Row
from potstill.errors import DataError
from potstill.filters._candidate import Candidate, FilterContext
from potstill.filters._patterns import masked
from potstill.recipe.filters import action_of, at_work, label_of, order_of
from potstill.recipe.specs import FilterChoice
from potstill.stages import _verifying
from potstill.stages._artifact import produce
from potstill.stages._context import Context
from potstill.stages._judging import asked_of, kind_of, special_tokens, texts_of
from potstill.stages._rows import ANSWERS, REJECTED
from potstill.store.artifacts import Artifact, key_of
from potstill.store.lines import read_lines, write_lines

STAGE = "filter"
VERSION = 2  # raised when filters judge differently
SAMPLES, SHOWN = 3, 200  # samples of a filter, characters of one
TASK, TASK_ORDER = "task", 25  # behind what was cut off, which a larger limit repairs
Line = dict[str, Any]
Judge = Callable[[Sequence[Line]], list[str]]  # answers -> why each is a bad one


def filtered(spec: Any, written: Artifact, context: Context) -> Artifact:
    """The answers of an artifact that pass; the very artifact where nothing has a say.

    Raises:
        DataError: no answer passes.
    """
    choices, task = at_work(spec.filters), context.setup.task
    if not choices and spec.verifier is None and task is None:
        return written
    filtering = Filtering(spec, written, context, choices)
    inputs = {
        "version": VERSION,
        "written": written.key,
        "filters": [context.identity(choice) for choice in choices],
        "verifier": None if spec.verifier is None else context.identity(spec.verifier),
        "keep": [spec.keep_answers, spec.right_from],
        "rows": key_of(
            "rows",
            {
                "rows": [
                    [r.id, r.messages, r.extra, r.teacher_turns, r.own_words]
                    for r in context.setup.data.everything
                ]
            },
        ),
        "heldout": [row.id for row in context.setup.data.heldout],
        "tokens": sorted(filtering.around.special_tokens),
    }
    if task is not None:
        inputs["task"] = task.identity
    passed = produce(context, STAGE, f"{spec.name}, filtered", inputs, filtering.build)
    if passed.reused:
        filtering.say_again(passed)
    return passed


@dataclass
class Filtering:
    """Answers on their way through the filters."""

    spec: Any
    written: Artifact
    context: Context
    choices: Sequence[FilterChoice]
    found: dict[str, dict[str, Any]] = field(default_factory=dict, init=False)

    @cached_property
    def around(self) -> FilterContext:
        """What the filters compare answers with."""
        setup = self.context.setup
        # An object, a label or a number is the right answer to many prompts.
        free = setup.task is None or setup.task.type == "text"
        texts = [text for row in setup.data.heldout for text in texts_of(row, answers=free)]
        return FilterContext(texts, special_tokens(self.context))

    @cached_property
    def rows(self) -> Mapping[str, Row]:
        """The rows whose answers are judged."""
        data = self.context.setup.data
        return {row.id: row for row in (*data.train, *data.validation)}

    def build(self, folder: Path) -> Mapping[str, Any]:
        """Judge all answers, and write those that pass and the others."""
        lines = read_lines(self.written.path / ANSWERS)
        judged = [line for line in lines if line["row_id"] in self.rows]
        passing, rejected = self._through(judged)
        verified: Mapping[str, Any] = {}
        if self.spec.verifier is not None:
            asked = [line["row_id"] for line in judged]
            passing, wrong, verified = _verifying.verify(self.spec, passing, self.rows, self.context, asked)
            rejected += wrong
        self._require_some(judged, passing, rejected)
        self._say(len(judged), rejected)
        kept = {id(line) for line in passing}
        used = [line for line in lines if line["row_id"] not in self.rows or id(line) in kept]
        write_lines(folder / ANSWERS, used)
        write_lines(folder / REJECTED, [*read_lines(self.written.path / REJECTED), *rejected])
        return self._facts(used, rejected, verified)

    def _through(self, lines: Sequence[Line]) -> tuple[list[Line], list[Line]]:
        """The answers that pass every filter, and the others with their reasons. A filter judges what those before it
        have left, so that no answer is the duplicate of one that is not used."""
        left, rejected = list(lines), list[Line]()
        for name, label, action, judge in self._judges:
            reasons = judge(left)
            bad = [(line, reason) for line, reason in zip(left, reasons, strict=True) if reason]
            self._note(name, label, action, len(left), bad)
            if name == TASK and bad:
                few = "; ".join(f"{line['row_id']}: {masked(reason)}" for line, reason in bad[:SAMPLES])
                said = f"{len(bad)} of {len(left)} answers are invalid and left out: {few}"
                self.context.console.warn(f"{self.spec.name}: {said}")
            if action == "reject":
                rejected += [
                    {**line, "stage": self.spec.name, "filter": name, "reason": reason}
                    for line, reason in bad
                ]
                left = [line for line, reason in zip(left, reasons, strict=True) if not reason]
        return left, rejected

    @property
    def _judges(self) -> list[tuple[str, str, str, Judge]]:
        """The name, label and action of every filter and of the task, and what it says of answers, in their order."""
        judges: list[tuple[int, tuple[str, str, str, Judge]]] = [
            (
                order_of(choice),
                (choice.name, label_of(choice), action_of(choice), partial(self._by_plugin, choice)),
            )
            for choice in self.choices
        ]
        if self.context.setup.task is not None:
            judges.append((TASK_ORDER, (TASK, "invalid by the task", "reject", self._valid)))
        return [judge for _, judge in sorted(judges, key=lambda one: one[0])]

    def _by_plugin(self, choice: FilterChoice, lines: Sequence[Line]) -> list[str]:
        """What a filter says of answers.

        Raises:
            DataError: it says more or less than that.
        """
        candidates = [self._candidate(line) for line in lines]
        reasons = list(self.context.plugin(choice).problems(candidates, self.around, **choice.options))
        if len(reasons) != len(lines):
            raise DataError(
                f"it judged {len(reasons)} of {len(lines)} answers.",
                path=f"{self.spec.name}.filters.{choice.name}",
                fix="A filter yields one reason for each answer, '' for a good one.",
            )
        return reasons

    def _valid(self, lines: Sequence[Line]) -> list[str]:
        """Why answers are no valid ones by the task."""
        task = self.context.setup.task
        assert task is not None
        return [task.problem(line["text"]) for line in lines]

    def _candidate(self, line: Line) -> Candidate:
        row, readers = self.rows[line["row_id"]], self.context.setup.readers
        raw = ""
        if line["ids"] and readers.teacher is not None:
            ends = line["finish"] == "stop" and line["ids"][-1] in readers.teacher.stop_ids
            raw = readers.teacher.tokenizer.decode(line["ids"][:-1] if ends else line["ids"])
        return Candidate(asked_of(row), line["text"], line["finish"], raw)

    def _note(self, name: str, label: str, action: str, of: int, bad: Sequence[tuple[Line, str]]) -> None:
        self.found[name] = {
            "label": label,
            "action": action,
            "of": of,
            "found": len(bad),
            # Whoever reads a report need not see what the filters are for keeping out of it.
            "samples": [
                {"row_id": line["row_id"], "reason": reason, "text": masked(line["text"])[:SHOWN]}
                for line, reason in bad[:SAMPLES]
            ],
        }

    def _require_some(
        self, judged: Sequence[Line], passing: Sequence[Line], rejected: Sequence[Line]
    ) -> None:
        """Stop where no answer is left to train on."""
        if not self._trained or any(line["row_id"] in self._trained for line in passing):
            return
        if not rejected:  # whoever wrote them left them out
            counts = self.written.facts.get("rejected") or {"not asked": len(self._trained)}
            why = ", ".join(f"{count} {reason}" for reason, count in counts.items())
            raise DataError(
                f"no row that is trained on has an answer: {why}.",
                path=self.spec.name,
                fix="rejected.jsonl of the stage names each of them.",
            )
        words, fix = self._words(len(judged), rejected)
        first = masked(rejected[0]["text"])[:SHOWN]
        raise DataError(f"{words}. The first of them: {first!r}.", path=self.spec.name, fix=fix)

    def say_again(self, passed: Artifact) -> None:
        """Say which answers are not used, of filters that judged in an earlier run."""
        self.found = passed.facts["filters"]
        ours = [line for line in read_lines(passed.path / REJECTED) if line.get("filter")]
        judged = sum(line["row_id"] in self.rows for line in read_lines(self.written.path / ANSWERS))
        self._say(judged, ours)

    def _words(self, judged: int, rejected: Sequence[Line]) -> tuple[str, str]:
        """Which answers are not used, and what to do about it."""
        reasons = Counter(kind_of(line["reason"]) for line in rejected)
        why = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        words = f"{len(rejected)} of {judged} answers are not used: {why}"
        return words, _way_out(self.spec.name, rejected) if rejected else ""

    def _say(self, judged: int, rejected: Sequence[Line]) -> None:
        """Say which answers are not used, and which are used and were counted."""
        name, console = self.spec.name, self.context.console
        words, _ = self._words(judged, rejected)
        bad = [line for line in rejected if line["reason"] != _verifying.NOT_KEPT]
        if 2 * len(bad) > judged:
            console.warn(f"{name}: {words}. {_way_out(name, bad)}")
        elif rejected:
            console.say(f"{name}: {words}")
        counted = {
            f["label"]: f["found"] for f in self.found.values() if f["action"] == "count" and f["found"]
        }
        if counted:
            kinds = ", ".join(f"{count} {label}" for label, count in counted.items())
            console.say(
                f"{name}: among those used: {kinds} (counted and kept; action: reject leaves them out)"
            )

    def _facts(self, used: Sequence[Line], rejected: Sequence[Line], verified: Mapping[str, Any]) -> Line:
        before = self.written.facts
        reasons = Counter(kind_of(line["reason"]) for line in rejected)
        left_out = Counter(
            f"answer: {kind_of(line['reason'])}" for line in rejected if line["row_id"] in self._trained
        )
        return {
            **before,
            "answers": len(used),
            "stopped": sum(line["finish"] == "stop" for line in used),
            "cut_off": sum(line["finish"] == "length" for line in used),
            "empty": sum(not line["text"].strip() for line in used),
            "rejected": dict(Counter(before.get("rejected", {})) + reasons),
            "left_out": dict(Counter(before.get("left_out", {})) + left_out),
            "filters": self.found,
            **({"verified": verified} if verified else {}),
        }

    @cached_property
    def _trained(self) -> frozenset[str]:
        """The rows that are trained on; the others choose the best weights."""
        return frozenset(row.id for row in self.context.setup.data.train)


def _way_out(name: str, rejected: Sequence[Line]) -> str:
    """What to do about the reason that most answers are rejected for."""
    ((most, _),) = Counter(line["filter"] for line in rejected).most_common(1)
    keep = f"keep such answers: {name}.filters=[{{{most}: {{action: count}}}}]"
    if most == TASK:
        return "Ask for what task wants in teacher.prompt, or change task."
    if most == "verifier":
        return f"Raise {name}.samples, or look at what it calls wrong."
    return f"Raise {name}.max_new_tokens, or {keep}." if most == "truncated" else f"Look at them, or {keep}."
