"""A teacher in an engine says what its model says, by ids that are certain, or stops."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from builders.engine import engine
from builders.ensembles import Tiny, ensemble
from builders.steps import ragged_rows
from builders.tiny import save_tiny
from potstill.data.batch import collate
from potstill.data.reader import reader_of
from potstill.data.template import Templater
from potstill.errors import MachineError, ProviderError, RecipeError
from potstill.teachers import scored
from potstill.teachers._context import TeacherContext


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("engine") / "model", seed=1)


def teacher(folder: Path, url: str, **options: Any) -> scored.ScoredTeacher:
    context = TeacherContext(
        folder.parent,
        torch.device("cpu"),
        lambda tokenizer, ends=(): reader_of(tokenizer, Templater(tokenizer, end_ids=ends)),
    )
    return scored.build(context, scores=url, model=str(folder), **options)


def whole(batch: Any) -> torch.Tensor:
    hidden = Tiny(1).signal(batch)
    return (hidden.hidden @ hidden.head.weight.T).log_softmax(-1)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("server", ["vllm", "sglang"])
def test_signals_are_the_models_likeliest_ids(folder, server, packed):
    batch = collate(ragged_rows(), pad_id=0, packed=packed)
    with engine() as there:
        said = teacher(folder, there.url + "/v1", server=server, top_k=7).signal(batch).checked()
    wanted = whole(batch).topk(7)
    assert torch.equal(said.ids, wanted.indices)
    torch.testing.assert_close(said.lp, wanted.values, atol=1e-5, rtol=1e-5)
    lengths = [len(body.get("prompt", body.get("input_ids"))) for body in there.asked]
    assert sorted(lengths) == sorted(
        [*[scored.PROBE] * 3, scored.PROBE + 1, *(len(row.input_ids) for row in ragged_rows() if row.count)]
    )


def test_each_example_has_its_own_signal(folder):
    rows = ragged_rows()
    with engine() as there:
        got = list(teacher(folder, there.url, at_once=3).each(rows))
    assert [example.id for example, _ in got] == [row.id for row in rows]
    for example, signal in got:
        wanted = whole(collate([example], pad_id=0)).topk(20)
        assert torch.equal(signal.ids[:, :20], wanted.indices)


def test_it_joins_an_ensemble_with_a_model_that_is_here(folder):
    batch = collate(ragged_rows(), pad_id=0)
    with engine() as there:
        member = teacher(folder, there.url)
        both = ensemble(member, Tiny(2), weights=[1.0, 1.0])  # type: ignore[arg-type]
        assert both.kind == "topk"
        assert both.signal(batch).rows == batch.count


@pytest.mark.parametrize(
    ("asked", "most", "words"),
    [(50, 20, r"at most 20 .*top_k is 50.*top_k: 20, or start it with --max-logprobs 50")],
)
def test_the_engines_limit_is_met_before_the_first_row(folder, asked, most, words):
    with engine(most=most) as there, pytest.raises(MachineError, match=words):
        teacher(folder, there.url, top_k=asked).signal(collate(ragged_rows(), pad_id=0))
    assert len(there.asked) == 1


def test_an_engine_that_gives_fewer_without_a_word_is_refused(folder):
    def cut(reply: Any) -> Any:
        for position in reply["meta_info"]["input_top_logprobs"][1:]:
            del position[5:]
        return reply

    with engine(change=cut) as there, pytest.raises(MachineError, match="gives 5 log-probabilities"):
        teacher(folder, there.url, server="sglang").signal(collate(ragged_rows(), pad_id=0))


def without(name: str) -> Any:
    def change(reply: Any) -> Any:
        for holder in (reply.get("meta_info"), *(reply.get("choices") or ())):
            if holder:
                holder.pop(name, None)
        return reply

    return change


def other(reply: Any) -> Any:
    reply["choices"][0]["prompt_logprobs"][1] = {"99": {"logprob": -1.0, "rank": 1}}
    return reply


def cached(reply: Any) -> Any:
    reply["choices"][0]["prompt_logprobs"][1] = None
    return reply


def longer(reply: Any) -> Any:
    reply["choices"][0]["prompt_logprobs"].append(None)
    return reply


def shifted(reply: Any) -> Any:
    reply["meta_info"]["input_token_logprobs"][1][1] += 1
    return reply


@pytest.mark.parametrize(
    ("server", "change", "words"),
    [
        ("vllm", without("prompt_logprobs"), "lacks prompt_logprobs, which was asked for"),
        ("vllm", without("logprobs"), "lacks return_tokens_as_token_ids"),
        ("vllm", other, "scored another token than id 1 at position 1"),
        ("vllm", cached, "left out position 1 of 3.*--no-enable-prefix-caching"),
        ("vllm", longer, "4 positions for 3 ids"),
        ("sglang", without("input_top_logprobs"), "lacks input_top_logprobs"),
        ("sglang", without("input_token_logprobs"), "lacks input_token_logprobs"),
        ("sglang", shifted, "scored another token than id 1"),
    ],
)
def test_what_was_asked_for_and_does_not_come_back_is_an_error(folder, server, change, words):
    with engine(change=change) as there, pytest.raises(ProviderError, match=words):
        teacher(folder, there.url, server=server).signal(collate(ragged_rows(), pad_id=0))


def drifting(kind: str) -> Any:
    """An engine's change of what it says: with the temperature, or with what it was asked before."""
    asked: list[int] = []

    def change(reply: Any) -> Any:
        asked.append(0)
        # The probe asks: the ids, longer ones, the ids again, the ids at another temperature.
        wrong = {"temperature": len(asked) == 4, "order": len(asked) == 3, "prefix": len(asked) == 2}[kind]
        for position in reply["choices"][0]["prompt_logprobs"][1:]:
            for entry in position.values() if wrong else ():
                entry["logprob"] *= 2.0
        return reply

    return change


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("temperature", "nats apart for the same ids at another sampling temperature.*raw_logprobs"),
        ("order", "nats apart for the same ids asked again.*prefix"),
        ("prefix", "nats apart for the same ids behind a longer prompt.*prefix"),
    ],
)
def test_an_engine_whose_word_changes_is_refused_before_the_first_row(folder, kind, words):
    with engine(change=drifting(kind)) as there, pytest.raises(ProviderError, match=words):
        teacher(folder, there.url).signal(collate(ragged_rows(), pad_id=0))
    assert len(there.asked) == 4


