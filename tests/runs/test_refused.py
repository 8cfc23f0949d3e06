"""What a run refuses by recipe and configs alone, `check` refuses too, and the run refuses it before any work."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from builders import fake_vllm, places
from builders.tiny import save_tiny, tiny_model, tiny_tokenizer
from potstill.check import check
from potstill.console import Console
from potstill.devices import ranks
from potstill.errors import PotstillError, RecipeError
from potstill.runs import setup
from potstill.runs.run import run
from potstill.runs.together import require_together
from potstill.stages import _strategy

QUIET = Console(quiet=True)
ENGINE = "{scores: 'http://localhost:9', model: teacher}"  # nobody is asked
TWO = "{ensemble: [{model: teacher}, {name: other, model: teacher, dtype: float32}]}"
CACHED = "{cache: kept/%s/stages/capture}"
VECTORS = "[{capture: {signal: kl_vector}}, {distill: {steps: 1, freeze_head: true}}]"
WRITTEN = "{generate: {keep: topk, engine: vllm, filters: null, max_new_tokens: 4}}"
DISTILL = "{distill: {steps: 1, divergence: %s}}"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Models, rows, and captures of two kinds."""
    folder = tmp_path_factory.mktemp("refused")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        save_tiny(folder / "student", layers=1, seed=3)
        tiny_model(kind="gemma2", seed=4).save_pretrained(folder / "capped")
        tiny_tokenizer().save_pretrained(folder / "capped")
        places.write(folder, places.answered(30), student="{model: student}")
        for name in ("topk", "topk_sampled"):
            stages = f"stages=[{{capture: {{signal: {name}, max_kl_nats: 1}}}}]"
            run("r.yaml", [f"name={name}", "runs=kept", stages], console=QUIET)
    return folder


@pytest.fixture(autouse=True)
def there(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(Path(fake_vllm.__file__).parent))


REFUSED = {
    "likeliest ids of an engine at another temperature": (
        {"stages": f"[{WRITTEN}, capture, {{distill: {{steps: 1, temperature: 2}}}}]"},
        "vllm shows no log-sum-exp",
        "stages.generate.keep",
    ),
    "vectors of a head with a softcap": (
        {"student": "{model: capped}", "stages": VECTORS},
        "softcap",
        "stages.capture.signal",
    ),
    "vectors of the head of a cut teacher with a softcap": (
        {"teacher": "{model: capped}", "student": "{from_teacher: {keep_layers: 1}}", "stages": VECTORS},
        "softcap",
        "stages.capture.signal",
    ),
    "hidden states of an engine": (
        {"teacher": ENGINE, "stages": "[{capture: {signal: hidden}}, distill]"},
        "cannot be hidden: teacher gives its likeliest ids",
        "stages.capture.signal",
    ),
    "given tokens of an engine": (
        {"teacher": ENGINE, "stages": "[{capture: {signal: token}}]"},
        "cannot be token",
        "stages.capture.signal",
    ),
    "a capture of likeliest ids that are read whole": (
        {"teacher": ENGINE, "stages": f"[capture, {DISTILL % 'logit_mse'}]"},
        "logit_mse of distill does not support topk",
        "stages.capture",
    ),
    "a capture of likeliest ids that are read at another temperature": (
        {"teacher": ENGINE, "stages": "[capture, {distill: {steps: 1, temperature: 2}}]"},
        "is 2, and what teacher says is of another one",
        "stages.distill.temperature",
    ),
    "likeliest ids in training that are read whole": (
        {"teacher": ENGINE, "stages": f"[{DISTILL % 'logit_mse'}]"},
        "logit_mse supports dense signals, the teacher provides topk",
        "stages.distill.divergence",
    ),
    "likeliest ids in training at another temperature": (
        {"teacher": ENGINE, "stages": "[{distill: {steps: 1, temperature: 2}}]"},
        "is 2, and what teacher says",
        "stages.distill.temperature",
    ),
    "likeliest ids at a temperature that moves": (
        {"teacher": ENGINE, "stages": "[{distill: {steps: 1, temperature: {linear: {from: 1, to: 2}}}}]"},
        "moves",
        "stages.distill.temperature",
    ),
    "a cache at a temperature that it does not hold": (
        {"teacher": CACHED % "topk", "stages": "[{distill: {steps: 1, temperature: 3}}]"},
        "is 3, and what teacher says",
        "stages.distill.temperature",
    ),
    "drawn ids of a cache at another temperature": (
        {"teacher": CACHED % "topk_sampled", "stages": "[{distill: {steps: 1, temperature: 2}}]"},
        "is 2, and what teacher says",
        "stages.distill.temperature",
    ),
    "drawn ids of a cache whose spread weighs tokens": (
        {"teacher": CACHED % "topk_sampled", "stages": "[{distill: {steps: 1, token_weights: entropy}}]"},
        "the token weight entropy cannot be read from sampled",
        "stages.distill.token_weights",
    ),
    "drawn ids of a cache for a divergence of whole distributions": (
        {"teacher": CACHED % "topk_sampled", "stages": f"[{DISTILL % 'reverse_kl'}]"},
        "reverse_kl supports",
        "stages.distill.divergence",
    ),
    "a member of several at a temperature that its cache does not hold": (
        {
            "teacher": f"{{ensemble: [{{model: teacher}}, {{name: b, temperature: 2, cache: {CACHED[8:-1] % 'topk'}}}]}}",
            "stages": "[{distill: {steps: 1}}]",
        },
        "is 1, and what teacher \\+ b says",
        "stages.distill.temperature",
    ),
    "hidden states of several teachers": (
        {"teacher": TWO, "stages": "[{capture: {signal: hidden}}, distill]"},
        "no hidden state in common",
        "stages.capture.signal",
    ),
    "several teachers whose whole distribution is read": (
        {"teacher": TWO, "stages": f"[capture, {DISTILL % 'logit_mse'}]"},
        "no hidden states, and what is needed reads whole",
        "stages.capture.signal",
    ),
}


