"""Write the teacher's answers and leave an artifact. Each answer is on disk as soon as it is finished.

An answer is known by its prompt's ids and its draw. Under the same teacher, engine, sampling and seed it is
written once in a store: what other artifacts, or interrupted stages, hold already is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from potstill.data.prompts import Prompt
from potstill.devices import ranks
from potstill.generate.request import Completion, GenerationProgress, Request
from potstill.generate.sampling import Sampling
from potstill.recipe.specs import EngineChoice
from potstill.stages._artifact import produce
from potstill.stages._context import Context
from potstill.stages._rows import ANSWERS
from potstill.store.artifacts import Artifact, key_of
from potstill.store.disk import write_text
from potstill.store.lines import append_line, read_journal, read_lines, write_journal, write_lines

STAGE = "generate"
VERSION = 3  # raised when the answers change their meaning, so that old ones are not taken for new ones
JOURNAL = ".journal.jsonl"
SETTINGS = ".settings"
PORTION = 8  # batches in a portion of answers
Draw = tuple[str, int]  # what identifies a prompt's ids, and which of its answers
Line = dict[str, Any]


def write_answers(
    name: str,
    engine: EngineChoice,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    batch_rows: int,
    context: Context,
) -> Artifact:
    """Write all answers. Draws depend on seed, prompt and sample, never on the batch or on other prompts."""
    reader = context.setup.readers.teacher_reader
    request = Request(
        teacher=context.setup.teacher,
        prompts=(),
        sampling=sampling,
        stop_ids=reader.stop_ids,
        pad_id=reader.pad_id,
        seed=context.setup.data_seed,
        batch_rows=batch_rows,
        vocabulary=reader.vocabulary.size,
        unused=reader.unused_ids,
        should_stop=lambda: bool(context.stop_signal()),
    )
    settings = {
        "version": VERSION,
        "teacher": context.setup.teacher.fingerprint,
        "engine": context.identity(engine),
        "sampling": asdict(sampling),
        "stop_ids": sorted(request.stop_ids),
        "seed": context.setup.data_seed,
        # In half precision the rows of a batch round each other.
        "batch_rows": None if getattr(context.setup.teacher, "batch_invariant", False) else batch_rows,
    }
    if request.unused:
        settings["unused"] = request.unused
    inputs = {
        **settings,
        "settings": key_of("settings", settings),
        "prompts": [[prompt.row_id, prompt.ids, prompt.samples] for prompt in prompts],
    }
    writing = Writing(name, engine, request, prompts, inputs["settings"], context)
    return produce(context, STAGE, name, inputs, writing.build, together=True)


@dataclass(frozen=True)
class Writing:
    """Answers on their way from an engine to the disk."""

    name: str
    engine: EngineChoice
    request: Request
    prompts: Sequence[Prompt]
    settings: str
    context: Context

    @property
    def batch_invariant(self) -> bool:
        """Whether an answer does not depend on the rows beside it: in half precision they round each other."""
        return bool(getattr(self.request.teacher, "batch_invariant", False))

    @cached_property
    def ids(self) -> Mapping[str, tuple[int, ...]]:
        """The prompts, each once."""
        return {_digest(prompt.ids): tuple(prompt.ids) for prompt in self.prompts}

    @cached_property
    def rows(self) -> Sequence[tuple[str, int, Draw]]:
        """Row, sample and draw of every answer. Rows with one prompt have draws of their own, unless all are the
        likeliest text."""
        used: Counter[str] = Counter()
        rows = []
        for prompt in self.prompts:
            digest = _digest(prompt.ids)
            for sample in range(prompt.samples):
                rows.append((prompt.row_id, sample, (digest, used[digest])))
                used[digest] += self.request.sampling.temperature > 0
        return rows

    def build(self, folder: Path) -> Mapping[str, Any]:
        """Write what the journal in `folder` does not hold yet, and put all answers in order."""
        wanted = {draw for _, _, draw in self.rows}
        kept, done = ranks.by_first(lambda: self._begin(folder, wanted))
        if kept:
            beside = (
                "" if self.batch_invariant else ", in half precision rounded beside the rows of those runs"
            )
            already = f"{len(kept)} of {len(wanted)} answers are kept from earlier runs{beside}"
            self.context.console.say(f"{self.name}: {already}")
        if done - kept:
            already = f"{len(done - kept)} of {len(wanted)} answers were already written"
            self.context.console.say(f"{self.name}: {already}")
        if done < wanted:
            self._write(folder, wanted - kept, done)
            self.context.setup.teacher.close()
        self.context.stop_together()
        return ranks.by_first(lambda: self._finish(folder))

    def _begin(self, folder: Path, wanted: set[Draw]) -> tuple[set[Draw], set[Draw]]:
        """The answers kept from earlier runs, and all that are there; the journal holds them."""
        write_text(folder / SETTINGS, self.settings)
        if any(folder.glob(f"{JOURNAL}*")):
            lines = [line for line in _joined(folder) if _draw(line) in wanted]
        else:
            lines = [{**line, "kept": True} for draw, line in self._earlier(folder).items() if draw in wanted]
        write_journal(folder / JOURNAL, lines)  # without half a last line
        return {_draw(line) for line in lines if line.get("kept")}, {_draw(line) for line in lines}

    def _earlier(self, folder: Path) -> dict[Draw, Line]:
        """The answers with these settings that the store holds: of finished stages, else of unfinished ones."""
        store, earlier = self.context.store, dict[Draw, Line]()
        for other in store.underway(STAGE):
            with suppress(OSError):
                if other != folder and (other / SETTINGS).read_text() == self.settings:
                    earlier |= {_draw(line): _answer(line) for line in _lines(other)}
        for artifact in store.alike(STAGE, "settings", self.settings):
            for line in read_lines(artifact.path / ANSWERS):
                line = _answer({**line, "sample": line["draw"]})
                earlier[_draw(line)] = line
        return earlier

    def _write(self, folder: Path, missing: set[Draw], done: set[Draw]) -> None:
        """Write this process's share of the answers that no earlier run left, portion by portion.

        An interrupted portion is written again from its start: in half precision an answer depends on the
        rows beside it, and these must be the same ones.
        """
        engine, reader = self.context.plugin(self.engine), self.context.setup.readers.teacher_reader
        portions = [portion for portion in self._portions(missing) if not portion <= done]
        # As many for each process: of a sharded teacher every one has a part.
        portions = [*ranks.mine([*portions, *[set[Draw]()] * (-len(portions) % ranks.world())])]
        agreed = ranks.anyone if getattr(self.context.setup.teacher, "sharded", False) else bool
        journal = folder / (JOURNAL if ranks.first() else f"{JOURNAL}.{ranks.rank()}")
        # The first process shows its own share: the others have as much.
        total = len(done) + sum(len(portion - done) for portion in portions)
        with self.context.console.bar(f"{self.name}: the teacher writes", total, len(done)) as bar:

            def progress(now: GenerationProgress) -> None:
                bar.update(len(done), f"{now.tokens / max(now.seconds, 1e-9):.0f} tok/s")

            for portion in portions:
                prompts = {digest for digest, _ in portion}
                digests = [digest for digest in self.ids if digest in prompts]
                for completion in engine.write(self._part(digests, portion, progress), **self.engine.options):
                    line = _line(digests[completion.index], completion, reader.decode(completion.ids))
                    if _draw(line) not in done:
                        done.add(_draw(line))
                        append_line(journal, line)
                if agreed(bool(self.context.stop_signal())):
                    return

    def _part(self, digests: Sequence[str], portion: set[Draw], progress: Any) -> Request:
        """The request for one portion."""
        samples = 1 + max((sample for _, sample in portion), default=0)
        every = {(index, sample) for index in range(len(digests)) for sample in range(samples)}
        return replace(
            self.request,
            prompts=[self.ids[digest] for digest in digests],
            samples=samples,
            skip={(index, sample) for index, sample in every if (digests[index], sample) not in portion},
            on_progress=progress,
        )

    def _portions(self, missing: set[Draw]) -> list[set[Draw]]:
        """The answers in fixed portions that are written one after the other, long prompts first."""
        order = {
            digest: place for place, digest in enumerate(sorted(self.ids, key=lambda d: -len(self.ids[d])))
        }
        draws = sorted(missing, key=lambda draw: (order[draw[0]], draw[1]))
        size = PORTION * self.request.batch_rows
        return [set(draws[start : start + size]) for start in range(0, len(draws), size)]

    def _finish(self, folder: Path) -> Mapping[str, Any]:
        by_draw = {_draw(line): _answer(line) for line in _joined(folder)}
        rows = [
            {"row_id": row_id, **by_draw[draw], "sample": sample, "draw": draw[1]}
            for row_id, sample, draw in self.rows
        ]
        write_lines(folder / ANSWERS, rows)
        stopped = sum(row["finish"] == "stop" for row in rows)
        return {
            "answers": len(rows),
            "tokens": sum(len(row["ids"]) for row in rows),
            "stopped": stopped,
            "cut_off": len(rows) - stopped,
            "empty": sum(not row["text"].strip() for row in rows),
        }


def _lines(folder: Path) -> list[Line]:
    """The lines of every process's journal."""
    return [line for journal in sorted(folder.glob(f"{JOURNAL}*")) for line in read_journal(journal)]


def _joined(folder: Path) -> list[Line]:
    """The lines of every process's journal, which are in the first one's from now on."""
    lines = _lines(folder)
    write_journal(folder / JOURNAL, lines)
    for journal in folder.glob(f"{JOURNAL}.*"):
        journal.unlink()
    return lines


def _digest(ids: Sequence[int]) -> str:
    return key_of("prompt", {"ids": list(ids)})[:32]


def _draw(line: Mapping[str, Any]) -> Draw:
    return line["prompt"], line["sample"]


def _answer(line: Mapping[str, Any]) -> Line:
    """What a line says of an answer, and nothing of the row or the run."""
    return {key: line[key] for key in ("prompt", "sample", "ids", "text", "finish")}


def _line(digest: str, completion: Completion, text: str) -> Line:
    return {
        "prompt": digest,
        "sample": completion.sample,
        "ids": list(completion.ids),
        "text": text,
        "finish": completion.finish,
    }
