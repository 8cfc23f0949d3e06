"""A recipe that keeps the alternatives of a served teacher and distils by them, with nobody asked twice."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from builders import alternatives as made
from builders import places, served
from builders.cli import potstill
from builders.endpoint import Act, Sent, serving
from builders.served import CANARY, KEY
from builders.tiny import EOS, tiny_tokenizer
from potstill.cache.reader import Cache
from potstill.store.lines import read_lines

STAGES = (
    "stages: [{generate: {keep: topk, sampling_temperature: 1, filters: null, max_new_tokens: 8}}, "
    "{distill: {steps: 2}}]\n"
)
TEACHER = ", tokenizer: student, top_logprobs: 3"


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, CANARY)


def told(sent: Sent, times: int) -> Act:
    """The prompt backwards with ids; of prompts with w21 strings alone, as of a server that knows no ids."""
    words = made.reader(tiny_tokenizer())
    text = " ".join(reversed(sent.prompt.split()))
    rows = made.rows_of(words.templater.text_ids(text), others=(126, 127))
    ended = [*rows, {EOS: 0.9, 126: 0.06, 127: 0.02}]
    stated = made.by_string(words, rows) if "w21" in sent.prompt.split() else made.by_id(ended)
    return made.reply(text, stated)


def run(place: Path, *more: str) -> Any:
    return potstill("run", "r.yaml", *more, cwd=place)


def folder_of(place: Path) -> Path:
    """The signals, as the run names them."""
    return place / "runs/r/stages/generate.signals"


def users(place: Path, *command: str) -> dict[str, list[str]]:
    """The runs that refer to each entry of the store."""
    done = potstill(*command, "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    return {entry["name"]: entry["runs"] for entry in json.loads(done.stdout)["entries"]}


def test_a_student_learns_from_alternatives_and_the_text_is_used_where_ids_are_not_certain(
    tmp_path: Path,
) -> None:
    with serving(told) as server:
        served.write(tmp_path, server, rows=20, more=STAGES, teacher=TEACHER)
        checked = potstill("check", "r.yaml", cwd=tmp_path)
        assert checked.returncode == 0, checked.stdout + checked.stderr
        assert not server.sent
        done = run(tmp_path)
        assert done.returncode == 0, done.stderr
        assert len(server.sent) == 20
        assert "kept of 19 of 20 answers, 3.0 ids a token" in done.stderr
        assert (
            "1 of 14 rows are trained on as text, as hard labels: 1 ids that are not certain" in done.stderr
        )
        assert "the text alone is used: 1 " in done.stderr
        again = run(tmp_path, "name=again", "distill.steps=3")
        assert again.returncode == 0, again.stderr
        assert len(server.sent) == 20
    answers = read_lines(tmp_path / "runs/r/stages/generate/answers.jsonl")
    assert sum(not line["ids"] for line in answers) == 1
    facts = json.loads((tmp_path / "runs/r/stages/generate/manifest.json").read_text())["facts"]
    assert facts["alternatives"]["kept"] == 19
    assert sum(facts["alternatives"]["refused"].values()) == 1
    name = folder_of(tmp_path).resolve().name
    assert users(tmp_path, "cache", "ls")[name] == ["again", "r"]
    assert not any(entry.startswith("signals-") for entry in users(tmp_path, "cache", "gc"))
    assert (
        "likely tokens that a served teacher stated, of 14 rows"
        in potstill("cache", "ls", cwd=tmp_path).stdout
    )


def test_what_is_kept_is_a_teacher_of_its_own_elsewhere(tmp_path: Path) -> None:
    with serving(told) as server:
        served.write(tmp_path, server, rows=20, more=STAGES, teacher=TEACHER)
        assert run(tmp_path).returncode == 0
    setup = places.read(tmp_path)
    texts = {row.id: row for row in setup.data.train}
    rows = [
        {"id": line["row_id"], "prompt": texts[line["row_id"]].prompt_text, "response": line["text"]}
        for line in read_lines(tmp_path / "runs/r/stages/generate/answers.jsonl")
        if line["row_id"] in texts
    ]
    (tmp_path / "answers.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    signals = Cache.open(folder_of(tmp_path) / "signals")
    assert len(signals) >= len(rows)
    (tmp_path / "r.yaml").write_text(
        "teacher: {cache: runs/r/stages/generate.signals}\nstudent: {model: student}\n"
        "data: {train: answers.jsonl}\nstages: [{distill: {steps: 2}}]\nname: elsewhere\n"
    )
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    name = folder_of(tmp_path).resolve().name
    assert users(tmp_path, "store", "ls")[name] == ["elsewhere", "r"]
    shutil.rmtree(tmp_path / "runs/r")
    assert users(tmp_path, "cache", "ls") == {name: ["elsewhere"]}
    assert name not in users(tmp_path, "store", "gc")


@pytest.mark.parametrize(
    ("teacher", "stages", "words"),
    [
        ("", STAGES, "needs the tokenizer of the served model"),
        (TEACHER, STAGES.replace("sampling_temperature: 1, ", ""), "sampling_temperature is 0.7"),
        (TEACHER, STAGES.replace("keep: topk,", "keep: topk, top_p: 0.9,"), "top_p is 0.9"),
        (TEACHER + ", omit: [temperature]", STAGES.replace("sampling_temperature: 1, ", ""), "teacher.omit"),
        (TEACHER + ", extra_body: {min_p: 0.1}", STAGES, "extra_body has min_p"),
        (TEACHER, STAGES + "task: {type: json}\n", "a server masks tokens"),
        (TEACHER, STAGES.replace("steps: 2", "steps: 2, temperature: 2"), "of temperature 1"),
        (TEACHER, STAGES.replace("steps: 2", "steps: 2, strategy: on_policy"), "gives no distribution"),
        (TEACHER, STAGES.replace("{distill", "capture, {distill"), "gives no distribution"),
        (TEACHER.replace("3", "30"), STAGES, "a reply states 1 to 20"),
        (
            "",
            STAGES.replace("topk", "hidden").replace("distill", "finetune"),
            "needs a teacher whose weights are whole in this process",
        ),
    ],
)
def test_what_could_not_be_certain_is_refused_by_the_check(
    tmp_path: Path, teacher: str, stages: str, words: str
) -> None:
    with serving(told) as server:
        served.write(tmp_path, server, rows=8, more=stages, teacher=teacher)
        done = potstill("check", "r.yaml", "--quick", cwd=tmp_path)
        assert not server.sent
    assert done.returncode in (2, 4)
    assert words in done.stderr + done.stdout


def test_a_teacher_of_another_vocabulary_is_refused_by_the_check(tmp_path: Path) -> None:
    with serving(told) as server:
        served.write(tmp_path, server, rows=8, more=STAGES, teacher=", tokenizer: other")
        (tmp_path / "other").mkdir()
        tiny_tokenizer(160).save_pretrained(tmp_path / "other")
        done = potstill("check", "r.yaml", "--quick", cwd=tmp_path)
    assert "has 32 ids that the student's vocabulary lacks" in done.stderr + done.stdout


def test_signals_hold_what_the_server_stated_and_the_text_elsewhere(tmp_path: Path) -> None:
    with serving(told) as server:
        served.write(tmp_path, server, rows=20, more=STAGES, teacher=TEACHER)
        assert run(tmp_path).returncode == 0
    cache = Cache.open(folder_of(tmp_path) / "signals")
    widths = {}
    for key in cache.keys():  # noqa: SIM118
        signal = cache.batch([key]).whole()
        mass = signal.lp.exp().sum(-1)
        widths[key] = signal.ids.shape[1]
        if widths[key] > 1:
            assert mass[0] == pytest.approx(0.7 + 0.15 + 0.075, abs=1e-6)
            assert signal.lp[-1, 0] == pytest.approx(math.log(0.9))
        else:
            assert mass.tolist() == pytest.approx([1.0] * len(mass))
    assert sorted(widths.values())[0] == 1