def write(case: dict[str, str]) -> None:
    places.recipe(Path(), **{"student": "{model: student}"} | case)


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_run_refuses_check_refuses_and_nothing_is_done(place, case):
    sections, message, path = REFUSED[case]
    write(sections)
    for begin in (
        lambda: check("r.yaml", proofs=False, console=QUIET),
        lambda: run("r.yaml", console=QUIET),
    ):
        with pytest.raises(PotstillError, match=message) as error:
            begin()
        assert error.value.path == path
        assert error.value.fix
    assert not [*Path("runs/.store").glob("[!.]*-*")]


ALLOWED = {
    "likeliest ids of an engine at temperature 1": {"stages": f"[{WRITTEN}, capture, {{distill: {{steps: 1}}}}]"},
    "a softcap beside hidden states": {
        "student": "{model: capped}",
        "stages": "[{capture: {signal: hidden}}, {distill: {steps: 1}}]",
    },
    "an engine": {"teacher": ENGINE, "stages": "[capture, {distill: {steps: 1}}]"},
    "a cache at a temperature that it holds": {
        "teacher": CACHED % "topk",
        "stages": f"[{DISTILL % 'reverse_kl'}]",
    },
    "hard labels alone, which compare nothing": {
        "teacher": ENGINE,
        "stages": "[{distill: {steps: 1, temperature: 2, ce_weight: 1}}]",
    },
    "several teachers whose likeliest ids are read": {"teacher": TWO, "stages": f"[capture, {DISTILL % 'reverse_kl'}]"},
}  # fmt: skip


@pytest.mark.parametrize("case", ALLOWED)
def test_what_a_run_can_do_is_not_refused(case):
    write(ALLOWED[case])
    assert check("r.yaml", proofs=False, console=QUIET).items


MEASURED = {
    "answers": ({"samples": 9}, "and not to 6"),
    "tokens": ({"samples": 3, "max_new_tokens": 9}, "not 9"),
}


