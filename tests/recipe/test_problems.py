"""Problems of a recipe and their messages."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from builders.recipes import problems, read


@pytest.mark.parametrize(
    ("stage", "path", "sentence"),
    [
        (
            {"distill": {"temprature": 2}},
            "stages.distill.temprature",
            "unknown key; did you mean temperature?",
        ),
        ({"distill": {"lr": 2}}, "stages.distill.lr", "unknown key; did you mean learning_rate?"),
        ({"distill": {"learning-rate": 2}}, "stages.distill.learning-rate", "did you mean learning_rate?"),
        (
            {"distill": {"kd-alpha": 0.5}},
            "stages.distill.kd-alpha",
            "did you mean ce_weight? ce_weight is the share",
        ),
        ({"distill": {"kd_alpha": 0.5}}, "stages.distill.kd_alpha", "did you mean ce_weight?"),
        ({"distill": {"alpha": 0.5}}, "stages.distill.alpha", "did you mean ce_weight?"),
        (
            {"generate": {"temperature": 1}},
            "stages.generate.temperature",
            "did you mean sampling_temperature?",
        ),
        (
            {"generate": {"epochs": 1}},
            "stages.generate.epochs",
            "epochs belongs in a control stage, in a distill stage or in a fin",
        ),
        ({"distill": {"xyzzy": 1}}, "stages.distill.xyzzy", "unknown key. Known here: name, epochs"),
        ({"distil": {}}, "stages.distil", "no stage is called 'distil'; did you mean distill?"),
        (
            "sumarize",
            "stages.sumarize",
            "no stage is called 'sumarize'. Stages: capture, control, distill, evaluate, finetune, generate",
        ),
    ],
)
def test_an_unknown_key_or_stage_comes_with_a_suggestion(stage: Any, path: str, sentence: str) -> None:
    messages = problems(stage)
    assert list(messages) == [path]
    assert sentence in messages[path]


@pytest.mark.parametrize(
    ("top", "path", "sentence"),
    [
        ({"epochs": 2}, "epochs", "unknown key. epochs belongs in a control stage, in a distill stage"),
        ({"temprature": 2}, "temprature", "temperature belongs in a distill stage"),
        ({"teachr": {}}, "teachr", "did you mean teacher?"),
        (
            {"data": {"train": "t", "keep_layers": 2}},
            "data.keep_layers",
            "belongs under student.from_teacher",
        ),
        ({"teacher": {"model": "t", "seed": 2}}, "teacher.seed", "seed belongs at the top level"),
        ({"output_dir": "x"}, "output_dir", "did you mean runs?"),
        ({"teacher": {"endpont": "http://h/v1", "model": "t"}}, "teacher.endpont", "did you mean endpoint?"),
        (
            {"teacher": {"url": "u", "model": "t"}},
            "teacher.url",
            "terms, prompt, ensemble, logits, layered, scores, endpoint.",
        ),
        ({"teacher": {"scores": "http://h"}}, "teacher.scored.model", "is missing. scored needs text here."),
        (
            {"teacher": {"endpoint": "http://h/v1"}},
            "teacher.served.model",
            "is missing. served needs text here.",
        ),
    ],
)
def test_a_key_in_the_wrong_section_is_shown_its_place(top: Any, path: str, sentence: str) -> None:
    messages = problems(**top)
    assert list(messages) == [path]
    assert sentence in messages[path]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"learning_rate": "1e-5"}, "must be a number or auto, not the text '1e-5'. Remove the quotes."),
        ({"learning_rate": "08"}, "must be a number or auto, not the text '08'. Remove the leading zeros."),
        ({"learning_rate": None}, "must be a number or auto, not empty."),
        ({"learning_rate": True}, "must be a number or auto, not true."),
        ({"learning_rate": float("nan")}, "must be a finite number, not nan."),
        ({"learning_rate": -1}, "must be greater than 0, not -1."),
        ({"temperature": 0}, "must be greater than 0, not 0."),
        ({"temperature": -1}, "must be greater than 0, not -1."),
        ({"temperature": float("nan")}, "must be a finite number, not nan."),
        ({"temperature": float("inf")}, "must be a finite number, not inf."),
        ({"ce_weight": 1.5}, "must be at most 1, not 1.5."),
        ({"ce_weight": -0.1}, "must be at least 0, not -0.1."),
        ({"steps": 1.5}, "must be a whole number, not 1.5."),
        ({"steps": 0}, "must be at least 1, not 0."),
        ({"activation_checkpointing": "no"}, "must be true or false, not the text 'no'. Write false."),
        (
            {"schedule": "cosin"},
            "must be cosine, linear or constant, not the text 'cosin'. Did you mean cosine?",
        ),
        ({"name": "a b"}, "'a b' cannot name a folder. Use letters, digits"),
        ({"betas": 3}, "must be a list, not 3."),
    ],
)
def test_a_wrong_value_says_what_it_must_be(options: dict[str, Any], sentence: str) -> None:
    messages = problems({"distill": options})
    assert len(messages) == 1
    assert sentence in next(iter(messages.values()))


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"temperature": {"linear": {"from": "hot", "to": 1}}}, "stages.distill.temperature.linear.from"),
        ({"temperature": {"linear": {"from": 2}}}, "stages.distill.temperature.linear.to"),
        ({"temperature": {"liner": {"from": 2, "to": 1}}}, "stages.distill.temperature.liner"),
        ({"temperature": {}}, "stages.distill.temperature"),
        ({"temperature": {"linear": {"from": 2, "to": 0}}}, "stages.distill.temperature"),
        ({"ce_weight": {"cosine": {"from": 2, "to": 0}}}, "stages.distill.ce_weight"),
    ],
)
def test_a_wrong_schedule_is_reported_at_its_own_place(options: dict[str, Any], path: str) -> None:
    assert path in problems({"distill": options})


@pytest.mark.parametrize(
    ("top", "path", "sentence"),
    [
        (
            {"teacher": "org/t"},
            "teacher",
            "must be a mapping, not the text 'org/t'. Write teacher: {model: org/t}.",
        ),
        ({"data": "t.jsonl"}, "data", "Write data: {train: t.jsonl}."),
        ({"teacher": {}}, "teacher.model", "is missing. Add the key model."),
        ({"teacher": {"model": 7}}, "teacher.model", "must be text, not 7. Put it in quotes."),
        ({"data": {"train": []}}, "data.train", "must be a list with something in it, not an empty list."),
        ({"method": "skd"}, "method", "must be kd, seqkd, sft, gkd, minillm, distillm"),
        ({"version": 2}, "version", "must be 1, not 2."),
        ({"name": "../up"}, "name", "cannot name a folder"),
        ({"stages": "distill"}, "stages", "must be a list, not the text 'distill'."),
        ({"stages": [3]}, "stages.0", "must be a verb, or one verb with its options"),
        ({"stages": [{"distill": {}, "evaluate": {}}]}, "stages.0", "must be a verb, or one verb"),
        ({"stages": [{"distill": 3}]}, "stages.distill", "must be a verb, or one verb"),
    ],
)
def test_a_wrong_shape_shows_the_right_one(top: dict[str, Any], path: str, sentence: str) -> None:
    messages = problems(**top)
    assert list(messages) == [path]
    assert sentence in messages[path]


def test_two_unknown_keys_are_both_reported() -> None:
    messages = problems({"distill": {"temprature": 2, "kd-alpha": 0.5}}, {"generate": {"topk": 1}}, sed=1)
    assert set(messages) == {
        "stages.distill.temprature",
        "stages.distill.kd-alpha",
        "stages.generate.topk",
        "sed",
    }


def test_stages_are_called_by_name_and_by_number_where_names_do_not_tell() -> None:
    assert "stages.polish.steps" in problems({"distill": {"name": "polish", "steps": 0}})
    assert {"stages.1.steps"} == set(problems("distill", {"distill": {"steps": 0}}))


def test_a_whole_number_may_be_spelled_as_a_float() -> None:
    assert read({"distill": {"steps": 1e3}}) == read({"distill": {"steps": 1000}})


@pytest.mark.parametrize(
    ("stages", "top"),
    [
        ((), {"\ud800": 1}),
        ((), {"data": {"train": "a", "\udc80ed": 1}}),
        ((), {"data": {"train": "\ud800"}}),
        ((), {"data": {"train": "a", "columns": {"\ud800": "prompt"}}}),
        (({"distill": {"divergence": {"jsd": {"\ud800": 1}}}},), {}),
        (("\ud800",), {}),
    ],
)
def test_half_a_character_is_refused_wherever_it_stands(stages: tuple[Any, ...], top: dict[str, Any]) -> None:
    """A shell hands over bytes that are no UTF-8 in this form."""
    (message,) = problems(*stages, **top).values()
    assert "holds half a character. Write it in UTF-8." in message


HUGE = [10**400, -(10**400)]


@pytest.mark.parametrize(
    ("path", "value"),
    [*itertools.product(("steps", "epochs", "tokens_per_step", "learning_rate", "divergence.jsd.beta", "token_weights.position.half_life"), HUGE),
     ("steps", 2**63), ("epochs", 1e308), ("tokens_per_step", 1e30)],
)  # fmt: skip
def test_a_number_beyond_measure_is_refused(path: str, value: Any) -> None:
    """No float holds it, or no library."""
    options = value
    for key in reversed(path.split(".")):
        options = {key: options}
    assert list(problems({"distill": options})) == [f"stages.distill.{path}"]


def test_a_row_of_any_length_that_fits_a_library_may_be_asked_for() -> None:
    assert problems(data={"train": "a", "max_length": 2**63 - 1}) == {}
    assert list(problems(data={"train": "a", "max_length": 2**63})) == ["data.max_length"]
