"""generate: the teacher writes an answer to every prompt; each is on disk as soon as it is finished."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from potstill.recipe.defaults import Automatic, Facts
from potstill.recipe.specs import Auto, Conflict, Count, EngineChoice, Int
from potstill.recipe.stages import StageName, StageSpec

if TYPE_CHECKING:
    from potstill.data.answers import Written
    from potstill.data.prompts import Prompt
    from potstill.generate.request import Request
    from potstill.stages._context import Context, State
    from potstill.store.artifacts import Artifact

VERSION = 2  # raised when the answers change their meaning, so that old ones are not taken for new ones
ANSWERS = "answers.jsonl"
JOURNAL = "journal.jsonl"
PORTION = 8  # batches in a portion of answers


class Generate(StageSpec):
    """The teacher writes answers to the training prompts."""

    needs: ClassVar[frozenset[str]] = frozenset({"text"})

    verb: Literal["generate"] = "generate"
    name: StageName = "generate"
    engine: EngineChoice = EngineChoice(name="local")
    """What runs the teacher: local loads its weights into this process."""
    max_new_tokens: Count = 128
    """Most tokens in an answer."""
    sampling_temperature: Annotated[float, Field(ge=0)] = 0.7
    """0 is greedy: always the likeliest token."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Draw from the likeliest tokens that hold this much probability; 1 is off."""
    top_k: Int = 0
    """Draw from so many likeliest tokens; 0 is off."""
    batch_rows: Count | Auto = "auto"
    """Answers written side by side."""
    samples: Count = 1
    """Answers per prompt."""

    def conflicts(self) -> Iterator[Conflict]:
        if self.sampling_temperature > 0:
            return
        why = "because sampling_temperature 0 is greedy"
        fix = "Raise sampling_temperature, or leave this out."
        if self.samples > 1:
            yield Conflict("samples", f"{self.samples} answers would be the same text, {why}.", fix)
        for key in ("top_p", "top_k"):
            if self.changed(key):
                yield Conflict(key, f"has no effect, {why}.", fix)

    def automatic(self, facts: Facts) -> dict[str, Automatic]:
        if self.batch_rows != "auto":
            return {}
        usual = 128 if facts.accelerated else 32
        rows = usual if facts.rows is None else max(1, min(usual, facts.rows * self.samples))
        return {"batch_rows": (rows, f"chosen for {facts.machine}; small batches leave it waiting")}


def run(spec: Generate, state: State, context: Context) -> State:
    """Write all answers. Draws depend on seed, prompt and sample, never on the batch."""
    from potstill.stages import _artifact, _rows

    spec, defaults = context.settle(spec, state)
    prompts, left_out = _rows.prompts(spec, context)
    request = _request(spec, prompts, context)
    exact = getattr(context.setup.teacher, "batch_invariant", False)
    inputs = {
        "version": VERSION,
        "teacher": context.setup.teacher.fingerprint,
        "engine": context.identity(spec.engine),
        "prompts": [[prompt.row_id, prompt.ids, prompt.samples] for prompt in prompts],
        "sampling": asdict(request.sampling),
        "stop_ids": sorted(request.stop_ids),
        "seed": context.seed,
        # In half precision the rows of a batch round each other.
        "batch_rows": None if exact else spec.batch_rows,
    }
    answers = _artifact.produce(
        context, "generate", spec.name, inputs, lambda folder: _build(spec, request, prompts, context, folder)
    )
    return state.after(
        spec, answers, defaults, answers=answers, answer_tokens=spec.max_new_tokens, left_out=left_out
    )


def read(artifact: Artifact) -> list[Written]:
    """The answers of a finished stage, in the prompts' order."""
    from potstill.data.answers import Written
    from potstill.store.lines import read_lines

    return [
        Written(line["row_id"], line["sample"], tuple(line["ids"]), line["text"], line["finish"])
        for line in read_lines(artifact.path / ANSWERS)
    ]


