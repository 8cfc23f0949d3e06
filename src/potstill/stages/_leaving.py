"""What a capture's folder holds besides signals, so that training and measuring need no teacher."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.cache.keys import key_of as cache_key
from potstill.cache.reader import Cache
from potstill.cache.writer import Writer
from potstill.errors import DataError
from potstill.stages import _measure
from potstill.stages._captured import prepared
from potstill.stages._generation import OF_TEXT
from potstill.stages._later import GIVES
from potstill.stages._rows import ANSWERS
from potstill.store.artifacts import Artifact
from potstill.store.disk import discard, write_sealed
from potstill.store.lines import read_lines, write_lines
from potstill.teachers.cached import (
    ABOUT,
    GREEDY,
    HELDOUT,
    LEFT_OUT,
    PROBE_ROWS,
    PROBES,
    SIGNALS,
    TOKENIZER,
    WRITTEN,
)

if TYPE_CHECKING:
    from potstill.stages._capture import Job, Written


def finish(job: Job, folder: Path, written: Written, greedy: Artifact | None) -> Mapping[str, Any]:
    """Write the indices and all that belongs to the teacher; the facts of the capture.

    Raises:
        DataError: a deadline came before the first row.
    """
    stats: dict[str, Any] = {}
    for place, how in ((HELDOUT, written.kept.whole(job.dtype)), (SIGNALS, written.kept)):
        with Writer(folder / place, job.header(how), shard_bytes=2**62) as writer:
            stats[place] = dict(writer.finish())
    cache = Cache.open(folder / SIGNALS)
    missing = [key for row in job.rows if (key := cache_key(row.input_ids, row.scored)) not in cache]
    (folder / LEFT_OUT).unlink(missing_ok=True)  # of a build that was stopped behind a deadline
    if missing:
        write_sealed(folder / LEFT_OUT, {"keys": [key.hex() for key in missing], "of": len(job.rows)})
    if len(missing) == len(job.rows):
        raise DataError(
            f"no row was captured before the deadline of {job.spec.deadline}.",
            path=f"stages.{job.spec.name}.deadline",
            fix="Give it more time.",
        )
    held = [row for row in job.rows if cache_key(row.input_ids, row.scored) in cache][:PROBE_ROWS]
    write_sealed(folder / PROBES, {"rows": [{"ids": row.input_ids, "scored": row.scored} for row in held]})
    _belongings(job, folder, written, greedy)
    kept, count = written.kept, len(job.rows)
    if missing:
        job.context.console.warn(
            f"{job.spec.name}: {count - len(missing)} of {count} rows were captured before the deadline; "
            "stages train on these."
        )
    return {
        "rows": count - len(missing),
        "planned_rows": count,
        "coverage": (count - len(missing)) / max(1, count),
        "heldout_rows": stats[HELDOUT]["examples"],
        "tokens": stats[SIGNALS]["tokens"],
        "bytes": stats[SIGNALS]["bytes"] + stats[HELDOUT]["bytes"],
        "bytes_per_token": stats[SIGNALS]["bytes_per_token"],
        "signal": kept.kind,
        "setting": dict(kept.setting),
        "measured": dict(kept.measured),
        "why": kept.why,
        "kept": asdict(kept),
    }


def _belongings(job: Job, folder: Path, written: Written, greedy: Artifact | None) -> None:
    teacher, reader = job.teacher, job.context.setup.readers.teacher_reader
    discard(folder / TOKENIZER)
    reader.tokenizer.save_pretrained(folder / TOKENIZER)
    write_lines(folder / WRITTEN, _written(job))
    answered = list(_answered(job, greedy))
    write_lines(folder / GREEDY, answered)
    texts = job.state.written
    about = {
        "name": teacher.name,
        "key": job.key,
        "fingerprint": teacher.fingerprint,
        "dtype": job.dtype,
        "layers": getattr(teacher, "layers", None),
        "context_length": getattr(teacher, "context_length", None),
        "number_format": getattr(teacher, "number_format", None),
        "licence": getattr(teacher, "licence", ""),
        "terms": getattr(teacher, "terms", ""),
        "sizes": _measure.teacher_sizes(teacher),
        "end_ids": list(reader.stop_ids),
        "provides": {
            SIGNALS: [GIVES[written.kept.kind]],
            HELDOUT: [GIVES[written.kept.whole(job.dtype).kind]],
        },
        "writes": None if texts is None else {name: texts.manifest["inputs"].get(name) for name in OF_TEXT},
        "answered": len(answered),
        "writing_seconds": 0.0 if greedy is None else greedy.facts["writing_seconds"],
        "prepared": prepared(job.context.setup),
        "kept": asdict(written.kept),  # as the manifest has it, for a repair
    }
    write_sealed(folder / ABOUT, about)


def _written(job: Job) -> Iterator[dict[str, Any]]:
    """All of the teacher's answers by prompt and draw, each once: whoever reads them filters them anew."""
    texts = job.state.written
    lines = [] if texts is None else read_lines(texts.path / ANSWERS)
    draws = {(line["prompt"], line["draw"]): line for line in lines}
    for (prompt, draw), line in sorted(draws.items()):
        yield {"prompt": prompt, "sample": draw, **{name: line[name] for name in ("ids", "text", "finish")}}


def _answered(job: Job, greedy: Artifact | None) -> Iterator[dict[str, Any]]:
    """The teacher's greedy answers to held-out prompts, by the prompts' ids."""
    if job.asked is None or greedy is None:
        return
    questions, limit = job.asked
    for question, answer in zip(questions, read_lines(greedy.path / _measure.ANSWERS), strict=True):
        yield {"ids": list(question.teacher_prompt_ids), "max_new_tokens": limit, **answer}
