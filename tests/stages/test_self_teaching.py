"""A student that teaches itself: from an average of its weights, and from what it reads beside the prompt."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from builders import places
from builders.chats import write_lines
from builders.jobs import Memory, events
from builders.recipes import problems, read
from builders.tiny import HEADER, tiny_model
from builders.written import on_policy, rows
from potstill.check import own_text
from potstill.console import Console
from potstill.data.batch import collate
from potstill.errors import DataError, Interrupted, RecipeError
from potstill.recipe.on_policy import SupervisedSpec
from potstill.recipe.self_teaching import PrivilegedSpec, SelfTeacherSpec
from potstill.recipe.specs import DivergenceChoice
from potstill.stages import _rows, _strategy
from potstill.stages._context import Context, State
from potstill.stages._objective import objective_of
from potstill.stages._privileged import with_privileged
from potstill.stages._terms import require_lesson
from potstill.store.artifacts import Store
from potstill.teachers._following import FollowingTeacher
from potstill.types import Example, Reading

SHOWN = (1, 40, 41, 42)  # stands before each prompt as the teacher reads it


def privileged(count: int = 6) -> list[Example]:
    """Rows whose teacher reads more before the same answer."""
    return [
        replace(row, reading=Reading((*SHOWN, *row.input_ids), (False,) * len(SHOWN) + row.scored))
        for row in rows(count)
    ]


def taught(folder: Any, rate: float = 0.1, every: int = 1, **options: Any) -> Any:
    how = {
        "divergence": DivergenceChoice(name="reverse_kl"),
        "validation": (),
        "privileged": PrivilegedSpec(),
    }
    own = SelfTeacherSpec(rate=rate, every=every)
    return on_policy(folder, privileged(), self_teacher=own, **how | options)


def weights(made: Any) -> dict[str, torch.Tensor]:
    return load_file(made.path / "student/model.safetensors")


def test_the_teacher_is_the_average_of_the_student_and_what_it_was():
    teacher = FollowingTeacher(tiny_model(seed=0), rate=0.25, every=2, vocabulary=128, fingerprint="s")
    student = tiny_model(seed=1)
    new = dict(student.named_parameters())
    wanted = {name: 0.75 * old + 0.25 * new[name] for name, old in teacher.tensors().items()}
    before = {name: tensor.clone() for name, tensor in teacher.tensors().items()}
    teacher.follow(new, 1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.tensors().items())
    teacher.follow(new, 2)
    for name, tensor in teacher.tensors().items():
        torch.testing.assert_close(tensor, wanted[name])
    # What it says is of these weights, head included.
    batch = collate(rows(2), pad_id=0)
    average = tiny_model(seed=0)
    average.load_state_dict(wanted)
    other = FollowingTeacher(average, rate=0.0, every=1, vocabulary=128, fingerprint="s")
    for got, right in zip(teacher.signal(batch).hidden, other.signal(batch).hidden, strict=True):
        torch.testing.assert_close(got, right)
    assert torch.equal(teacher.signal(batch).head.weight, teacher.tensors()["lm_head.weight"])


def test_a_copy_that_never_follows_is_a_fixed_teacher_of_the_same_weights(tmp_path):
    """The same training as beside that teacher, which reads more than the student; the recipe's is not read."""

    class Silent(Memory):
        def signal(self, batch):
            pytest.fail("the recipe's teacher is asked")

    own = taught(tmp_path / "own", rate=0.0, teacher=Silent(tiny_model(seed=1)))
    how = {"divergence": DivergenceChoice(name="reverse_kl"), "validation": ()}
    fixed = on_policy(tmp_path / "fixed", privileged(), teacher=Memory(tiny_model()), **how)
    losses = [[event["loss"] for event in events(made.path, "step")] for made in (own, fixed)]
    assert losses[0] == losses[1]
    assert min(losses[0]) > 0.1
    assert all(torch.equal(tensor, weights(fixed)[name]) for name, tensor in weights(own).items())


def test_a_copy_that_follows_at_once_is_the_student_itself(tmp_path):
    """With rate 1 and nothing more to read, teacher and student are equal at every step: cross-entropy alone trains."""
    options = {
        "self_teacher": SelfTeacherSpec(rate=1.0),
        "strategy": {"keep_rows": True},
        "supervised": SupervisedSpec(ce_weight=1.0),
        "divergence": DivergenceChoice(name="reverse_kl"),
    }
    made = on_policy(tmp_path, **options)
    for event in events(made.path, "step"):
        assert event["divergence"] == pytest.approx(0.0, abs=1e-6)
        assert event["loss"] > 0.1


