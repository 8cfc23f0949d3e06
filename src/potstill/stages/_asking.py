"""Ask a served teacher and leave an artifact: the answers that are used, and the others with their reasons."""

from __future__ import annotations

import json
import math
import shlex
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from potstill.console import Bar, typed
from potstill.data.prompts import Prompt
from potstill.errors import Interrupted, RecipeError
from potstill.generate.sampling import Sampling
from potstill.generate.served import Asked, Given, Spending, TextRequest
from potstill.recipe.specs import EngineChoice
from potstill.stages._artifact import produce
from potstill.stages._context import Context
from potstill.stages._rows import ANSWERS
from potstill.store.artifacts import Artifact, key_of
from potstill.store.disk import real
from potstill.store.lines import write_lines

STAGE = "generate"
VERSION = 4  # raised when the answers change their meaning, or the facts what they hold
JOURNAL = Path(".journal", "answers.sqlite")  # in the store, of which it is never freed
REJECTED = "rejected.jsonl"
SO_FAR = "answers-so-far.jsonl"  # in the folder of an interrupted run
SECONDS_BETWEEN_NOTES = 2.0
_KEYS = ("role", "content", "tool_calls", "tool_call_id", "name")
Judge: TypeAlias = Callable[[str, str, str], str]  # prompt, text, finish -> why it would not be trained on
Draw = tuple[int, int]  # the place of a conversation, and the number of the answer to it


def ask(
    name: str,
    engine: EngineChoice,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    workers: int,
    context: Context,
    judge: Judge = lambda prompt, text, finish: "",
) -> Artifact:
    """Ask for all answers. `judge` has a say on the first few, before the rest is paid for. What is paid for stands in the store's journal, whatever becomes of the stage."""
    pace: frozenset[str] = getattr(context.plugin(engine), "PACE", frozenset())
    settings = {key: value for key, value in engine.options.items() if key not in pace}
    asked, rows = conversations(prompts, sampling, context)
    asking = Asking(name, engine, asked, rows, sampling, workers, context, judge)
    inputs = {
        "version": VERSION,
        "teacher": context.setup.teacher.fingerprint,
        "engine": context.identity(engine.model_copy(update={"options": settings})),
        "sampling": asdict(sampling),
        "seed": context.setup.data_seed,
        "conversations": [[one.messages, one.tools] for one in asked],
        "rows": rows,
        # They stand in the manifest; made anew, the artifact costs nothing.
        "terms": getattr(context.setup.teacher, "terms", ""),
    }
    if (sent := _response_format(context)) is not None:
        inputs["response_format"] = sent
    return produce(context, STAGE, name, inputs, asking.build)


def _response_format(context: Context) -> dict[str, Any] | None:
    """The schema of the recipe's task as a request carries it."""
    return None if context.setup.task is None else context.setup.task.response_format


def _nothing(text: str) -> str:
    return ""


def conversations(
    prompts: Sequence[Prompt], sampling: Sampling, context: Context
) -> tuple[list[Asked], list[tuple[str, int, Draw]]]:
    """Every conversation once, and the row, sample and draw of every answer.

    Rows with one conversation have draws of their own, unless all are the likeliest text.
    """
    by_id = {row.id: row for row in context.setup.data.everything}
    templater = context.setup.readers.student.templater
    places: dict[str, int] = {}
    parts: list[tuple[Any, Any, int]] = []
    used: Counter[int] = Counter()
    rows: list[tuple[str, int, Draw]] = []
    for prompt in prompts:
        row = by_id[prompt.row_id]
        turns = tuple(_turn(message) for message in templater.conversation(row.for_teacher.prompt))
        place = places.setdefault(key_of("conversation", {"turns": turns, "tools": row.tools}), len(places))
        if place == len(parts):
            tokens = len(prompt.ids)
            if row.teacher_turns:  # about: the student's template need not take them
                tokens = len(templater.text_ids("\n".join(turn["content"] for turn in row.teacher_turns)))
            parts.append((turns, row.tools, tokens))
        for sample in range(prompt.samples):
            rows.append((prompt.row_id, sample, (place, used[place])))
            used[place] += sampling.temperature > 0
    numbers: dict[int, list[int]] = {}
    for _, _, (place, draw) in rows:
        numbers.setdefault(place, []).append(draw)
    asked = [
        Asked(turns, tokens, tuple(dict.fromkeys(numbers[place])), tools)
        for place, (turns, tools, tokens) in enumerate(parts)
    ]
    return asked, rows


