"""From the answers that a teacher wrote to those that a student is trained on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from builders import places
from builders.tiny import EOS, UNK
from potstill.console import Console
from potstill.data.task import Task
from potstill.errors import DataError
from potstill.stages import _filtering, _rows
from potstill.stages._context import Context, Setup, State
from potstill.stages.generate import Generate
from potstill.store.artifacts import Artifact, Store
from potstill.store.lines import read_lines, write_lines

GOLD = "gold_number"


@dataclass(frozen=True)
class Case:
    """A recipe's rows, and answers as an engine leaves them."""

    setup: Setup
    place: Path

    def line(self, row_id: str, text: str = "", finish: str = "stop", sample: int = 0) -> dict[str, Any]:
        text = text or f"w{30 + int(row_id[1:])} w31"
        ids = [int(word[1:]) if word[0] == "w" and word[1:].isdigit() else UNK for word in text.split()]
        ids += [EOS] if finish == "stop" else []
        return {"row_id": row_id, "sample": sample, "ids": ids, "text": text, "finish": finish}

    def lines(self, changed: Mapping[str, dict[str, Any]] | None = None) -> list[dict[str, Any]]:
        """An answer to every row; those to `changed` rows are other ones."""
        return [self.line(row.id, **(changed or {}).get(row.id, {})) for row in self.setup.data.everything]

    def filtered(
        self,
        lines: list[dict[str, Any]],
        store: str = "store",
        facts: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> tuple[Artifact, Context]:
        raw = self.place / "raw"
        raw.mkdir(exist_ok=True)
        write_lines(raw / "answers.jsonl", lines)
        write_lines(raw / "rejected.jsonl", [{"row_id": "p0", "sample": 9, "reason": "content filter"}])
        context = Context(self.setup, Store(self.place / store), Console(quiet=True), seed=0)
        key = _filtering.key_of("raw", {"lines": lines})
        artifact = Artifact(
            raw, {"key": key, "facts": {"answers": len(lines), "seconds": 5.0, **(facts or {})}}
        )
        return _filtering.filtered(Generate(**options), artifact, context), context

    @property
    def train(self) -> list[str]:
        return [row.id for row in self.setup.data.train]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    place = tmp_path_factory.mktemp("recipe")
    rows = [row | {GOLD: 31} for row in places.prompts()]
    stages = f"[{{generate: {{verifier: {{numeric: {{gold: {GOLD}}}}}}}}}, {{finetune: {{steps: 1}}}}]"
    places.write(place, rows, stages=stages)
    return places.read(place)


@pytest.fixture
def case(parts: Setup, tmp_path: Path) -> Case:
    return Case(parts, tmp_path)


def rejected(artifact: Artifact) -> list[tuple[str, str]]:
    return [(line["row_id"], line["reason"]) for line in read_lines(artifact.path / "rejected.jsonl")[1:]]


def answered(artifact: Artifact) -> Iterator[str]:
    return (line["row_id"] for line in read_lines(artifact.path / "answers.jsonl"))


def test_what_filters_left_out_in_an_earlier_run_is_said_again(case: Case, capsys: Any) -> None:
    """Another recipe that takes the judged answers from the store trains on as few of them."""
    lines = case.lines({key: {"finish": "length"} for key in case.train[1:]})
    first = case.filtered(lines)[0], capsys.readouterr().err
    again = case.filtered(lines)[0], capsys.readouterr().err
    assert (first[0].reused, again[0].reused) == (False, True)
    assert "cut off at the limit of tokens. Raise generate.max_new_tokens" in first[1]
    assert again[1] == first[1]


def test_a_cut_off_answer_is_no_training_data_unless_a_recipe_allows_it(case: Case) -> None:
    """Three replies end, one is cut: three rows by default; kept by an option, it teaches no end."""
    cut = case.train[1]
    lines = case.lines({cut: {"finish": "length"}})
    strict, context = case.filtered(lines)
    assert rejected(strict) == [(cut, "cut off at the limit of tokens")]
    assert set(answered(strict)) == {line["row_id"] for line in lines} - {cut}
    rows = _rows.training(State(answers=strict), context).train
    assert {example.id for example in rows} == set(case.train) - {cut}
    assert {example.input_ids[-1] for example in rows} == {EOS}
    lenient, context = case.filtered(lines, filters=[{"truncated": {"action": "count"}}])
    assert rejected(lenient) == []
    ends = {e.id: e.input_ids[-1] for e in _rows.training(State(answers=lenient), context).train}
    assert {name for name, last in ends.items() if last != EOS} == {cut}
    assert lenient.facts["filters"]["truncated"]["found"] == 1


def test_held_out_answers_pass_as_they_are(case: Case) -> None:
    held = case.setup.data.heldout[0].id
    artifact, _ = case.filtered(case.lines({held: {"finish": "length"}}))
    assert rejected(artifact) == []
    assert held in set(answered(artifact))


def test_other_filters_read_the_same_answers_again_and_what_is_done_is_kept(case: Case) -> None:
    lines = case.lines()
    one, _ = case.filtered(lines)
    again, _ = case.filtered(lines)
    other, _ = case.filtered(lines, filters=[{"refusals": {"action": "reject"}}])
    assert again.reused
    assert again.key == one.key != other.key
    assert one.manifest["inputs"]["written"] == other.manifest["inputs"]["written"]
    assert one.facts["seconds"] == 5.0  # what the answers took stays the stage's time
    assert read_lines(one.path / "rejected.jsonl")[0]["reason"] == "content filter"
    raw, _ = case.filtered(lines, filters=None)
    assert raw.path == case.place / "raw"


def test_a_filter_judges_what_those_before_it_have_left(case: Case) -> None:
    """An answer that was cut off makes no duplicate of the whole one after it."""
    name = case.train[0]
    lines = [
        case.line(name, "w40", "length"),
        case.line(name, "w40", sample=1),
        case.line(name, "w40", sample=2),
    ]
    artifact, _ = case.filtered(lines)
    assert rejected(artifact) == [(name, "cut off at the limit of tokens"), (name, "duplicate")]
    assert [line["sample"] for line in read_lines(artifact.path / "answers.jsonl")] == [1]


def test_what_a_server_refused_and_what_a_filter_calls_a_refusal_are_added_up(case: Case) -> None:
    """Both are left out for a reason of the same name."""
    facts = {"rejected": {"refusal": 2}, "left_out": {"answer: refusal": 2, "prompt too long": 1}}
    text = "I'm sorry, but I can't help with that."
    artifact, _ = case.filtered(
        case.lines({case.train[3]: {"text": text}}), facts=facts, filters=[{"refusals": {"action": "reject"}}]
    )
    assert artifact.facts["rejected"] == {"refusal": 3}
    assert artifact.facts["left_out"] == {"answer: refusal": 3, "prompt too long": 1}


def test_what_is_found_is_counted_with_three_samples_that_show_no_secret(case: Case) -> None:
    mail = {name: {"text": f"Write to ann{name}@post.org"} for name in case.train[:4]}
    token = "gh" + "p_" + "a1B2c3D4e5" * 4
    artifact, _ = case.filtered(case.lines(mail | {case.train[5]: {"text": f"Use {token} now"}}))
    found = artifact.facts["filters"]
    assert (found["personal"]["action"], found["personal"]["found"]) == ("count", 4)
    assert [sample["text"] for sample in found["personal"]["samples"]] == ["Write to …"] * 3
    assert found["secrets"]["samples"][0]["text"] == "Use … now"
    assert token not in json.dumps(artifact.manifest)
    assert artifact.facts["rejected"] == {"secret": 1}
    assert artifact.facts["left_out"] == {"answer: secret": 1}


def test_where_no_answer_passes_the_way_out_is_said(case: Case) -> None:
    lines = case.lines({row.id: {"finish": "length"} for row in case.setup.data.everything})
    with pytest.raises(DataError) as raised:
        case.filtered(lines)
    assert "answers are not used: " in raised.value.message
    assert "Raise generate.max_new_tokens" in raised.value.fix
    assert "generate.filters=[{truncated: {action: count}}]" in raised.value.fix


def test_a_token_of_the_template_within_an_answer_is_seen_though_its_text_leaves_it_out(case: Case) -> None:
    name = case.train[0]
    lines = case.lines()
    (line,) = (line for line in lines if line["row_id"] == name)
    line["ids"] = [30, EOS, 31, EOS]
    artifact, _ = case.filtered(lines)
    assert rejected(artifact) == [(name, "template leakage (</s>)")]


SAMPLES = ["It is 31", "no idea", "31", "about 30"]


@pytest.mark.parametrize(
    ("keep", "kept"), [("first", ["It is 31"]), ("best", ["It is 31"]), ("all", ["It is 31", "31"])]
)
def test_of_several_answers_the_right_ones_are_kept(case: Case, keep: str, kept: list[str]) -> None:
    one, other = case.train[:2]
    lines = [case.line(one, text, sample=n) for n, text in enumerate(SAMPLES)]
    lines += [case.line(other, f"{30 - n}", sample=n) for n in range(4)]
    artifact, _ = case.filtered(lines, samples=4, verifier={"numeric": {"gold": GOLD}}, keep_answers=keep)
    assert [line["text"] for line in read_lines(artifact.path / "answers.jsonl")] == kept
    verified = artifact.facts["verified"]
    assert (verified["answers"], verified["right"], verified["kept"]) == (8, 2, len(kept))
    assert (verified["prompts"], verified["prompts_without_a_right_answer"]) == (2, 1)
    assert verified["examples_without_a_right_answer"] == [other]
    reasons = [reason for _, reason in rejected(artifact)]
    assert reasons.count("wrong answer") == 6
    assert reasons.count("another right answer is kept") == 2 - len(kept)


def test_a_verifier_of_ones_own_scores_and_the_best_of_the_right_ones_is_kept(
    case: Case, monkeypatch
) -> None:
    monkeypatch.syspath_prepend(case.place)
    (case.place / "length_judge.py").write_text(
        "def words(answer, row):\n    return len(answer.split()) / 10\n"
    )
    lines = [
        case.line(case.train[0], text, sample=n) for n, text in enumerate(["a b", "a b c d e f", "a b c d e"])
    ]
    artifact, _ = case.filtered(
        lines, samples=3, verifier="length_judge:words", keep_answers="best", right_from=0.5
    )
    assert [line["text"] for line in read_lines(artifact.path / "answers.jsonl")] == ["a b c d e f"]
    with pytest.raises(DataError, match="scored an answer 1.2"):
        case.filtered([case.line(case.train[0], "a " * 12)], filters=[], verifier="length_judge:words")


def test_a_filter_of_ones_own_works_behind_the_others(case: Case, monkeypatch) -> None:
    monkeypatch.syspath_prepend(case.place)
    (case.place / "own_filter.py").write_text(
        "LABEL = 'shouting'\n\n\ndef shouts(answers, context, *, mark: str = '!'):\n"
        "    return ['shouting' if mark in answer.text else '' for answer in answers]\n\n\n"
        "def lazy(answers, context):\n    return []\n"
    )
    name = case.train[0]
    artifact, _ = case.filtered(case.lines({name: {"text": "Yes!"}}), filters=["own_filter:shouts"])
    assert rejected(artifact) == [(name, "shouting")]
    assert list(artifact.facts["filters"])[-1] == "own_filter:shouts"
    with pytest.raises(DataError, match="judged 0 of"):
        case.filtered(case.lines(), filters=["own_filter:lazy"])


def of_task(case: Case, **task: Any) -> Case:
    return Case(replace(case.setup, task=Task(**task)), case.place)


def test_an_invalid_answer_is_rejected_before_a_verifier_can_prefer_it(case: Case) -> None:
    """Both say 31; only one of them is the number that the task wants, and that one is trained on."""
    name, other = case.train[:2]
    lines = [case.line(name, "It is 31"), case.line(name, "31", sample=1), case.line(other, "31")]
    artifact, _ = of_task(case, type="number").filtered(
        lines, samples=2, verifier={"numeric": {"gold": GOLD}}
    )
    assert [line["text"] for line in read_lines(artifact.path / "answers.jsonl")] == ["31", "31"]
    (lost,) = read_lines(artifact.path / "rejected.jsonl")[1:]
    assert (lost["stage"], lost["filter"], lost["reason"]) == ("generate", "task", "no number ('It is 31')")
    assert artifact.facts["left_out"] == {"answer: no number": 1}
    assert artifact.facts["filters"]["task"]["found"] == 1


def test_invalid_answers_are_written_down_where_all_filters_are_off_and_another_task_judges_anew(
    case: Case,
) -> None:
    lines = case.lines({case.train[0]: {"text": "99"}} | {n: {"text": "7"} for n in case.train[1:]})
    one, _ = of_task(case, type="label", labels=("7", "8")).filtered(lines, filters=None)
    assert (case.train[0], "none of the labels ('99')") in rejected(one)
    other, _ = of_task(case, type="label", labels=("7", "99")).filtered(lines, filters=None)
    assert case.train[0] in set(answered(other))


def test_what_was_cut_off_is_not_called_invalid_and_says_how_to_go_on(case: Case) -> None:
    lines = case.lines({row.id: {"finish": "length"} for row in case.setup.data.everything})
    with pytest.raises(DataError, match="cut off at the limit of tokens") as raised:
        of_task(case, type="number").filtered(lines)
    assert "Raise generate.max_new_tokens" in raised.value.fix


@pytest.mark.parametrize(("task", "kept"), [({"type": "json"}, True), ({"type": "text"}, False)])
def test_an_object_is_the_right_answer_to_many_prompts_held_out_ones_among_them(
    case: Case, task: dict[str, Any], kept: bool
) -> None:
    answer = json.dumps({f"field_{i}": "the same value" for i in range(6)})
    data = case.setup.data
    held = (
        replace(r, messages=(*r.messages, {"role": "assistant", "content": answer})) for r in data.heldout
    )
    case = Case(replace(case.setup, data=replace(data, heldout=tuple(held))), case.place)
    name, other = case.train[:2]
    lines = [case.line(name, answer), case.line(other, '{"n": 1}')]
    artifact, _ = of_task(case, **task).filtered(lines)
    assert (name in set(answered(artifact))) == kept


def test_what_the_teachers_own_prompt_holds_is_quoted_and_not_leaked(case: Case) -> None:
    """Where a file writes what the teacher is asked, the student's prompt is not all that an answer was made from."""
    data, name = case.setup.data, case.train[0]
    asked = ({"role": "user", "content": "Explain [INST] and mail jane@post.org"},)
    train = tuple(replace(row, teacher_turns=asked) if row.id == name else row for row in data.train)
    case = Case(replace(case.setup, data=replace(data, train=train)), case.place)
    lines = case.lines({name: {"text": "[INST] begins a turn, jane@post.org knows"}})
    artifact, _ = case.filtered(lines)
    assert rejected(artifact) == []
    assert artifact.facts["filters"]["personal"]["found"] == 0


def test_right_answers_beside_the_one_that_is_kept_are_no_reason_for_a_warning(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    warned: list[str] = []
    monkeypatch.setattr(Console, "warn", lambda _, text: warned.append(text))
    lines = [case.line(case.train[0], text, sample=n) for n, text in enumerate(["31", "31.0", "+31", "3"])]
    artifact, _ = case.filtered(lines, samples=4, verifier={"numeric": {"gold": GOLD}})
    assert artifact.facts["verified"]["kept"] == 1
    assert warned == []


def test_where_whoever_wrote_left_out_all_that_is_trained_on_it_is_said(case: Case) -> None:
    held = case.setup.data.validation[0].id
    with pytest.raises(DataError, match="no row that is trained on has an answer"):
        case.filtered([case.line(held)])


def test_a_prompt_of_whose_answers_no_filter_left_one_has_no_right_answer(case: Case) -> None:
    one, other = case.train[:2]
    lines = [case.line(one, "31"), case.line(other, "31", "length")]
    verified = case.filtered(lines, verifier={"numeric": {"gold": GOLD}})[0].facts["verified"]
    assert (verified["prompts"], verified["prompts_without_a_right_answer"]) == (2, 1)
    assert verified["examples_without_a_right_answer"] == [other]