@pytest.mark.parametrize("case", MEASURED)
def test_answers_that_a_teacher_did_not_write_before_it_left_are_missed_before_training(place, case):
    """Hours of training end in an evaluation that the capture cannot serve."""
    write({})
    run("r.yaml", ["name=answers", "runs=kept", "stages=[capture, {evaluate: {samples: 3}}]"], console=QUIET)
    options, message = MEASURED[case]
    held = {"samples": 3}
    for measured, passed in ((options, False), (held, True)):
        evaluate = f"{{evaluate: {json.dumps(measured)}}}"
        write({"teacher": CACHED % "answers", "stages": f"[{{distill: {{steps: 1}}}}, {evaluate}]"})
        items = {item.name: item for item in check("r.yaml", proofs=False, console=QUIET).items}
        assert items["teacher's answers"].passed is passed
        assert passed or message in items["teacher's answers"].detail
    write(
        {
            "teacher": CACHED % "answers",
            "stages": f"[{{distill: {{steps: 1}}}}, {{evaluate: {json.dumps(options)}}}]",
        }
    )
    with pytest.raises(PotstillError, match=message):
        run("r.yaml", ["name=measured"], console=QUIET)
    assert not [*Path("runs/.store").glob("train-*")]


TWO_PROCESSES = {"devices": "{processes: 2}"}
TOGETHER = {
    "no sharding": ({"devices": "{processes: 2, sharding: none}"}, "none cannot train in 2", "devices.sharding"),
    "kept signals of a teacher in parts": (
        {"teacher": "{model: teacher, cache: auto}", "devices": "{processes: 2, teacher: sharded}"},
        "cannot keep the signals of a teacher in parts",
        "teacher.cache",
    ),
    "states of a teacher in parts": (
        {
            "stages": "[{generate: {keep: hidden, filters: null, max_new_tokens: 4}}, capture, {distill: {steps: 1}}]",
            "devices": "{processes: 2, teacher: sharded}",
        },
        "needs one teacher whose weights are whole",
        "stages.generate.keep",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TOGETHER)
def test_what_several_processes_cannot_do_is_refused_before_they_start(case):
    sections, message, path = TOGETHER[case]
    write(sections)
    opened = setup.open_recipe("r.yaml")
    parts = setup.set_up(opened)  # in one process it works
    with pytest.raises(PotstillError, match=message) as of_a_run:
        require_together(opened.recipe, parts.teacher, 2)
    with pytest.raises(PotstillError, match=message) as of_a_check:
        check("r.yaml", proofs=False, console=QUIET)
    assert of_a_run.value.path == of_a_check.value.path == path
    require_together(opened.recipe, parts.teacher, 1)


ALONE = {
    "blocks": {"teacher": "{layered: teacher}", "stages": "[capture, {distill: {steps: 1}}]"},
    "an engine in the process": {"stages": "[{distill: {steps: 1, strategy: {on_policy: {engine: vllm}}}}]"},
}


@pytest.mark.parametrize("case", ALONE)
def test_what_one_process_makes_alone_is_said_and_not_refused(case):
    """What it made then serves any number of them."""
    write(ALONE[case] | TWO_PROCESSES)
    report = check("r.yaml", proofs=False, console=QUIET)
    assert [note for note in report.notes if "devices.processes=1 --until " in note]
    write(ALONE[case])
    assert not [note for note in check("r.yaml", proofs=False, console=QUIET).notes if "--until" in note]


def test_an_engine_in_one_of_several_processes_is_refused_where_the_stage_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "world", lambda: 2)
    choice = SimpleNamespace(name="on_policy", option={"engine": "vllm"}.get)
    stage = SimpleNamespace(strategy=choice, precision="float32", name="distill")
    with pytest.raises(
        RecipeError, match="vLLM cannot start in one of 2.*processes=1 --until distill"
    ) as error:
        _strategy._pushed(SimpleNamespace(spec=stage), tmp_path)
    assert error.value.path == "stages.distill.strategy.on_policy.engine"


def test_rows_and_captures_are_what_the_refusals_need(place):
    for name, kind in (("topk", "topk"), ("topk_sampled", "sampled")):
        about = json.loads((place / f"kept/{name}/stages/capture/teacher.json").read_text())
        assert about["provides"]["signals"] == [kind]