def test_an_engine_that_fails_over_many_rows_is_asked_about_fewer_at_once(folder, monkeypatch, caplog):
    """As one does that runs out of memory: half as many, until they pass."""
    batch, flying, most = collate(ragged_rows(), pad_id=0), [], []
    ask = scored.ScoredTeacher._post

    def crowded(self, path, body):
        flying.append(0)
        most.append(len(flying))
        try:
            if self._at_once > 2 and self._probed:
                raise scored._Overloaded("out of memory (500)")
            return ask(self, path, body)
        finally:
            flying.pop()

    with engine() as there:
        calm = teacher(folder, there.url).signal(batch)
        monkeypatch.setattr(scored.ScoredTeacher, "_post", crowded)
        busy = teacher(folder, there.url, at_once=8)
        assert torch.equal(busy.signal(batch).ids, calm.ids)
        assert busy._at_once == 2
        monkeypatch.setattr(scored.ScoredTeacher, "_post", lambda self, path, body: crowded(self, path, body) if not self._probed else (_ for _ in ()).throw(scored._Overloaded("out of memory (500)")))  # fmt: skip
        with pytest.raises(ProviderError, match="out of memory"):
            teacher(folder, there.url, at_once=2).signal(batch)
    assert "4 rows at once from now on" in caplog.text


LIKELY = {
    "9": {"logprob": -3.1, "rank": 7},
    "5": {"logprob": -0.1, "rank": 1},
    "6": {"logprob": -2.5, "rank": 2},
}


def reply(position: Any) -> dict[str, Any]:
    return {"choices": [{"prompt_logprobs": [None, position], "logprobs": {"tokens": ["token_id:5"]}}]}


@pytest.mark.parametrize("order", [["9", "5", "6"], ["6", "9", "5"], ["5", "6", "9"]])
def test_entries_are_read_by_their_ids_whatever_their_order(order):
    """One target for two ids, the two likeliest of three entries."""
    said = scored.ENGINES["vllm"].said(reply({name: LIKELY[name] for name in order}), [1, 9])
    assert said == [[(5, -0.1), (6, -2.5)]]


