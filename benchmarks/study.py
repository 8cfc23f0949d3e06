"""The on-policy study: seven methods in equal processor time from one warm start a seed; `onpolicy.py --study` runs it.

Everything that is finished lies in the folder and is not done again: the cut and the teacher's held-out answers,
a warm start a seed, a screen and an arm each as one JSON file. An interrupted screen or arm is run again.
Each trains and is scored in a process of its own, one after the other.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import study_table
from protocol import alone

METHODS = ("sft", "seqkd", "kd", "gkd", "minillm", "distillm", "opd")
RATES = (5e-5, 1.5e-5, 1.5e-4, 5e-4)  # of equal sums the first one is taken
SCREENED_SHARE = 1 / 3  # of an arm's time
MARKS, SCREENING, ON_THE_WAY = 2, 24, 24  # marks of time; prompts of a screen, and of the marks on the way
PACE = 3.0  # seconds of a step, before any is known
SCRIPT = str(Path(__file__).with_name("onpolicy.py"))


@dataclass(frozen=True)
class Settings:
    """What all arms of a folder have in common."""

    minutes: float
    questions: int  # that are trained on
    prompts: int  # that are scored
    warm_steps: int
    threads: int


class Study:
    """A folder with what is finished, and the way to what is not.

    Raises:
        SystemExit: the folder was made with other settings.
    """

    def __init__(self, folder: Path, settings: Settings, say: Callable[[str], None]) -> None:
        self.folder, self.settings, self.say = folder.resolve(), settings, say
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = self._once("settings", lambda: asdict(settings))
        if kept != asdict(settings):
            raise SystemExit(f"{folder} was made with {kept}: give the same options, or another --folder")

    def arm(self, method: str, seed: int) -> dict[str, Any]:
        """The result of an arm, with everything before it that is not there yet."""
        return self._once(f"arm-{method}-{seed}", lambda: self._arm(method, seed))

    def result(self, name: str) -> dict[str, Any] | None:
        """What is finished under a name, as `arm-kd-0`."""
        file = self.folder / f"{name}.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    def _arm(self, method: str, seed: int) -> dict[str, Any]:
        screen = self._once(f"screen-{method}", lambda: self._screen(method))
        seconds = 60 * self.settings.minutes
        return self._trained(method, seed, screen["rate"], seconds, screen["pace"])

    def _screen(self, method: str) -> dict[str, Any]:
        """The rate with the least sum of both KLs on other prompts, on the first seed."""
        seconds = 60 * self.settings.minutes * SCREENED_SHARE
        tried, pace = [], PACE
        for rate in RATES:
            try:
                result = self._trained(method, 0, rate, seconds, pace, screening=True)
            except RuntimeError as error:  # a rate that ends in numbers that are not finite is none to choose
                self.say(f"    screen {method} at {rate:g}: {str(error)[-500:]}")
                continue
            pace = result["seconds"] / result["steps"]
            tried.append({"rate": rate, "sum_of_kls": study_table.sum_of_kls(result["scores"]), "pace": pace})
            self.say(f"    screen {method}: {tried[-1]}")
        if not tried:
            raise RuntimeError(f"no rate of {method} could be tried")
        return min(tried, key=lambda one: one["sum_of_kls"]) | {"tried": tried}

    def _trained(
        self, method: str, seed: int, rate: float, seconds: float, pace: float, *, screening: bool = False
    ) -> dict[str, Any]:
        """Train an arm and score its copies."""
        self.warm(seed)
        marks = 1 if screening else MARKS
        with tempfile.TemporaryDirectory(dir=self.folder) as out:
            options = {"out": out, "seed": seed, "warm": self.settings.warm_steps, "method": method}
            options |= {"rate": rate, "seconds": seconds, "marks": marks, "pace": pace}
            result = self._alone("train", folder=str(self.folder), **options)
            copies = [str(Path(out) / str(mark + 1)) for mark in range(marks)]
            if screening:
                return result | {"scores": self._score(copies[-1], "screen", SCREENING, False)}
            few = min(ON_THE_WAY, self.settings.prompts)
            curve = [self._score(copy, "heldout", few, False) for copy in copies]
            scores = self._score(copies[-1], "heldout", self.settings.prompts, True)
            return result | {"method": method, "rate": rate, "scores": scores, "curve": curve}

    def warm(self, seed: int) -> dict[str, Any]:
        """The warm start of a seed, with its scores."""

        def make() -> dict[str, Any]:
            options = {"folder": str(self.folder), "seed": seed, "warm": self.settings.warm_steps}
            result = self._alone("warm_start", **options)
            return result | {"scores": self._score(result["student"], "heldout", self.settings.prompts, True)}

        self._once("prepared", self._prepare)
        return self._once(f"warm-{seed}", make)

    def _prepare(self) -> dict[str, Any]:
        sizes = {"questions": self.settings.questions, "prompts": self.settings.prompts}
        return self._alone("prepare", folder=str(self.folder), screening=SCREENING, **sizes)

    def _score(self, student: str, rows: str, most: int, text: bool) -> dict[str, Any]:
        file = str(self.folder / f"{rows}.jsonl")
        return self._alone("score", file=file, student=student, most=most, text=text)

    def _alone(self, task: str, **options: Any) -> dict[str, Any]:
        made: dict[str, Any] = alone(SCRIPT, task, threads=self.settings.threads, **options)
        return made

    def _once(self, name: str, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """The result under a name; it is made where there is none, and is there whole or not at all."""
        if (found := self.result(name)) is not None:
            return found
        if name != "settings":
            self.say(f"    {name} ...")
        half = self.folder / f"{name}.half"
        half.write_text(json.dumps(make()), encoding="utf-8")
        os.replace(half, self.folder / f"{name}.json")
        return self.result(name) or {}


def study(
    folder: Path,
    settings: Settings,
    methods: Sequence[str],
    seeds: Sequence[int],
    docs: Path | None,
    command: str,
    say: Callable[[str], None],
) -> None:
    """Run what is missing of these arms; print the table of all that are there, and keep a whole one in the docs."""
    for abandoned in folder.glob("tmp*"):  # of a process that was killed
        shutil.rmtree(abandoned, ignore_errors=True)
    it = Study(folder, settings, say)
    for seed in seeds:  # all methods of a seed, so that an unfinished study compares like with like
        for method in methods:
            try:
                it.arm(method, seed)
            except RuntimeError as error:  # the next start tries it again; the others need not wait
                say(f"    {method}, seed {seed}: {str(error)[-500:]}")
    every = range(max(seeds) + 1)
    arms = {
        method: [found for seed in every if (found := it.result(f"arm-{method}-{seed}")) is not None]
        for method in METHODS
    }
    warm = [found for seed in every if (found := it.result(f"warm-{seed}")) is not None]
    screens = {name: found for name in METHODS if (found := it.result(f"screen-{name}")) is not None}
    table = study_table.table(warm, {name: runs for name, runs in arms.items() if runs}, screens)
    table += f"\n\n{study_table.ended(folder / 'heldout.jsonl')}"
    say(table)
    if docs is not None and all(len(runs) == len(every) > 1 for runs in arms.values()):
        study_table.keep(docs, table, command)
        say(f"written to {docs}")
