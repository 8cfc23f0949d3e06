"""Ask a served teacher and leave an artifact: the answers that are used, and the others with their reasons."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from potstill.console import Bar, typed
from potstill.data.prompts import Prompt
from potstill.errors import Interrupted, RecipeError
from potstill.generate.sampling import Sampling
from potstill.generate.served import Asked, Given, Spending, TextRequest
from potstill.recipe.specs import EngineChoice
from potstill.stages._alternatives import Alternatives
from potstill.stages._artifact import produce
from potstill.stages._asked_facts import dates_of, facts_of
from potstill.stages._captured import tokenizer_identity
from potstill.stages._context import Context
from potstill.stages._conversations import Draw, conversations, digest_of, repeated
from potstill.stages._rows import ANSWERS, REJECTED
from potstill.store.artifacts import Artifact
from potstill.store.disk import real
from potstill.store.lines import write_lines

STAGE = "generate"
VERSION = 5  # raised when the answers change their meaning, or the facts what they hold
JOURNAL = Path(".journal", "answers.sqlite")  # in the store, of which it is never freed
SO_FAR = "answers-so-far.jsonl"  # in the folder of an interrupted run
SECONDS_BETWEEN_NOTES = 2.0
_SPENT = ("requests", "tokens_in", "tokens_out", "money", "currency", "unknown")
Judge: TypeAlias = Callable[[str, str, str], str]  # prompt, text, finish -> why it would not be trained on


def ask(
    name: str,
    engine: EngineChoice,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    workers: int,
    context: Context,
    judge: Judge = lambda prompt, text, finish: "",
    *,
    keep: bool = False,
) -> Artifact:
    """Ask for all answers, and with `keep` for the likeliest tokens beside each of theirs. `judge` has a say on the
    first few, before the rest is paid for. What is paid for stands in the store's journal, whatever becomes of the
    stage."""
    teacher: Any = context.setup.teacher
    pace: frozenset[str] = getattr(context.plugin(engine), "PACE", frozenset())
    settings = {key: value for key, value in engine.options.items() if key not in pace}
    asked, rows = conversations(prompts, sampling, context)
    asking = Asking(name, engine, asked, rows, sampling, workers, context, judge, keep)
    inputs = {
        "version": VERSION,
        "teacher": teacher.fingerprint,
        "engine": context.identity(engine.model_copy(update={"options": settings})),
        "sampling": asdict(sampling),
        "seed": context.setup.data_seed,
        "conversations": [[one.messages, one.tools] for one in asked],
        "rows": rows,
        # They stand in the manifest; made anew, the artifact costs nothing.
        "terms": getattr(teacher, "terms", ""),
    }
    if (sent := _response_format(context)) is not None:
        inputs["response_format"] = sent
    if keep:
        inputs["alternatives"] = [asking.alternatives, tokenizer_identity(teacher.words)]
    return produce(context, STAGE, name, inputs, asking.build)


def _response_format(context: Context) -> dict[str, Any] | None:
    """The schema of the recipe's task as a request carries it."""
    return None if context.setup.task is None else context.setup.task.response_format


def _nothing(text: str) -> str:
    return ""


