"""A real server on loopback: `transformers serve` with a tiny model, asked by the engine of served teachers."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from builders.asking import ask
from builders.tiny import EOS, PAD, TEMPLATE, save_tiny, tiny_model, tiny_tokenizer
from potstill.generate import local
from potstill.generate.sampling import Sampling
from potstill.generate.served import Clock

MISSING = [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (potstill[dev])")
WORDS = [f"w{i}" for i in range(20, 26)]
MOST = 12
SERVE = "from transformers.cli.transformers import main; main()"


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """The server's address and the folder of its model."""
    place = save_tiny(tmp_path_factory.mktemp("served") / "big", seed=16)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, "serve", str(place), "--device", "cpu", "--host", "127.0.0.1",
         "--port", str(port)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if "Uvicorn running" in line:
            break
    try:
        assert process.poll() is None, "".join(said)
        yield f"http://127.0.0.1:{port}/v1", place
    finally:
        process.kill()
        process.communicate()


def here(sampling: Sampling) -> dict[str, tuple[str, str]]:
    """What the same weights write in this process: text and finish by prompt."""
    tokenizer = tiny_tokenizer(template=TEMPLATE)
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": word}], add_generation_prompt=True, tokenize=True
        )["input_ids"]
        for word in WORDS
    ]
    written = local.generate(
        tiny_model(seed=16), prompts, sampling, stop_ids={EOS}, pad_id=PAD, seed=0, batch_rows=6
    )
    return {
        WORDS[one.index]: (tokenizer.decode(one.ids, skip_special_tokens=True), one.finish) for one in written
    }


def asked(url: str, place: Path, model: Path, **changes: Any) -> Any:
    """Ask with a clock that runs: the server takes its time."""
    teacher = {"model": str(model), "price": None, **changes.pop("teacher", {})}
    return ask(
        url,
        place,
        WORDS,
        teacher=teacher,
        clock=Clock(),
        workers=2,
        most=MOST,
        **changes,
    )


def test_its_greedy_answers_are_those_of_the_same_weights_here(served, tmp_path) -> None:
    url, model = served
    spendings = []
    given = asked(url, tmp_path, model, temperature=0.0, on_progress=spendings.append)
    assert {WORDS[one.index]: (one.text, one.finish) for one in given} == here(Sampling(MOST, 0.0))
    assert [one.reason for one in given] == [""] * len(WORDS)
    # It states what it used, so nothing is left open.
    assert (spendings[-1].requests, spendings[-1].unknown) == (len(WORDS), 0)
    assert spendings[-1].tokens_out > 0


def test_a_seed_is_heeded_and_its_answers_are_asked_for_once(served, tmp_path) -> None:
    url, model = served
    seeded = {"send_seed": True}
    first = asked(url, tmp_path, model, temperature=0.9, teacher=seeded)
    assert not [one.reason for one in first if one.reason]
    again = asked("http://127.0.0.1:9/v1", tmp_path, model, temperature=0.9, teacher=seeded)
    assert [one.text for one in again] == [one.text for one in first]
