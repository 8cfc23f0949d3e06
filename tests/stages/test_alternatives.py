"""Answers with the alternatives beside their tokens as artifacts, without a run around them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from builders import alternatives as made
from builders import places, served
from builders.batch_provider import Provider
from builders.chats import write_lines
from builders.endpoint import Act, Endpoint, Sent, answer, serving
from builders.served import CANARY, KEY
from builders.tiny import save_tiny, tiny_model, tiny_tokenizer
from potstill.cache.keys import key_of
from potstill.cache.reader import Cache
from potstill.console import Console
from potstill.generate.sampling import Sampling
from potstill.recipe.specs import EngineChoice
from potstill.runs.caches import verify
from potstill.stages import _asking, _rows
from potstill.stages._alternatives import UNCERTAIN, signals_of
from potstill.stages._context import Context, State
from potstill.store.artifacts import Artifact, Store
from potstill.teachers.cached import PROBE_ROWS, SIGNALS

WORDS = made.reader(tiny_tokenizer())
STAGES = (
    "stages: [{generate: {keep: topk, sampling_temperature: 1, filters: null, max_new_tokens: 8}}, "
    "{distill: {steps: 2}}]\n"
)
TEACHER = ", tokenizer: %s, top_logprobs: 3"


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, CANARY)


def yes(sent: Sent, times: int) -> Act:
    """One word to every prompt, with ids whose alternatives depend on the prompt."""
    (index,) = WORDS.templater.text_ids("w30")
    rows = made.rows_of([index], others=(126, 127), share=share_of(sent.prompt))
    return made.reply("w30", made.by_id(rows))


def place_of(
    place: Path, server: Endpoint, *, rows: int = 12, tokenizer: str = "student", more: str = ""
) -> Context:
    served.write(place, server, rows=rows, more=STAGES + more, teacher=TEACHER % tokenizer)
    return Context(places.read(place), Store(place / "runs/.store"), Console(quiet=True), seed=0)


def asked(context: Context, keep: bool = True, samples: int = 1, engine: str = "openai") -> Artifact:
    prompts, _ = _rows.prompts(context, 8, samples)
    return _asking.ask(
        "generate", EngineChoice(name=engine), prompts, Sampling(8, 1.0), 4, context, keep=keep
    )


def test_what_another_tokenizer_proved_is_not_taken_for_proven(tmp_path: Path) -> None:
    """The ids of tokens are equal; which of them end an answer is not."""
    with serving(yes) as server:
        first = asked(place_of(tmp_path, server))
        other = tiny_tokenizer()
        other.add_special_tokens({"additional_special_tokens": ["w30"]})
        other.save_pretrained(tmp_path / "other")
        second = asked(place_of(tmp_path, server, tokenizer="other"))
        assert asked(place_of(tmp_path, server)).key == first.key
        assert len(server.sent) == 12  # the teacher is asked nothing again
    assert second.key != first.key
    assert (first.facts["alternatives"]["kept"], second.facts["alternatives"]["kept"]) == (12, 0)


def share_of(prompt: str) -> float:
    return 0.5 + int(prompt[1:3]) / 1000


def test_a_row_has_the_signal_of_its_own_prompt_whatever_it_is_called(tmp_path: Path) -> None:
    """Sample 1 of row a and a row named a#1 both hold one short answer; their distributions differ."""
    rows = places.prompts(24)
    with serving(yes) as server:
        trained = [row.id for row in place_of(tmp_path, server, rows=24).setup.data.train]
        a, b = trained[-1], trained[0]
        rows = [row | ({"id": f"{a}#1"} if row["id"] == b else {}) for row in rows]
        write_lines(tmp_path / "rows.jsonl", *rows)
        context = Context(places.read(tmp_path), Store(tmp_path / "runs/.store"), Console(quiet=True), seed=0)
        assert {a, f"{a}#1"} <= {row.id for row in context.setup.data.train}
        written = asked(context, samples=2)
    state = State(answers=written, written=written)
    cache = Cache.open(signals_of("generate", state, context).path / SIGNALS)
    prompts = {row["id"]: row["prompt"] for row in rows}
    for row in _rows.training(state, context).train:
        signal: Any = cache.batch([key_of(row.input_ids, row.scored)]).whole()
        assert float(signal.lp[0, 0].exp()) == pytest.approx(share_of(prompts[row.row_id]))