@pytest.mark.parametrize(
    "way", [{}, {"collect": 2, "inner_epochs": 2}, {"replay": 4, "refresh": 0.3}], ids=str
)
def test_a_resumed_training_has_the_teacher_of_the_uninterrupted_one_bit_for_bit(tmp_path, way):
    whole = taught(tmp_path / "calm", strategy=way)

    def signal() -> int:
        logs = list((tmp_path / "store").glob(".building-train-*/metrics.jsonl"))
        return 15 if logs and len(events(logs[0].parent, "step")) >= 3 else 0

    with pytest.raises(Interrupted):
        taught(tmp_path, strategy=way, stop=signal)
    again = taught(tmp_path, strategy=way)
    assert all(torch.equal(tensor, weights(whole)[name]) for name, tensor in weights(again).items())
    losses = [[event["loss"] for event in events(made.path, "step")] for made in (whole, again)]
    assert losses[0] == losses[1]


def test_a_copy_follows_a_student_whose_head_is_not_trained(tmp_path):
    made = taught(tmp_path, rate=0.5, freeze_head=True, learning_rate=0.01)
    assert torch.equal(weights(made)["lm_head.weight"], tiny_model().lm_head.weight)
    still = taught(tmp_path / "still", rate=0.0, freeze_head=True, learning_rate=0.01)
    assert [e["loss"] for e in events(made.path, "step")] != [e["loss"] for e in events(still.path, "step")]


def test_signals_of_a_teacher_that_moves_are_never_kept(tmp_path, monkeypatch):
    """Rollouts that are trained on again are asked about again."""
    monkeypatch.setattr(_strategy, "KeptSignals", lambda *args: pytest.fail("kept"))
    taught(tmp_path, strategy={"inner_epochs": 2}, steps=2)


def setup_of(tmp_path, source=None, **privileged: Any) -> tuple[Any, Any, Any]:
    options = ", ".join(f"{key}: {value}" for key, value in privileged.items())
    stage = f"{{steps: 2, strategy: {{on_policy: {{max_new_tokens: 8}}}}, self_teacher: {{}}, privileged: {{{options}}}}}"
    place = places.write(tmp_path, source, stages=f"[{{distill: {stage}}}]")
    setup = places.read(place)
    stages = places.setup.open_recipe(place / "r.yaml").recipe.stages
    (spec,) = stages
    context = Context(setup, Store(place / "runs/.store"), Console(quiet=True), seed=0, stages=stages)
    return setup, spec, _rows.training(State(), context)


def test_the_teacher_reads_the_rows_answer_in_the_users_turn_and_the_student_does_not(tmp_path):
    setup, spec, given = setup_of(tmp_path, template="'w90 {prompt} w91 {shown} w92'")
    shown = with_privileged(given, spec, setup)
    for before, after in zip(given.train, shown.train, strict=True):
        assert (after.input_ids, after.scored) == (before.input_ids, before.scored)
        question, answer = before.prompt[1:-1], before.input_ids[len(before.prompt) :]
        wanted = (1, 90, *question, 91, *answer[:-1], 92, HEADER, *answer)
        assert after.reading == Reading(
            wanted, (False,) * (len(wanted) - len(answer)) + (True,) * len(answer)
        )
        assert after.width == len(wanted)
    assert len(shown.validation) == len(given.validation)
    assert shown.train[0].id == given.train[0].id


def test_a_column_is_shown_instead_and_is_read_by_nobody_else(tmp_path):
    source = [{**row, "hint": f"w{60 + i}"} for i, row in enumerate(places.answered())]
    setup, spec, given = setup_of(tmp_path, source, column="hint", template="'{shown} {prompt}'")
    assert "hint" not in setup.data.unread
    hints = {row.id: int(row.extra["hint"][1:]) for row in setup.data.train}
    for example in with_privileged(given, spec, setup).train:
        assert example.reading is not None
        assert example.reading.input_ids[1] == hints[example.row_id]


def test_rows_that_are_mixed_in_are_shown_too(tmp_path):
    more = [{"id": f"p{i}", "prompt": f"w{60 + i} w13", "response": f"w{90 - i} w14"} for i in range(24)]
    more = [row | {"hint": f"w{30 + i}"} for i, row in enumerate(more)]
    write_lines(tmp_path / "real.jsonl", *more)
    stage = "{steps: 1, privileged: {column: hint, template: '{shown} {prompt}'}}"
    data = "{train: rows.jsonl, mix: [{source: real.jsonl, share: 1}]}"
    place = places.write(tmp_path, data=data, stages=f"[{{distill: {stage}}}]")
    setup, stages = places.read(place), places.setup.open_recipe(place / "r.yaml").recipe.stages
    context = Context(setup, Store(place / "s"), Console(quiet=True), seed=0, stages=stages)
    shown = with_privileged(replace(_rows.training(State(), context), validation=()), stages[0], setup)
    assert len(shown.train) == 24
    for example in shown.train:
        assert example.reading is not None
        assert example.reading.input_ids[1] == example.input_ids[1] - 60 + 30


