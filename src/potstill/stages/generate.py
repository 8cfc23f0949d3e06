"""The teacher writes an answer to every prompt. Each answer is on disk as soon as it is finished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from potstill.generate import local
from potstill.generate.sampling import Sampling
from potstill.stages.common import ModelRef, World, append_line, produce, read_lines, write_lines
from potstill.store.artifacts import Artifact

ANSWERS = "answers.jsonl"
JOURNAL = "journal.jsonl"
PORTION = 8  # batches in a portion of answers


@dataclass(frozen=True)
class Prompt:
    """A prompt as the teacher reads it, and how many answers are wanted."""

    row_id: str
    ids: tuple[int, ...]
    samples: int = 1


@dataclass(frozen=True)
class Written:
    """One answer: ids without the prompt, with the stop token when the teacher ended it (`stop`)."""

    row_id: str
    sample: int
    ids: tuple[int, ...]
    text: str
    finish: str


def run(
    world: World,
    name: str,
    teacher: ModelRef,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    batch_rows: int,
    stop_ids: tuple[int, ...],
    pad_id: int,
) -> Artifact:
    """All answers to `prompts`. Draws depend on seed, prompt and sample, never on the batch."""
    inputs = {
        "teacher": [teacher.fingerprint, str(teacher.dtype)],
        "prompts": [[prompt.row_id, prompt.ids, prompt.samples] for prompt in prompts],
        "sampling": asdict(sampling),
        "stop_ids": sorted(stop_ids),
        "seed": world.seed,
        # In half precision the rows of a batch round each other.
        "batch_rows": None if teacher.dtype == torch.float32 else batch_rows,
    }

    total = sum(prompt.samples for prompt in prompts)
    portions = _portions(prompts, PORTION * batch_rows)

    def build(folder: Path) -> Mapping[str, Any]:
        done = {(line["index"], line["sample"]) for line in read_lines(folder / JOURNAL)}
        write_lines(folder / JOURNAL, read_lines(folder / JOURNAL))
        if done:
            world.console.say(f"{name}: {len(done)} of {total} answers were already written")
        if len(done) < total:
            _write(folder, done)
        return _finish(folder, prompts)

    def _write(folder: Path, done: set[tuple[int, int]]) -> None:
        loaded = teacher.load(world.device)
        most = max(prompt.samples for prompt in prompts)
        everything = {(index, sample) for index in range(len(prompts)) for sample in range(most)}
        with world.console.bar(f"{name}: the teacher writes", total) as bar:
            for portion in portions:
                if portion <= done:
                    continue
                for completion in local.generate(
                    loaded.model,
                    [prompt.ids for prompt in prompts],
                    sampling,
                    stop_ids=stop_ids,
                    pad_id=pad_id,
                    seed=world.seed,
                    batch_rows=batch_rows,
                    vocabulary=loaded.vocabulary.size,
                    samples=most,
                    skip=everything - portion,
                    on_progress=lambda p: bar.update(
                        len(done), f"{p.tokens / max(p.seconds, 1e-9):.0f} tok/s"
                    ),
                    should_stop=lambda: bool(world.stop_signal()),
                ):
                    if (completion.index, completion.sample) in done:
                        continue
                    done.add((completion.index, completion.sample))
                    text = loaded.tokenizer.decode(
                        list(completion.ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
                    )
                    append_line(
                        folder / JOURNAL,
                        {
                            "index": completion.index,
                            "sample": completion.sample,
                            "ids": list(completion.ids),
                            "text": text,
                            "finish": completion.finish,
                        },
                    )
                world.stop_if_asked()

    return produce(world, "generate", name, inputs, build)


def _portions(prompts: Sequence[Prompt], size: int) -> list[set[tuple[int, int]]]:
    """The answers, (prompt, sample), in fixed portions that are written one after the other.

    An interrupted portion is written again from its start: in half precision an answer depends on the rows
    beside it, and these must be the same ones.
    """
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index].ids))
    answers = [(index, sample) for index in order for sample in range(prompts[index].samples)]
    return [set(answers[start : start + size]) for start in range(0, len(answers), size)]


def _finish(folder: Path, prompts: Sequence[Prompt]) -> Mapping[str, Any]:
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


def read(artifact: Artifact) -> list[Written]:
    """The answers of a finished stage, in the prompts' order."""
    return [
        Written(line["row_id"], line["sample"], tuple(line["ids"]), line["text"], line["finish"])
        for line in read_lines(artifact.path / ANSWERS)
    ]