def test_answers_of_batch_files_give_the_signals_of_single_requests(tmp_path: Path) -> None:
    provider = Provider(script=yes)
    with serving(yes, provider.play) as server:
        context = place_of(tmp_path, server, rows=40)
        written = asked(context, engine="batch")
        single = len(server.sent)
        assert single < 40
        assert sum(provider.answered.values()) == 40 - single
        bodies = [json.loads(line)["body"] for line in provider.files["file-0"].splitlines()]
        assert {(body["logprobs"], body["top_logprobs"]) for body in bodies} == {(True, 3)}
    assert (written.facts["alternatives"]["answers"], written.facts["alternatives"]["kept"]) == (40, 40)
    state = State(answers=written, written=written)
    cache = Cache.open(signals_of("generate", state, context).path / SIGNALS)
    prompts = {row["id"]: row["prompt"] for row in places.prompts(40)}
    for row in _rows.training(state, context).train:
        signal: Any = cache.batch([key_of(row.input_ids, row.scored)]).whole()
        assert float(signal.lp[0, 0].exp()) == pytest.approx(share_of(prompts[row.row_id]))


def test_of_several_draws_of_one_text_the_one_whose_ids_are_certain_gives_the_signal(tmp_path: Path) -> None:
    def second(sent: Sent, times: int) -> Act:
        return (
            yes(sent, times)
            if times
            else made.reply("w30", made.by_string(WORDS, [{30: 0.5, 31: 0.2, 32: 0.1}]))
        )

    with serving(second) as server:
        context = place_of(tmp_path, server)
        written = asked(context, samples=2)
    assert (written.facts["alternatives"]["answers"], written.facts["alternatives"]["kept"]) == (18, 6)
    signals = signals_of("generate", State(answers=written, written=written), context)
    # Rows that are validated on have one draw.
    assert signals.facts["as_text"] == {UNCERTAIN: len(context.setup.data.validation)}


def test_a_live_model_is_compared_with_what_a_served_teacher_stated(tmp_path: Path) -> None:
    """At the teacher's own positions alone: the end of the turn is the student's, as hard label."""
    model = tiny_model(seed=1)

    @torch.no_grad()
    def really(sent: Sent, times: int) -> Act:
        ids = WORDS.templater.prompt_ids([{"role": "user", "content": sent.prompt}])
        p = model(torch.tensor([ids])).logits[0, -1].double().softmax(-1)
        (drawn,) = WORDS.templater.text_ids("w30")
        row = {index: float(p[index]) for index in (drawn, *p.topk(3).indices.tolist())}
        return made.reply("w30", made.by_id([row]))

    with serving(really) as server:
        context = place_of(tmp_path, server, rows=24)
        written = asked(context)
    signals = signals_of("generate", State(answers=written, written=written), context)
    for seed, passed in ((1, True), (9, False)):
        save_tiny(tmp_path / str(seed), seed=seed)
        verified = verify(signals.path, str(tmp_path / str(seed)), "float32")
        assert (verified.probes, verified.passed) == (PROBE_ROWS, passed), verified.text()


def test_rows_that_are_validated_on_are_not_counted_as_measured_ones(tmp_path: Path) -> None:
    def taken(sent: Sent) -> bool:
        return int(sent.prompt[1:3]) % 3 == 0

    with serving(
        lambda sent, times: answer("", "content_filter") if taken(sent) else answer("w30")
    ) as server:
        context = place_of(tmp_path, server, rows=40)
        written = asked(context, keep=False)
    lines = [json.loads(line) for line in (written.path / "rejected.jsonl").read_text().splitlines()]
    lost, data = {line["row_id"] for line in lines}, context.setup.data
    assert lost & {row.id for row in data.validation}
    assert written.facts["left_out"] == {
        "answer: content filter": len(lost & {row.id for row in data.train}),
        "measured answer: content filter": len(lost & {row.id for row in data.heldout}),
    }