def _request(spec: Generate, prompts: Sequence[Prompt], context: Context) -> Request:
    from potstill.generate.request import Request
    from potstill.generate.sampling import Sampling

    reader = context.setup.readers.asked
    assert spec.batch_rows != "auto"
    return Request(
        teacher=context.setup.teacher,
        prompts=[prompt.ids for prompt in prompts],
        sampling=Sampling(spec.max_new_tokens, spec.sampling_temperature, spec.top_p, spec.top_k),
        stop_ids=reader.stop_ids,
        pad_id=reader.pad_id,
        seed=context.seed,
        batch_rows=spec.batch_rows,
        vocabulary=reader.vocabulary.size,
        samples=max(prompt.samples for prompt in prompts),
        should_stop=lambda: bool(context.stop_signal()),
    )


def _build(
    spec: Generate, request: Request, prompts: Sequence[Prompt], context: Context, folder: Path
) -> Mapping[str, Any]:
    from potstill.store.lines import read_lines, write_lines

    done = {(line["index"], line["sample"]) for line in read_lines(folder / JOURNAL)}
    write_lines(folder / JOURNAL, read_lines(folder / JOURNAL))  # without half a last line
    total = sum(prompt.samples for prompt in prompts)
    if done:
        context.console.say(f"{spec.name}: {len(done)} of {total} answers were already written")
    if len(done) < total:
        _write(spec, request, prompts, context, folder, done)
    return _finish(folder, prompts)


def _write(
    spec: Generate,
    request: Request,
    prompts: Sequence[Prompt],
    context: Context,
    folder: Path,
    done: set[tuple[int, int]],
) -> None:
    """Write what is missing, portion by portion.

    An interrupted portion is written again from its start: in half precision an answer depends on the rows
    beside it, and these must be the same ones.
    """
    from potstill.store.lines import append_line

    engine, tokenizer = context.plugin(spec.engine), context.setup.readers.asked.tokenizer
    every = {(index, sample) for index in range(len(prompts)) for sample in range(request.samples)}
    total = sum(prompt.samples for prompt in prompts)
    with context.console.bar(f"{spec.name}: the teacher writes", total) as bar:
        for portion in _portions(prompts, PORTION * request.batch_rows):
            if portion <= done:
                continue
            part = replace(
                request,
                skip=every - portion,
                on_progress=lambda p: bar.update(len(done), f"{p.tokens / max(p.seconds, 1e-9):.0f} tok/s"),
            )
            for completion in engine.write(part, **spec.engine.options):
                answer = (completion.index, completion.sample)
                if answer in done:
                    continue
                done.add(answer)
                ids = list(completion.ids)
                text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
                line = {"index": completion.index, "sample": completion.sample, "ids": ids, "text": text}
                append_line(folder / JOURNAL, line | {"finish": completion.finish})
            context.stop_if_signalled()


def _portions(prompts: Sequence[Prompt], size: int) -> list[set[tuple[int, int]]]:
    """The answers, (prompt, sample), in fixed portions that are written one after the other."""
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index].ids))
    answers = [(index, sample) for index in order for sample in range(prompts[index].samples)]
    return [set(answers[start : start + size]) for start in range(0, len(answers), size)]


def _finish(folder: Path, prompts: Sequence[Prompt]) -> Mapping[str, Any]:
    from potstill.store.lines import read_lines, write_lines

    lines = sorted(read_lines(folder / JOURNAL), key=lambda line: (line["index"], line["sample"]))
    rows = [
        {"row_id": prompts[line["index"]].row_id, **{k: line[k] for k in ("sample", "ids", "text", "finish")}}
        for line in lines
    ]
    write_lines(folder / ANSWERS, rows)
    (folder / JOURNAL).unlink()
    stopped = sum(row["finish"] == "stop" for row in rows)
    return {
        "answers": len(rows),
        "tokens": sum(len(row["ids"]) for row in rows),
        "stopped": stopped,
        "cut_off": len(rows) - stopped,
        "empty": sum(not row["text"].strip() for row in rows),
    }
