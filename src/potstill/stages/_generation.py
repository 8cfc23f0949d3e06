"""Write the teacher's answers and leave an artifact. Each answer is on disk as soon as it is finished.

An answer is known by its prompt's ids and its draw. Under the same teacher, engine, sampling and seed it is
written once in a store: what other artifacts, or interrupted stages, hold already is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from potstill.cache.header import Header
from potstill.data.prompts import Prompt
from potstill.devices import ranks
from potstill.generate.request import GenerationProgress, Request, digest_of
from potstill.generate.sampling import Sampling
from potstill.recipe.specs import EngineChoice
from potstill.stages._answer_lines import Draw, Line, answer_of, draw_of, line_of
from potstill.stages._artifact import produce
from potstill.stages._context import Context
from potstill.stages._rows import ANSWERS
from potstill.stages._states import KEPT, SHOWN, States, finish_states, header_of, opened
from potstill.store.artifacts import Artifact, key_of
from potstill.store.disk import write_text
from potstill.store.lines import append_line, join_journals, read_journals, read_lines, write_lines

STAGE = "generate"
VERSION = 3  # raised when the answers change their meaning, so that old ones are not taken for new ones
JOURNAL = ".journal.jsonl"
SETTINGS = ".settings"
OF_TEXT = (
    "version",
    "sampling",
    "stop_ids",
    "seed",
)  # inputs that decide on the words, whoever writes them down
PORTION = 8  # batches in a portion of answers


def write_answers(
    name: str,
    engine: EngineChoice,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    batch_rows: int,
    context: Context,
    *,
    keep: str | None = None,
) -> Artifact:
    """Write all answers, and what `keep` says of them. Draws depend on seed, prompt and sample, not on other prompts."""
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
        keep=keep is not None and engine.name == "local",
        likeliest=SHOWN if keep == "topk" and engine.name != "local" else 0,
    )
    pace: frozenset[str] = getattr(context.plugin(engine), "PACE", frozenset())
    options = {key: value for key, value in engine.options.items() if key not in pace}
    settings = {
        "version": VERSION,
        "teacher": context.setup.teacher.fingerprint,
        "engine": context.identity(engine.model_copy(update={"options": options})),
        "sampling": asdict(sampling),
        "stop_ids": sorted(request.stop_ids),
        "seed": context.setup.data_seed,
        # In half precision the rows of a batch round each other.
        "batch_rows": None if getattr(context.setup.teacher, "batch_invariant", False) else batch_rows,
    }
    if request.unused:
        settings["unused"] = request.unused
    request = replace(request, settings={name: settings[name] for name in OF_TEXT})
    inputs = {
        **settings,
        "settings": key_of("settings", settings),
        "prompts": [[prompt.row_id, prompt.ids, prompt.samples] for prompt in prompts],
    }
    kept = None if keep is None else header_of(keep, name, engine.name, context)
    if kept is not None:
        inputs["keep"] = keep if keep == "hidden" else [keep, kept.setting]
    if terms := getattr(context.setup.teacher, "terms", ""):
        inputs["terms"] = terms  # they stand in the manifest; the answers are taken from the store
    writing = Writing(name, engine, request, prompts, inputs["settings"], context, kept)
    return produce(context, STAGE, name, inputs, writing.build, together=True, goes_on=(KEPT,))


@dataclass(frozen=True)
class Writing:
    """Answers on their way from an engine to the disk."""

    name: str
    engine: EngineChoice
    request: Request
    prompts: Sequence[Prompt]
    settings: str
    context: Context
    kept: Header | None = None  # of the cache of what answers were drawn from

    @property
    def batch_invariant(self) -> bool:
        """Whether an answer does not depend on the rows beside it: in half precision they round each other."""
        return bool(getattr(self.request.teacher, "batch_invariant", False))

    @cached_property
    def ids(self) -> Mapping[str, tuple[int, ...]]:
        """The prompts, each once."""
        return {digest_of(prompt.ids): tuple(prompt.ids) for prompt in self.prompts}

    @cached_property
    def rows(self) -> Sequence[tuple[str, int, Draw]]:
        """Row, sample and draw of every answer. Rows with one prompt have draws of their own, unless all are the
        likeliest text."""
        used: Counter[str] = Counter()
        rows = []
        for prompt in self.prompts:
            name = digest_of(prompt.ids)
            for sample in range(prompt.samples):
                rows.append((prompt.row_id, sample, (name, used[name])))
                used[name] += self.request.sampling.temperature > 0
        return rows

    def build(self, folder: Path) -> Mapping[str, Any]:
        """Write what the journal in `folder` does not hold yet, and put all answers in order."""
        wanted = {draw for _, _, draw in self.rows}
        kept, done = ranks.by_first(lambda: self._begin(folder, wanted))
        noted = {"stage": self.name, "journal": str((folder / JOURNAL).resolve()), "total": len(wanted)}
        self.context.announce({"writing": noted})  # for `potstill status`
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
            lines = [line for line in self._joined(folder) if draw_of(line) in wanted]
        else:
            lines = [{**line, "kept": True} for draw, line in self._earlier(folder).items() if draw in wanted]
        join_journals(folder / JOURNAL, lines)  # without half a last line
        return {draw_of(line) for line in lines if line.get("kept")}, {draw_of(line) for line in lines}

    def _earlier(self, folder: Path) -> dict[Draw, Line]:
        """The answers with these settings that the store holds: of finished stages, else of unfinished ones."""
        store, earlier = self.context.store, dict[Draw, Line]()
        for other in store.underway(STAGE):
            with suppress(OSError):
                if other != folder and (other / SETTINGS).read_text() == self.settings:
                    earlier |= {draw_of(line): answer_of(line) for line in self._lines(other)}
        for artifact in store.alike(STAGE, "settings", self.settings):
            for line in read_lines(artifact.path / ANSWERS):
                line = answer_of({**line, "sample": line["draw"]})
                earlier[draw_of(line)] = line
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
        said = f"{self.name}: the teacher writes"
        with self.context.console.bar(said, total, len(done)) as bar, self._states(folder) as states:

            def progress(now: GenerationProgress) -> None:
                bar.update(len(done), f"{now.tokens / max(now.seconds, 1e-9):.0f} tok/s")

            if getattr(engine, "MANY", False):  # its workers have journals of their own
                parts = [(self._prompts_of(portion), portion) for portion in portions]
                requests = [replace(self._part(*part, progress), journal=journal) for part in parts]
                for number, completion in engine.write(requests, **self.engine.options):
                    done.add((parts[number][0][completion.index], completion.sample))
                return
            for portion in portions:
                digests = self._prompts_of(portion)
                for completion in engine.write(self._part(digests, portion, progress), **self.engine.options):
                    line = line_of(digests[completion.index], completion, reader.decode(completion.ids))
                    if draw_of(line) not in done:
                        done.add(draw_of(line))
                        append_line(journal, line)
                        states.add(self.ids[line["prompt"]], completion)
                states.flush()
                if agreed(bool(self.context.stop_signal())):
                    return

    def _states(self, folder: Path) -> States:
        """Where the states go that answers are drawn from; nowhere if they are not kept."""
        if self.kept is None:
            return States(None)
        return opened(folder / KEPT, self.kept, self.request)

    def _prompts_of(self, portion: set[Draw]) -> list[str]:
        """The prompts of a portion, in their order."""
        wanted = {digest for digest, _ in portion}
        return [digest for digest in self.ids if digest in wanted]

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

    def _lines(self, folder: Path) -> list[Line]:
        """The lines of every process's and worker's journal; workers leave the text out."""
        decode = self.context.setup.readers.teacher_reader.decode
        lines = read_journals(folder / JOURNAL)
        return [line if "text" in line else {**line, "text": decode(line["ids"])} for line in lines]

    def _joined(self, folder: Path) -> list[Line]:
        """The lines of every journal, which are in the first process's from now on."""
        lines = self._lines(folder)
        join_journals(folder / JOURNAL, lines)
        return lines

    def _finish(self, folder: Path) -> Mapping[str, Any]:
        by_draw = {draw_of(line): answer_of(line) for line in self._joined(folder)}
        rows = [
            {"row_id": row_id, **by_draw[draw], "sample": sample, "draw": draw[1]}
            for row_id, sample, draw in self.rows
        ]
        write_lines(folder / ANSWERS, rows)
        kept = {"kept": finish_states(folder / KEPT)} if (folder / KEPT).is_dir() else {}
        stopped = sum(row["finish"] == "stop" for row in rows)
        teacher = self.context.setup.teacher
        return {
            "answers": len(rows),
            "tokens": sum(len(row["ids"]) for row in rows),
            "stopped": stopped,
            "cut_off": len(rows) - stopped,
            "empty": sum(not row["text"].strip() for row in rows),
            **kept,
            "source": {
                "provider": "weights on this machine",
                "model": getattr(teacher, "name", ""),
                "licence": getattr(teacher, "licence", ""),
                "terms": getattr(teacher, "terms", ""),
                "date": f"{datetime.now(UTC):%Y-%m-%d}",
                "sampling": asdict(self.request.sampling),
            },
        }