def test_neither_part_is_read_as_a_template(tmp_path):
    """A prompt that holds the mark of what is shown stays as it is."""
    source = [
        {"id": f"p{i}", "prompt": f"w{20 + i} {{shown}}", "response": "w50 {prompt}"} for i in range(24)
    ]
    setup, spec, given = setup_of(tmp_path, source, template="'{prompt} w91 {shown}'")
    example = with_privileged(given, spec, setup).train[0]
    assert example.reading is not None
    unknown = 3  # a word that the tokenizer does not know, and does not decode
    assert example.reading.input_ids[:6] == (1, example.input_ids[1], unknown, 91, 50, HEADER)


def test_of_a_conversation_the_last_answer_alone_is_asked_about(tmp_path):
    turns = [("user", "w20"), ("assistant", "w30"), ("user", "w21"), ("assistant", "w31")]
    source = [
        {"id": f"t{i}", "messages": [{"role": r, "content": f"{c} w{60 + i}"} for r, c in turns]}
        for i in range(24)
    ]
    setup, spec, given = setup_of(tmp_path, source, template="'{prompt} w91 {shown}'")
    before, after = given.train[0], with_privileged(given, spec, setup).train[0]
    assert before.count > after.count == sum(after.reading.scored)
    assert after.prompt == before.prompt
    assert collate([after], pad_id=0).for_teacher.count == after.count


def test_rows_with_nothing_to_show_are_refused_with_a_way_out(tmp_path):
    source = [*places.answered(20), *({"id": f"q{i}", "prompt": f"w{70 + i} w9"} for i in range(10))]
    setup, spec, given = setup_of(tmp_path / "a", source)
    with pytest.raises(DataError, match="no answer that the teacher could be shown") as refused:
        with_privileged(given, spec, setup)
    assert "generate" in refused.value.fix
    with pytest.raises(DataError, match="the column 'hint' holds None"):
        setup_of(tmp_path / "b", column="hint")


def test_check_shows_how_the_teacher_reads(tmp_path):
    setup_of(tmp_path, template="'{prompt} w91 {shown}'")
    report = places.checked(tmp_path)
    (item,) = [item for item in report.items if item.name == "privileged of distill"]
    assert item.passed
    assert "w91" in item.detail
    assert any("second copy of the student" in note for note in report.notes)
    assert any("the student writes all answers" in note for note in report.notes)