def _turn(message: Mapping[str, Any]) -> dict[str, Any]:
    """A turn as the protocol writes it: arguments of a tool call are JSON text."""
    turn = {key: message[key] for key in _KEYS if message.get(key) is not None}
    if calls := turn.get("tool_calls"):
        turn["tool_calls"] = [_call(call) for call in calls]
    return turn


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = json.dumps(function["arguments"], sort_keys=True)
    return {**call, "function": {**function, "arguments": arguments}}


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
    spending: Spending = field(default=Spending(0, 0), init=False)
    noted: float = field(default=0.0, init=False)

    def build(self, folder: Path) -> Mapping[str, Any]:
        """Ask for what the journal does not hold, and put all answers in order."""
        context, total = self.context, sum(len(one.samples) for one in self.asked)
        task = context.setup.task
        bars: list[Bar] = []
        with ExitStack() as stack:

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
                on_progress=progress,
                should_stop=lambda: bool(context.stop_signal()),
            )
            engine = context.plugin(self.engine)
            given = {(one.index, one.sample): one for one in engine.write(request, **self.engine.options)}
        self._note(self.spending, last=True)
        if number := context.stop_signal():
            raise Interrupted(self._so_far(given), signal_number=number)
        return self._finish(folder, given)

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
        lines = [line for line in self._lines(given) if "text" in line]
        words = (
            f"stopped by a signal; {self.spending.done} of {self.spending.total} answers are in the journal"
        )
        if self.context.store.run is None or not lines:
            return f"{words}."
        place = self.context.store.run / SO_FAR
        write_lines(place, lines)
        return f"{words}, those that can be used in {place}."

    def _lines(self, given: Mapping[Draw, Given]) -> list[dict[str, Any]]:
        """What became of every sample of every row: its text, or why there is none."""
        lines = []
        for row_id, sample, draw in self.rows:
            one = given.get(draw, Given(*draw, reason="not asked"))
            line = {"row_id": row_id, "sample": sample, "draw": draw[1]}
            if one.reason:
                lines.append({**line, "stage": self.name, "reason": one.reason, "attempts": one.attempts})
            else:
                prompt = key_of("conversation", {"turns": self.asked[draw[0]].messages})[:32]
                lines.append({**line, "prompt": prompt, "ids": [], "text": one.text, "finish": one.finish})
        return lines

    def _finish(self, folder: Path, given: Mapping[Draw, Given]) -> Mapping[str, Any]:
        lines = self._lines(given)
        used = [line for line in lines if "text" in line]
        rejected = [line for line in lines if "text" not in line]
        write_lines(folder / ANSWERS, used)
        write_lines(folder / REJECTED, rejected)
        reasons = Counter(_kind(line) for line in rejected)
        models = Counter(one.echoed for one in given.values() if one.echoed)
        self._say(reasons, len(lines), models)
        if self.context.store.run is not None:
            (self.context.store.run / SO_FAR).unlink(missing_ok=True)
        trained = {row.id for row in self.context.setup.data.train}
        teacher: Any = self.context.setup.teacher
        now = self.spending
        return {
            "answers": len(used),
            "tokens": now.tokens_out,
            "stopped": sum(line["finish"] == "stop" for line in used),
            "cut_off": sum(line["finish"] == "length" for line in used),
            "rejected": dict(reasons),
            "left_out": dict(
                Counter(
                    f"{'' if line['row_id'] in trained else 'measured '}answer: {_kind(line)}"
                    for line in rejected
                )
            ),
            "per_request": _per_request(list(given.values())),
            "spent": {key: asdict(now)[key] for key in _SPENT} | {"cost": now.cost},
            "source": {
                "provider": urlsplit(teacher.endpoint).hostname or teacher.endpoint,
                "endpoint": teacher.endpoint,
                "model": teacher.model,
                "answered_by": dict(models),
                "answered_at": dict(Counter(one.endpoint for one in given.values() if one.endpoint)),
                "terms": teacher.terms,
                "date": _dates([one.at for one in given.values() if one.at]),
                "sampling": asdict(self.sampling)
                | (
                    {"retry_truncated": longer}
                    if (longer := self.engine.options.get("retry_truncated"))
                    else {}
                ),
            },
        }

    def _say(self, reasons: Counter[str], of: int, models: Counter[str]) -> None:
        say = self.context.console.say
        if len(models) > 1:
            names = ", ".join(f"{model} ({count})" for model, count in models.most_common())
            self.context.console.warn(f"{self.name}: more than one model answered: {names}")
        if reasons:
            words = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
            say(f"{self.name}: {reasons.total()} of {of} answers are not used: {words}")
        if self.spending.requests:
            say(f"{self.name}: {self.spending.requests} requests; {self.spending.cost}")


def _per_request(given: Sequence[Given]) -> dict[str, Any]:
    """The tokens of a mean request, of how many it is the mean (those whose reply states its usage), and for how many
    of these it is known what was paid."""
    stated = [one for one in given if one.tokens_in is not None and one.tokens_out is not None]
    n = len(stated)
    sums = {name: sum(getattr(one, name) for one in stated) for name in ("tokens_in", "tokens_out", "cached")}
    costs = [one.cost for one in stated if one.cost is not None]
    paid = {"priced": len(costs), "paid": math.fsum(costs)}
    return {"n": n, **paid, **({name: total / n for name, total in sums.items()} if n else {})}


def _kind(line: Mapping[str, Any]) -> str:
    """The reason of a rejected answer, without what the server said of this one."""
    return line["reason"].partition(" (")[0]


def _dates(moments: Sequence[float]) -> str:
    """The day of all these moments, or the first and the last one."""
    ends = (
        [f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d}" for moment in (min(moments), max(moments))]
        if moments
        else []
    )
    return " to ".join(dict.fromkeys(ends))


_SPENT = ("requests", "tokens_in", "tokens_out", "money", "currency", "unknown")