def test_numbers_that_are_missing_or_endless_are_no_probability():
    values = {"5": -0.1, "6": -9999.0, "7": None, "9": -math.inf}
    entries = {name: {"logprob": value, "rank": n} for n, (name, value) in enumerate(values.items(), 1)}
    ((target,),) = scored.ENGINES["vllm"].said(reply(entries), [1, 9])
    assert math.exp(target[1]) == pytest.approx(0.904837, abs=1e-6)
    for wrong, words in (
        ({"5": math.nan, "9": -1.0}, "nan as a log-probability|which is at most 0"),
        ({"5": -0.1, "9": -0.2}, r"sum to 1\.7"),
        ({"5": None, "9": None}, "gives no log-probability at position 1"),
    ):
        broken = {name: {"logprob": value, "rank": 1} for name, value in wrong.items()}
        with pytest.raises(ProviderError, match=words):
            scored.ENGINES["vllm"].said(reply(broken), [1, 9])


def test_the_given_token_is_no_part_of_a_top_k_where_likelier_ones_are_left_out(folder):
    batch = collate(ragged_rows(), pad_id=0)
    with engine() as there:
        said = teacher(folder, there.url, top_k=2).signal(batch)
    used, wanted = said.ids >= 0, whole(batch).topk(3).indices
    assert used[:, :2].all()
    assert torch.equal(said.ids[used], wanted[:, : used.shape[1]][used])
    given = [position for body in there.asked for position in body["prompt"][1:]]
    assert len(given) > 2 * batch.count  # most of which are no likely ones


def test_the_model_and_the_key_are_those_of_the_recipe(folder, monkeypatch):
    batch = collate(ragged_rows(3), pad_id=0)
    with engine(names=("one", "two")) as there:
        with pytest.raises(ProviderError, match="serves one, two, not one model alone.*served_as"):
            teacher(folder, there.url).signal(batch)
        with pytest.raises(ProviderError, match="not three"):
            teacher(folder, there.url, served_as="three").signal(batch)
        monkeypatch.setenv("ENGINE_KEY", "k-123456789")
        teacher(folder, there.url, served_as="two", key_env="ENGINE_KEY").signal(batch)
    assert {body["model"] for body in there.asked} == {"two"}
    assert set(there.keys) == {"Bearer k-123456789"}


def test_what_the_engine_serves_identifies_the_teacher(folder):
    """A server may hold adapters beside the model: what one of them says is no other one's."""
    options = ({}, {"served_as": "adapter"}, {"top_k": 5}, {"server": "sglang"})
    assert len({teacher(folder, "http://127.0.0.1:1", **one).fingerprint for one in options}) == len(options)


def test_an_engine_that_is_gone_is_named_with_its_address(folder):
    with engine() as there:
        url = there.url
    with pytest.raises(ProviderError, match=f"{url}/v1/models does not answer"):
        teacher(folder, url).signal(collate(ragged_rows(3), pad_id=0))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scores": "localhost:8000"}, "teacher.scores: is no address"),
        ({"scores": "http://user:secret@host"}, "is no address"),
        ({"top_k": 0}, "teacher.top_k: must be at least 1"),
    ],
)
def test_an_option_that_cannot_be_is_refused(folder, options, words):
    with pytest.raises(RecipeError, match=words):
        teacher(folder, options.pop("scores", "http://127.0.0.1:1"), **options)


def test_a_recipe_names_it_by_its_options():
    from builders import recipes

    written = {"scores": "http://localhost:8000", "model": "org/big", "top_k": 64}
    assert recipes.read(teacher=written).teacher.plugin == ("scored", written)


def test_a_run_captures_it_and_trains_once_the_engine_is_gone(tmp_path):
    from builders import places
    from builders.cli import potstill

    save_tiny(tmp_path / "teacher", seed=1)
    save_tiny(tmp_path / "small", seed=5, layers=1)
    with engine() as there:
        teacher = f"{{scores: '{there.url}', model: teacher, top_k: 12}}"
        capture = {"teacher": teacher, "student": "{model: small}"}
        place = places.write(tmp_path, **capture, stages="[capture, {distill: {steps: 1}}]")
        done = potstill("run", "r.yaml", cwd=place)
        assert done.returncode == 0, done.stderr
        asked = len(there.asked)
    assert asked > 10
    cache = "{cache: runs/r/stages/capture}"
    places.recipe(
        place, teacher=cache, student="{model: small}", stages="[{distill: {steps: 2}}]", name="gone"
    )
    done = potstill("run", "r.yaml", cwd=place)
    assert done.returncode == 0, done.stderr
