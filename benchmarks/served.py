"""A student trained on what a real server answers: `transformers serve` with SmolLM2-135M-Instruct on loopback.

24 prompts of `examples/data` and 16 held-out ones are answered by the server, two at a time; the teacher's cut of
22 layers is fine-tuned on the answers that pass the filters. The answers are then deleted and read a second time: they
are in the journal, so that nothing is sent.
"""

from __future__ import annotations

import itertools
import json
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from pair import TEACHER, missing, product_dtype
from protocol import Figure, Report, alone, answer, arguments, use_threads

TRAINED, HELD_OUT, LAYERS, STEPS, NEW_TOKENS, THREADS = 24, 16, 22, 24, 48, 1
EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "data"
SERVE = "from transformers.cli.transformers import main; main()"
RECIPE = """\
name: served
runs: "{place}/runs"
teacher: {{endpoint: "{url}", model: "{place}/teacher", price: {{input: 0, output: 0}}, terms: Apache-2.0}}
student: {{model: student}}
data: {{train: train.jsonl, heldout: heldout.jsonl}}
stages:
  - generate: {{max_new_tokens: {new_tokens}, sampling_temperature: 0.3, batch_rows: 2}}
  - finetune: {{steps: {steps}, tokens_per_step: 1024}}
  - evaluate: {{samples: {held_out}, max_new_tokens: {new_tokens}}}
"""


def prepare(place: Path) -> None:
    """Write the teacher's folder, its cut, and the rows."""
    from potstill.models import anatomy, loading
    from potstill.students import depth

    loaded = loading.load(loading.find_source(TEACHER), dtype=product_dtype())
    cut = depth.cut(loaded.model, depth.uniform(len(anatomy.layers(loaded.model)), LAYERS))
    for name, model in (("teacher", loaded.model), ("student", cut)):
        model.save_pretrained(place / name)
        loaded.tokenizer.save_pretrained(place / name)
    for target, source, count in (("train", "prompts", TRAINED), ("heldout", "heldout", HELD_OUT)):
        with (EXAMPLES / f"{source}.jsonl").open(encoding="utf-8") as lines:
            (place / f"{target}.jsonl").write_text("".join(itertools.islice(lines, count)), encoding="utf-8")


@contextmanager
def serving(model: Path) -> Iterator[str]:
    """The address of a server with a model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", SERVE, "serve", str(model), "--device", "cpu", "--host", "127.0.0.1"]
    log = model.parent / "serve.log"  # not a pipe: it would fill, and the server wait for a reader
    with log.open("wb") as file:
        server = subprocess.Popen([*command, "--port", str(port)], stdout=file, stderr=file)
    try:
        while "Uvicorn running" not in (said := log.read_text(encoding="utf-8", errors="replace")):
            if server.poll() is not None:
                raise RuntimeError(f"transformers serve ended: {said[-2000:]}")
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.kill()
        server.wait()


def student(steps: int) -> dict[str, Any]:
    """Run the recipe, and its generate stage once more without its artifact: perplexity on held-out answers, requests
    and seconds."""
    from potstill import run

    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        prepare(place)
        with serving(place / "teacher") as url:
            text = RECIPE.format(url=url, place=place, new_tokens=NEW_TOKENS, steps=steps, held_out=HELD_OUT)
            (place / "served.yaml").write_text(text)
            began = time.monotonic()
            run(place / "served.yaml")
            seconds = time.monotonic() - began
        requests = sent(place)
        for artifact in (place / "runs/.store").glob("generate-*"):
            shutil.rmtree(artifact)
        answers = run(place / "served.yaml", ["name=again"], until="generate")
        assert (answers.path / "stages/generate").exists()
        summary = json.loads((place / "runs/served/summary.json").read_text())
        return {
            "perplexity": {when: summary[when]["ppl"]["value"] for when in ("before", "after")},
            "rouge_l": {when: summary[when]["rouge_l"]["value"] for when in ("before", "after")},
            "used": summary["answers"]["generate"]["used"],
            "requests": requests,
            "requests_again": sent(place) - requests,
            "seconds": round(seconds, 1),
        }


def sent(place: Path) -> int:
    """How many requests the journal holds."""
    with closing(sqlite3.connect(place / "runs/.store/.journal/answers.sqlite")) as db:
        count: int = db.execute("SELECT count(*) FROM attempts").fetchone()[0]
        return count


def main() -> None:
    options = arguments(__doc__)
    if options.task:
        use_threads(THREADS)
        return answer(options.task, {"student": student})
    report = Report("a student of what a real server answers, one thread", options.json)
    steps = STEPS // 2 if options.quick else STEPS
    shape = {
        "prompts": TRAINED,
        "heldout": HELD_OUT,
        "layers": LAYERS,
        "steps": steps,
        "new_tokens": NEW_TOKENS,
    }
    if reason := missing(EXAMPLES / "prompts.jsonl"):
        report.add(Figure("served_student_perplexity", None, "ratio", shape=shape, note=reason))
        return None
    found = alone(__file__, "student", threads=THREADS, steps=steps)
    before, after = found["perplexity"]["before"], found["perplexity"]["after"]
    note = f"perplexity {before:.3g} before, {after:.3g} after; {found['used']} answers used, {found['seconds']} s"
    ratio = round(after / before, 4)
    report.add(
        Figure("served_student_perplexity", ratio, "ratio", 1.0, "lower", {"student": found}, shape, note)
    )
    report.add(
        Figure("served_requests", found["requests"], "requests", TRAINED + HELD_OUT, "lower", {}, shape)
    )
    report.add(Figure("served_requests_again", found["requests_again"], "requests", 0, "lower", {}, shape))
    return None


if __name__ == "__main__":
    main()