@dataclass
class Asking:
    """Conversations on their way to answers."""

    name: str
    engine: EngineChoice
    asked: Sequence[Asked]
    rows: Sequence[tuple[str, int, Draw]]
    sampling: Sampling
    workers: int
    context: Context
    judge: Judge
    keep: bool = False
    spending: Spending = field(default=Spending(0, 0), init=False)
    noted: float = field(default=0.0, init=False)

    @property
    def alternatives(self) -> int:
        """How many of the likeliest tokens are asked for beside each token of an answer."""
        teacher: Any = self.context.setup.teacher
        return int(teacher.top_logprobs) if self.keep else 0

    def build(self, folder: Path) -> Mapping[str, Any]:
        """Ask for what the journal does not hold, and put all answers in order."""
        context, total = self.context, sum(len(one.samples) for one in self.asked)
        task = context.setup.task
        bars: list[Bar] = []
        beside = Alternatives(folder, context.setup.teacher, [digest_of(one) for one in self.asked])
        with ExitStack() as stack:
            stack.enter_context(beside)
            stack.callback(lambda: self._note(self.spending, last=True))  # where it fails too

            def progress(now: Spending) -> None:
                if not bars:  # only now it is known what was there before
                    label = f"{self.name}: the teacher answers"
                    bars.append(
                        stack.enter_context(
                            context.console.bar(label, total, now.done - now.here, plain=True)
                        )
                    )
                self.spending = now
                bars[0].update(now.done, f"{now.requests} requests · {now.cost}")
                self._note(now)

            request = TextRequest(
                teacher=context.setup.teacher,
                prompts=self.asked,
                sampling=self.sampling,
                seed=context.setup.data_seed,
                workers=self.workers,
                response_format=_response_format(context),
                ignores=_nothing if task is None else task.ignores,
                problem=_nothing if task is None else task.problem,
                journal=context.store.root / JOURNAL,
                payer=f"{real(context.store.run) if context.store.run else context.store.root}/{self.name}",
                say=lambda text: context.console.say(f"{self.name}: {text}"),
                warn=lambda text: context.console.warn(f"{self.name}: {text}"),
                confirm=self._confirm,
                judge=self.judge,
                alternatives=self.alternatives,
                keep=beside.keep if self.keep else None,
                on_progress=progress,
                should_stop=lambda: bool(context.stop_signal()),
            )
            engine = context.plugin(self.engine)
            given = {(one.index, one.sample): one for one in engine.write(request, **self.engine.options)}
        if number := context.stop_signal():
            raise Interrupted(self._so_far(given), signal_number=number)
        return {
            **self._finish(folder, given, beside.ids),
            **(beside.finish(self.name, context) if self.keep else {}),
        }

    def _note(self, now: Spending, *, last: bool = False) -> None:
        """Tell the run's folder where it stands, for `potstill status`."""
        moment = time.monotonic()
        if last or moment - self.noted >= SECONDS_BETWEEN_NOTES:
            self.noted = moment
            words = {"stage": self.name, "seconds_left": now.seconds_left, "cost": now.cost}
            self.context.announce({"asking": {**asdict(now), **words}})

    def _confirm(self, question: str) -> None:
        """Go on where somebody agrees.

        Raises:
            RecipeError: nobody does.
        """
        if self.context.yes or self.context.console.ask(f"{self.name}: {question}?"):
            return
        run = shlex.quote(str(self.context.store.run or "RECIPE"))
        raise RecipeError(
            f"nobody agreed to {question}; nothing more was sent.",
            path=self.name,
            fix=f"Type: {typed()} run {run} --yes (answers so far are kept), or raise confirm_above (generate.engine).",
        )

    def _so_far(self, given: Mapping[Draw, Given]) -> str:
        """Leave what is answered in the run's folder, and say so."""
        lines = [line for line in self._lines(given, {}) if "reason" not in line]
        words = (
            f"stopped by a signal; {self.spending.done} of {self.spending.total} answers are in the journal"
        )
        if self.context.store.run is None or not lines:
            return f"{words}."
        place = self.context.store.run / SO_FAR
        write_lines(place, lines)
        return f"{words}, those that can be used in {place}."

    def _lines(self, given: Mapping[Draw, Given], ids: Mapping[Draw, Sequence[int]]) -> list[dict[str, Any]]:
        """What became of every sample of every row: its text, with its `ids` where they are certain, or why it is not
        used, with what was received."""
        lines = []
        for row_id, sample, draw in self.rows:
            one = given.get(draw, Given(*draw, reason="not asked"))
            line = {"row_id": row_id, "sample": sample, "draw": draw[1]}
            if one.reason:
                why = {"stage": self.name, "reason": one.reason, "attempts": one.attempts}
                lines.append({**line, **why, "text": one.text, "finish": one.finish})
            else:
                said = {"ids": list(ids.get(draw, ())), "text": one.text, "finish": one.finish}
                lines.append({**line, "prompt": digest_of(self.asked[draw[0]]), **said})
        return lines

    def _finish(
        self, folder: Path, given: Mapping[Draw, Given], ids: Mapping[Draw, Sequence[int]]
    ) -> Mapping[str, Any]:
        lines = self._lines(given, ids)
        facts = facts_of(lines, list(given.values()), self.context.setup.data)
        write_lines(folder / ANSWERS, [line for line in lines if "reason" not in line])
        write_lines(folder / REJECTED, [line for line in lines if "reason" in line])
        source = self._source(list(given.values()))
        self._say(Counter(facts["rejected"]), len(lines), source["answered_by"])
        self._say_repeated(given)
        if self.context.store.run is not None:
            (self.context.store.run / SO_FAR).unlink(missing_ok=True)
        now = self.spending
        spent = {key: asdict(now)[key] for key in _SPENT} | {"cost": now.cost}
        return {**facts, "tokens": now.tokens_out, "spent": spent, "source": source}

    def _source(self, given: Sequence[Given]) -> dict[str, Any]:
        """Who answered when, under which terms, and how the answers were drawn."""
        teacher: Any = self.context.setup.teacher
        sampling = asdict(self.sampling)
        if longer := self.engine.options.get("retry_truncated"):
            sampling["retry_truncated"] = longer
        return {
            "provider": urlsplit(teacher.endpoint).hostname or teacher.endpoint,
            "endpoint": teacher.endpoint,
            "model": teacher.model,
            "answered_by": dict(Counter(one.echoed for one in given if one.echoed)),
            "answered_at": dict(Counter(one.endpoint for one in given if one.endpoint)),
            "terms": teacher.terms,
            "date": dates_of([one.at for one in given if one.at]),
            "sampling": sampling,
        }

    def _say(self, reasons: Counter[str], of: int, models: Mapping[str, int]) -> None:
        say = self.context.console.say
        if len(models) > 1:
            names = ", ".join(f"{model} ({count})" for model, count in Counter(models).most_common())
            self.context.console.warn(f"{self.name}: more than one model answered: {names}")
        if reasons:
            words = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
            say(f"{self.name}: {reasons.total()} of {of} answers are not used: {words}")
        if self.spending.requests:
            say(f"{self.name}: {self.spending.requests} requests; {self.spending.cost}")

    def _say_repeated(self, given: Mapping[Draw, Given]) -> None:
        """Warn where samples are not what they are paid for."""
        several, same = repeated(given)
        if several and 2 * same >= several:
            self.context.console.warn(
                f"{self.name}: {same} of {several} prompts have one answer over and over, though several samples of each "
                "are paid for: the endpoint may ignore temperature and seed, or there is one right answer. Repeats are "
                "one answer to the filter duplicates; samples: 1 costs less."
            )
