"""What a check says of a capture's bytes before the teacher is asked, against those that it takes."""

from __future__ import annotations

import json
import re

import pytest
import torch

from builders import places
from builders.tiny import save_tiny
from potstill.cache import bounds, codecs, fidelity
from potstill.cache.blocks import DIRECTORY, pack_fields
from potstill.cache.vectors import vectors_of
from potstill.console import Console
from potstill.runs.run import run
from potstill.signals.dense import Dense
from potstill.signals.given import Given
from potstill.signals.hidden import Hidden
from potstill.types import Head

WIDTH, ROW = 40, 12  # of a hidden state; positions of a row


def signal_of(kind: str, vocabulary: int, sharpness: float):
    generator = torch.Generator().manual_seed(3)
    head = Head(torch.randn(vocabulary, WIDTH, generator=generator), vocabulary)
    logits = Dense(sharpness * torch.randn(ROW, vocabulary, generator=generator))
    match kind:
        case "hidden":
            return Hidden(torch.randn(ROW, WIDTH, generator=generator), head)
        case "kl_vector":
            return vectors_of(logits, head)
        case "token":
            return Given(-torch.rand(ROW, generator=generator))
    return logits


@pytest.mark.parametrize("kind", codecs.names())
@pytest.mark.parametrize("vocabulary", [50, 70_000])
@pytest.mark.parametrize("sharpness", [0.0, 3.0])
def test_no_row_takes_more_than_the_bound_of_its_kind(kind, vocabulary, sharpness):
    """Whole distributions from even to sharp; of states, vectors and given tokens the bound is what they take."""
    signal = signal_of(kind, vocabulary, sharpness)
    settings = fidelity.candidates(kind)
    for setting in settings if vocabulary == 50 else settings[::4]:
        fields = codecs.codec(kind).encode(signal, setting, bytes(16), vocabulary)
        size = len(pack_fields(fields, codecs.codec(kind).FIELDS)) + DIRECTORY.itemsize
        sizes = {"vocabulary": vocabulary, "width": WIDTH}
        assert size <= bounds.most_bytes(kind, setting, tokens=ROW, rows=1, **sizes), setting
        if kind in ("hidden", "kl_vector", "token"):
            assert sum(map(len, fields.values())) - 8 * ("scale" in fields) == bounds.most_bytes(
                kind, setting, tokens=ROW, **sizes
            )


def bytes_item(place) -> str:
    (item,) = (item for item in places.checked(place).items if item.name == "bytes of capture")
    assert item.passed, item.detail
    return item.detail


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    place = tmp_path_factory.mktemp("bytes")
    save_tiny(place / "student", layers=1, hidden=16, seed=3)
    return places.write(place)


READ = "{distill: {freeze_head: true, steps: 1}}"


@pytest.mark.parametrize(
    ("capture", "then", "words"),
    [
        # 32 values: 32 + 4 and 64 bytes; the head 128 × 32 × 2.
        ("signal: hidden", "distill", r"^hidden, its setting by measurement: 36.0 kB to 64.0 kB per 1,000"),
        ("signal: hidden", "distill", r"their head: 8.2 kB; in all"),
        ("signal: token", "evaluate", r"^token: 4.0 kB per 1,000"),
        # The student's 16 values: 16 + 4 + 8 and 32 + 8 bytes.
        ("signal: kl_vector", READ, r"^kl_vector, its setting by measurement: 28.0 kB to 40.0 kB per 1,000"),
        ("signal: auto", READ, r"the smallest of topk_sampled and kl_vector, by measurement: at most 40.0 kB"),
        ("signal: auto", "distill: {divergence: reverse_kl}", r"hidden and topk, by measurement: at most 64.0 kB"),
        ("bytes_per_token: 50", "distill: {divergence: reverse_kl}", r"the best of hidden and topk within bytes_per_token, by measurement: at most 50.0 kB"),
        ("signal: sampled", "distill", r"^sampled, its setting by measurement: at most \d"),
    ],
)  # fmt: skip
def test_a_check_says_what_a_capture_may_take(here, capture, then, words):
    student = "{model: student}"
    then = then if then.startswith("{") or ":" not in then else f"{{{then}}}"
    places.recipe(here, student=student, stages=f"[{{capture: {{{capture}}}}}, {then}]")
    assert re.search(words, bytes_item(here)), bytes_item(here)


def test_a_run_takes_what_the_check_said(here, monkeypatch):
    """The most of states, which in fp16 are what is taken; the heads stand in files of their own."""
    monkeypatch.chdir(here)
    places.recipe(here, stages="[{capture: {signal: hidden, max_kl_nats: 0.0000001}}]")
    detail = bytes_item(here)
    rows, tokens = map(int, re.search(r"rows, (\d+) with (\d+) scored tokens:", detail).groups())
    run(here / "r.yaml", console=Console(quiet=True))
    facts = json.loads((here / "runs/r/stages/capture/manifest.json").read_text())["facts"]
    assert (facts["rows"], facts["tokens"]) == (rows, tokens)
    said = 1000 * float(re.search(r"in all .* to ([\d.]+) kB$", detail)[1])
    heads = 2 * 128 * 32 * 2
    assert said - heads == pytest.approx(facts["bytes"], rel=0.1)
    monkeypatch.undo()


def test_answers_that_are_yet_to_be_written_count_with_their_full_length(here):
    places.write(
        here, places.prompts(), stages="[{generate: {max_new_tokens: 8, samples: 2}}, capture, distill]"
    )
    assert re.search(
        r"rows, \d+ with \d+ scored tokens at most, with answers of full length: ", bytes_item(here)
    )
    places.write(here)


def test_what_is_kept_with_the_answers_is_said_of_its_own_kind(here):
    stages = "[{generate: {max_new_tokens: 8, keep: topk}}, capture, {distill: {divergence: reverse_kl}}]"
    places.write(here, places.prompts(), stages=stages)
    assert bytes_item(here).startswith("topk, as it is kept with the answers: at most")
    places.write(here)
