"""Write the teacher's answers and leave an artifact. Each answer is on disk as soon as it is finished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from potstill.data.prompts import Prompt
from potstill.generate.request import Completion, GenerationProgress, Request
from potstill.generate.sampling import Sampling
from potstill.recipe.specs import EngineChoice
from potstill.stages._artifact import produce
from potstill.stages._context import Context
from potstill.stages._rows import ANSWERS
from potstill.store.artifacts import Artifact
from potstill.store.lines import append_line, read_journal, write_journal, write_lines

VERSION = 2  # raised when the answers change their meaning, so that old ones are not taken for new ones
JOURNAL = ".journal.jsonl"
PORTION = 8  # batches in a portion of answers
Answer = tuple[int, int]  # prompt, sample


def write_answers(
    name: str,
    engine: EngineChoice,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    batch_rows: int,
    context: Context,
) -> Artifact:
    """Write all answers. Draws depend on seed, prompt and sample, never on the batch."""
    reader = context.setup.readers.teacher_reader
    request = Request(
        teacher=context.setup.teacher,
        prompts=[prompt.ids for prompt in prompts],
        sampling=sampling,
        stop_ids=reader.stop_ids,
        pad_id=reader.pad_id,
        seed=context.setup.data_seed,
        batch_rows=batch_rows,
        vocabulary=reader.vocabulary.size,
        samples=max(prompt.samples for prompt in prompts),
        should_stop=lambda: bool(context.stop_signal()),
    )
    inputs = {
        "version": VERSION,
        "teacher": context.setup.teacher.fingerprint,
        "engine": context.identity(engine),
        "prompts": [[prompt.row_id, prompt.ids, prompt.samples] for prompt in prompts],
        "sampling": asdict(sampling),
        "stop_ids": sorted(request.stop_ids),
        "seed": context.setup.data_seed,
        # In half precision the rows of a batch round each other.
        "batch_rows": None if getattr(context.setup.teacher, "batch_invariant", False) else batch_rows,
    }
    writing = Writing(name, engine, request, prompts, context)
    return produce(context, "generate", name, inputs, writing.build)


@dataclass(frozen=True)
class Writing:
    """Answers on their way from an engine to the disk."""

    name: str
    engine: EngineChoice
    request: Request
    prompts: Sequence[Prompt]
    context: Context

    def build(self, folder: Path) -> Mapping[str, Any]:
        """Write what the journal in `folder` does not hold yet, and put all answers in order."""
        journal, total = folder / JOURNAL, sum(prompt.samples for prompt in self.prompts)
        lines = read_journal(journal)
        write_journal(journal, lines)  # without half a last line
        done = {(line["index"], line["sample"]) for line in lines}
        if done:
            self.context.console.say(f"{self.name}: {len(done)} of {total} answers were already written")
        if len(done) < total:
            self._write(journal, done, total)
            self.context.setup.teacher.close()
        return self._finish(folder)

    def _write(self, journal: Path, done: set[Answer], total: int) -> None:
        """Write what is missing, portion by portion.

        An interrupted portion is written again from its start: in half precision an answer depends on the
        rows beside it, and these must be the same ones.
        """
        engine, reader = self.context.plugin(self.engine), self.context.setup.readers.teacher_reader
        every = {(i, sample) for i in range(len(self.prompts)) for sample in range(self.request.samples)}
        with self.context.console.bar(f"{self.name}: the teacher writes", total) as bar:

            def progress(now: GenerationProgress) -> None:
                bar.update(len(done), f"{now.tokens / max(now.seconds, 1e-9):.0f} tok/s")

            for portion in self._portions():
                if portion <= done:
                    continue
                part = replace(self.request, skip=every - portion, on_progress=progress)
                for completion in engine.write(part, **self.engine.options):
                    answer = (completion.index, completion.sample)
                    if answer not in done:
                        done.add(answer)
                        append_line(journal, _line(completion, reader.decode(completion.ids)))
                self.context.stop_if_signalled()

    def _portions(self) -> list[set[Answer]]:
        """All answers in fixed portions that are written one after the other, long prompts first."""
        order = sorted(range(len(self.prompts)), key=lambda index: -len(self.prompts[index].ids))
        answers = [(index, sample) for index in order for sample in range(self.prompts[index].samples)]
        size = PORTION * self.request.batch_rows
        return [set(answers[start : start + size]) for start in range(0, len(answers), size)]

    def _finish(self, folder: Path) -> Mapping[str, Any]:
        lines = sorted(read_journal(folder / JOURNAL), key=lambda line: (line["index"], line["sample"]))
        rows = [{"row_id": self.prompts[line.pop("index")].row_id, **line} for line in lines]
        write_lines(folder / ANSWERS, rows)
        stopped = sum(row["finish"] == "stop" for row in rows)
        return {
            "answers": len(rows),
            "tokens": sum(len(row["ids"]) for row in rows),
            "stopped": stopped,
            "cut_off": len(rows) - stopped,
            "empty": sum(not row["text"].strip() for row in rows),
        }


def _line(completion: Completion, text: str) -> dict[str, Any]:
    return {
        "index": completion.index,
        "sample": completion.sample,
        "ids": list(completion.ids),
        "text": text,
        "finish": completion.finish,
    }