ON_POLICY = {"strategy": "on_policy"}


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"privileged": {}}, "privileged"),
        ({"strategy": {"on_policy": {"on_policy_fraction": 0.5}}, "privileged": {}}, "privileged"),
        ({"strategy": {"on_policy": {"teacher_share": 0.2}}, "privileged": {}}, "privileged"),
        ({"strategy": {"on_policy": {"proposals": 5}}, "privileged": {}}, "privileged"),
        ({**ON_POLICY, "privileged": {"template": "{prompt}"}}, "privileged.template"),
        ({"strategy": {"on_policy": {"keep_rows": True}}, "privileged": {}}, "privileged"),
        (
            {
                "strategy": {"on_policy": {"keep_rows": True}},
                "privileged": {},
                "supervised": {"ce_weight": 0.5},
            },
            "privileged",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_shown_is_refused(options, key):
    assert key in {path.removeprefix("stages.distill.") for path in problems({"distill": options})}


def test_hard_labels_beside_a_shown_answer_ask_no_teacher():
    labels = {
        "strategy": {"on_policy": {"keep_rows": True}},
        "privileged": {},
        "supervised": {"ce_weight": 1},
    }
    assert not problems({"distill": labels})
    assert problems({"distill": {**labels, "preference": {}}})


@pytest.mark.parametrize(
    "options", [{"privileged": {"column": "hint"}}, {"self_teacher": {}, "ce_weight": 0.5}], ids=str
)
def test_a_capture_of_the_recipes_teacher_is_not_read_where_another_reading_or_teacher_is_asked(options):
    """The cache holds the rows as they are; the stage would have missed every row in it."""
    plain, other = read("capture", {"distill": {}}, {"distill": {"name": "own", **options}}).stages[1:]
    assert "live" not in plain.asks
    assert "live" in other.asks


def test_rows_whose_own_answer_does_not_fit_behind_what_is_shown_are_left_out(tmp_path, caplog):
    """Where steps hold the rows' answers, the teacher reads all of them behind its longer prompt."""
    source = [{**row, "hint": "w60"} for row in places.answered()]
    long = source[1]["id"]
    source[1]["response"] = "w31 " * 40
    words = "w5 " * 230
    stage = f"{{steps: 2, privileged: {{column: hint, template: '{words}{{prompt}} {{shown}}'}}}}"
    data = "{train: rows.jsonl, on_bad_row: skip}"
    place = places.write(tmp_path, source, data=data, stages=f"[{{distill: {stage}}}]")
    setup, (spec,) = places.read(place), places.setup.open_recipe(place / "r.yaml").recipe.stages
    given = _rows.training(State(), Context(setup, Store(place / "s"), Console(quiet=True), seed=0))
    assert long in {row.row_id for row in (*given.train, *given.validation)}
    shown = with_privileged(given, spec, setup)
    assert long not in {row.row_id for row in (*shown.train, *shown.validation)}
    assert max(row.width for row in shown.train) <= setup.context_length
    assert "1 of 16 rows (6%) are left out: 1 too long for the teacher" in caplog.text


def test_what_the_teacher_reads_of_validation_rows_is_in_a_trainings_key(tmp_path):
    """It chooses which weights are kept."""
    first, second = privileged(2)
    assert first.reading is not None
    longer = replace(first, reading=Reading((1, *first.reading.input_ids), (False, *first.reading.scored)))
    made = [
        taught(tmp_path, validation=(one, second), steps=1, learning_rate=1e-5) for one in (first, longer)
    ]
    assert made[0].key != made[1].key


def test_check_compares_the_student_with_itself_as_it_reads_what_is_shown(tmp_path):
    """The recipe's teacher is not read in such a stage, so it is not what a check says something of."""
    setup, spec, given = setup_of(tmp_path, template="'{prompt} w91 {shown}'")

    class Silent(torch.nn.Module):
        def forward(self, *args, **kwargs):
            pytest.fail("the recipe's teacher is asked")

    def said(rows):
        items = own_text.items(
            setup, [spec], Silent(), tiny_model().to(setup.device), rows, {}, Console(quiet=True)
        )
        return {item.name: item for item in items}

    found = said(given.train)
    assert all(item.passed for item in found.values())
    assert "forward_kl at each token" in found["estimator of distill"].detail
    assert "likeliest ids 100% are" not in found["first rollouts of distill"].detail
    assert "warm_up" not in found["first rollouts of distill"].detail
    unanswered = [replace(row, scored=(False,) * len(row.scored)) for row in given.train]
    assert all("not written yet" in item.detail for item in said(unanswered).values())


def test_check_says_where_the_teacher_is_no_model_that_it_could_measure(tmp_path):
    """A served teacher, or several together, left these items out without a word."""
    setup, spec, given = setup_of(tmp_path)
    other = spec.model_copy(update={"self_teacher": None, "privileged": None, "name": "other"})
    items = own_text.items(
        setup, [spec, other], None, tiny_model().to(setup.device), given.train, {}, Console(quiet=True)
    )
    found = {item.name: item.detail for item in items}
    assert "no one model" in found["estimator of other"]
    assert "no one model" in found["first rollouts of other"]
    assert "small world" in found["estimator of distill"]


def test_check_counts_the_copies_of_the_student_that_a_stage_keeps():
    own = {**ON_POLICY, "privileged": {}, "self_teacher": {}}
    stages = read({"distill": own | {"reference": {}}}, {"distill": {**own, "name": "b"}}, "finetune").stages
    assert [stage.copies for stage in stages] == [2, 1, 0]


def test_a_column_can_be_shown_where_rows_are_trained_on():
    assert not problems({"distill": {"privileged": {"column": "hint"}}})
    assert PrivilegedSpec().template.count("{shown}") == 1


@pytest.mark.parametrize(
    ("options", "learns"),
    [
        ({}, False),
        ({"privileged": {"column": "hint"}}, True),
        ({"policy_gradient": {}}, False),
        ({"policy_gradient": {"reward": "builders.outside.reward:brevity"}}, True),
        ({"reference": {}}, False),
        ({"preference": {}}, True),
    ],
    ids=str,
)
def test_a_teacher_that_says_what_the_student_says_needs_another_lesson(options, learns):
    strategy = {"on_policy": {"keep_rows": True}}
    (spec,) = read({"distill": {"strategy": strategy, "self_teacher": {"rate": 0.5}, **options}}).stages
    if learns:
        require_lesson(spec)
        return
    with pytest.raises(RecipeError, match="nothing is ever learnt") as refused:
        objective_of(spec)
    assert refused.value.path == "stages.distill.self_teacher"
