"""One vocabulary goes on behind the other: both models run on the ids that they share, in each direction."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from builders import places
from builders.chats import write_lines
from builders.cli import potstill
from builders.tiny import PAD, TEMPLATE, save_tiny, tiny_model, tiny_tokenizer
from potstill.data.answers import Written
from potstill.models import loading

STAGES = "[{distill: {steps: 2}}, {control: {}}, {evaluate: {samples: 4, max_new_tokens: 4}}]"
SIZES = [(160, 128), (128, 160)]
OTHER = 130  # a word of the larger vocabulary


def models(place, teacher: int, student: int):
    save_tiny(place / "teacher", vocab=teacher, seed=0)
    save_tiny(place / "student", vocab=student, layers=1, seed=1)
    return place


def recipe(place, rows=None, **changes: str):
    return places.write(place, rows, **{"student": "{model: student}", "stages": STAGES} | changes)


def with_other_words(*names: str):
    """Rows of which those with these ids hold a word of the larger vocabulary in their answers."""
    rows = places.answered()
    for row in rows:
        if row["id"] in names:
            row["response"] += f" w{OTHER}"
    return rows


def logits(folder, ids):
    model = loading.load(loading.find_source(str(folder)), dtype=torch.float32).model
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].double()


@pytest.mark.parametrize(("teacher", "student"), SIZES)
def test_a_run_compares_both_models_on_the_shared_ids(tmp_path, teacher, student):
    """From check to export: the KL of the report is the float64 one on 128 ids, both sides renormalised."""
    place = recipe(models(tmp_path, teacher, student), teacher="{model: teacher, dtype: float32}")
    checked = potstill("check", "r.yaml", cwd=place)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    larger = "teacher" if teacher > student else "student"
    assert f"vocabulary: 128 ids, shared; 32 of the {larger} alone" in checked.stdout
    done = potstill("run", "r.yaml", cwd=place)
    assert done.returncode == 0, done.stdout + done.stderr
    (evaluation,) = (place / "runs/r/stages/evaluate").glob("evaluation.json")
    figures = json.loads(evaluation.read_text())["models"]
    setup = places.read(place)
    encode = setup.readers.student.templater.encode_row
    sums = {"forward_kl": 0.0, "reverse_kl": 0.0, "left_out": 0.0, "teacher": 0.0}
    tokens = 0
    for row in setup.data.heldout:
        (example,) = encode(row)
        on = [i - 1 for i, scored in enumerate(example.scored) if scored]
        t, s = (logits(place / name, example.input_ids)[on] for name in ("teacher", "runs/r/student"))
        p, q = (z[:, :128].log_softmax(-1) for z in (t, s))
        sums["forward_kl"] += float((p.exp() * (p - q)).sum())
        sums["reverse_kl"] += float((q.exp() * (q - p)).sum())
        sums["left_out"] += float(s.softmax(-1)[:, 128:].sum())
        sums["teacher"] += float(t.softmax(-1)[:, 128:].sum())
        tokens += len(on)
    for key in ("forward_kl", "reverse_kl", "left_out"):
        assert figures["after"][key]["value"] == pytest.approx(sums[key] / tokens, abs=1e-5), key
    assert figures["teacher"]["left_out"]["value"] == pytest.approx(sums["teacher"] / tokens, abs=1e-5)
    saved = loading.load(loading.find_source(str(place / "runs/r/student")), dtype=torch.float32)
    assert len(saved.tokenizer) == student
    assert saved.model.get_output_embeddings().weight.shape[0] == student


def test_rows_of_the_students_own_ids_are_no_part_of_what_both_read(tmp_path):
    """Training, validation and held-out rows with such ids are left out, counted, and said with their share."""
    place = models(tmp_path, 128, 160)
    recipe(place, with_other_words(*(f"p{i}" for i in range(0, 24, 3))))
    setup = places.read(place)
    parts = (setup.data.train, setup.data.validation, setup.data.heldout)
    train, validation, heldout = ({row.id for row in part} for part in parts)
    others = {f"p{i}" for i in range(0, 24, 3)}
    checked = potstill("check", "--quick", "r.yaml", cwd=place)
    count, of = len(train & others), len(train)
    assert f"{count} of {of} examples ({100 * count / of:.0f}%) hold ids" in checked.stderr
    assert f"id {OTHER} ('w{OTHER}')" in checked.stderr
    assert f"{len(heldout - others)} of {len(heldout)} can be measured" in checked.stdout
    assert f"{count} of {of} training rows hold ids of the student alone" in checked.stdout + checked.stderr
    done = potstill("run", "r.yaml", cwd=place)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{count} of {of} examples" in done.stderr
    assert places.summary(place)["after"]["n"] == len(heldout - others)
    assert validation


def test_a_run_of_rows_that_the_teacher_cannot_read_ends_in_a_sentence(tmp_path):
    """The student's template ends every turn with a token that the teacher lacks."""
    place = models(tmp_path, 128, 160)
    template = TEMPLATE.replace("{{ eos_token }}", f" w{OTHER}")
    tiny_tokenizer(160, template).save_pretrained(place / "student")
    recipe(place)
    done = potstill("run", "r.yaml", cwd=place)
    assert done.returncode == 2
    assert "hold ids that the teacher does not have, most often id 130 ('w130')" in done.stderr
    assert "data.template.file" in done.stderr


def test_a_pad_token_of_the_student_alone_never_reaches_the_teacher(tmp_path):
    """A tokenizer with an added pad token: batches of both models are padded with an id that both have."""
    place = models(tmp_path, 128, 160)
    tokenizer = tiny_tokenizer(160)
    tokenizer.pad_token = "w140"
    tokenizer.save_pretrained(place / "student")
    rows = places.answered()
    rows[1]["response"] += " w50 w51 w52"
    rows[7]["response"] += " w50 w51"
    recipe(place, rows)
    assert places.read(place).readers.student.pad_id == 140
    assert places.read(place).readers.padding == PAD
    done = potstill("run", "r.yaml", cwd=place)
    assert done.returncode == 0, done.stdout + done.stderr
    settings = json.loads((place / "runs/r/student/generation_config.json").read_text())
    assert settings["pad_token_id"] == 140


def test_padding_behind_both_vocabularies_is_no_part_of_either(tmp_path):
    """Heads of 192 and 160 rows for tokenizers of 130 and 128 ids: 128 are compared, and two are left out."""
    for name, vocab, layers, words in (("teacher", 192, 2, 130), ("student", 160, 1, 128)):
        save_tiny(tmp_path / name, vocab=vocab, layers=layers)
        tiny_tokenizer(words).save_pretrained(tmp_path / name)
    place = recipe(tmp_path)
    readers = places.read(place).readers
    assert (readers.shared_ids, readers.overlap.teacher_only) == (128, 2)
    done = potstill("run", "r.yaml", cwd=place)
    assert done.returncode == 0, done.stdout + done.stderr
    before, after = (
        load_file(p / "model.safetensors")["lm_head.weight"]
        for p in (place / "student", place / "runs/r/student")
    )
    assert not torch.equal(before[:128], after[:128])
    assert torch.equal(before[128:], after[128:]), "rows outside the shared ids are not trained"


@pytest.mark.parametrize("keep", [0, 140])
@pytest.mark.parametrize(("teacher", "student"), SIZES)
def test_a_teacher_from_outside_gives_its_whole_distribution_and_is_cut(tmp_path, teacher, student, keep):
    """A table of its own width, dense or as its likeliest ids: nothing that it must know of the student."""
    place = models(tmp_path, teacher, student)
    outside = f"{{'builders.outside.teacher:bigram': {{tokenizer: teacher, keep: {min(keep, teacher)}}}}}"
    recipe(
        place, teacher=outside, stages="[{distill: {steps: 12, learning_rate: 0.01, tokens_per_step: 64}}]"
    )
    done = potstill("run", "r.yaml", cwd=place)
    assert done.returncode == 0, done.stdout + done.stderr
    losses = [step["loss"] for step in places.steps(place, "distill")]
    assert losses[-1] < 0.9 * losses[0]
    said = "of its probability on the first rows to ids that the student does not have" in done.stderr
    assert said == (teacher > student and not keep)


def written(place, row, ids, finish="stop"):
    teacher = places.read(place).readers.teacher
    return Written(row.id, 0, tuple(ids), teacher.decode(ids), finish)


GENERATE = "[{generate: {filters: null, max_new_tokens: 4}}, {distill: {steps: 2}}]"


@pytest.fixture
def taught(tmp_path):
    """The teacher has 32 words more than the student, and one of them is a special token."""
    place = models(tmp_path, 160, 128)
    tokenizer = tiny_tokenizer(160)
    tokenizer.add_special_tokens({"additional_special_tokens": ["w150"]})
    tokenizer.save_pretrained(place / "teacher")
    return recipe(place, places.prompts(), stages=GENERATE)


def test_a_teachers_answer_in_shared_ids_is_learnt_as_it_is(taught):
    row = places.read(taught).data.train[0]
    (example,) = places.after_generate(taught, [written(taught, row, (20, 21, 2))]).examples("train")
    assert example.input_ids[-3:] == (20, 21, 2)


@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        ((20, 150, 21, 2), "a token of the teacher alone that prints nothing"),
        ((20, OTHER, 21, 2), "a word that the student's tokenizer does not have"),
    ],
)
def test_an_answer_that_the_student_cannot_write_is_left_out_and_counted(taught, ids, reason):
    first, second = places.read(taught).data.train[:2]
    answers = [written(taught, first, ids), written(taught, second, (20, 2))]
    run = places.after_generate(taught, answers)
    assert [example.row_id for example in run.examples("train")] == [second.id]
    assert run.funnel() == {reason: 1}


def test_an_answer_whose_text_the_student_can_write_crosses_as_text(taught):
    """The teacher has one token for what the student writes as a shared word: `w40` is id 159 too."""
    tokenizer = tiny_tokenizer(160, names={159: "W40"})
    tokenizer.save_pretrained(taught / "teacher")
    row = places.read(taught).data.train[0]
    run = places.after_generate(taught, [Written(row.id, 0, (20, 159, 2), "w20 w40", "stop")])
    (example,) = run.examples("train")
    assert example.input_ids[-3:] == (20, 40, 2)


def test_prompts_in_ids_that_the_teacher_lacks_are_not_asked(tmp_path):
    place = models(tmp_path, 128, 160)
    rows = places.prompts()
    rows[3]["prompt"] += f" w{OTHER}"
    recipe(place, rows, stages=GENERATE)
    done = potstill("run", "r.yaml", cwd=place)
    assert done.returncode == 0, done.stdout + done.stderr
    answers = (place / "runs/r/stages/generate/answers.jsonl").read_text()
    assert '"p3"' not in answers
    assert '"p4"' in answers


def test_a_student_writes_no_id_without_a_token_of_its_own(tmp_path):
    """Its tokenizer has a hole that its head, as the teacher's, has a row for; that row is the loudest."""
    save_tiny(tmp_path / "teacher", vocab=160)
    model = tiny_model(160, layers=1)
    model.lm_head.weight.data[[40, 150]] *= 50
    model.save_pretrained(tmp_path / "student")
    for name, words in (("teacher", 130), ("student", 128)):
        tiny_tokenizer(words, names={40: ""}).save_pretrained(tmp_path / name)
    recipe(tmp_path, [row for row in places.answered() if "w40" not in f"{row} "])
    done = potstill("run", "r.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    samples = (tmp_path / "runs/r/stages/evaluate/samples.jsonl").read_text().splitlines()
    for answer in (json.loads(line)["answers"]["after"] for line in samples):
        assert len(answer["text"].split()) == 4 or answer["stopped"]


def test_text_alone_needs_no_shared_ids(tmp_path):
    """Without a stage that compares, rows with the student's own words are trained on; what can be compared is."""
    place = models(tmp_path, 128, 160)
    stages = "[{finetune: {steps: 2}}, {evaluate: {samples: 4, max_new_tokens: 4}}]"
    for name, rows, compared in (
        ("a", with_other_words(), True),
        ("b", with_other_words(*(f"p{i}" for i in range(24))), False),
    ):
        write_lines(place / "rows.jsonl", *rows)
        places.recipe(place, name=name, student="{model: student}", stages=stages)
        done = potstill("run", "r.yaml", cwd=place)
        assert done.returncode == 0, done.stdout + done.stderr
        after = places.summary(place, name)["after"]
        assert (after["forward_kl"] is not None) == compared
        if not compared:
            assert "held-out rows hold ids that the teacher's vocabulary lacks" in after["forward_kl_reason"]
        assert after["ppl"]["value"] > 1


def test_a_conflict_is_refused_with_counts_and_an_example(tmp_path):
    place = recipe(models(tmp_path, 160, 128))
    tiny_tokenizer(128, names={20: "w21", 21: "w20", 22: "other"}).save_pretrained(place / "student")
    done = potstill("check", "r.yaml", cwd=place)
    assert done.returncode == 2
    assert "id 20 is 'w20' for the teacher and 'w21' for the student" in done.stderr
    assert "ids with another token: 3, tokens with another id: 2" in done.stderr


def test_check_keeps_a_stages_own_rows_in_ids_of_the_student_alone(tmp_path, caplog):
    """The teacher reads none of them, so none is left out, neither in a run nor in what check says."""
    place = models(tmp_path, 128, 160)
    recipe(place, stages="[{distill: {steps: 1}}, {finetune: {data: [own.jsonl], steps: 1}}]")
    own = [{"id": f"o{i}", "prompt": f"w{12 + i}", "response": f"w{OTHER}"} for i in range(24)]
    write_lines(place / "own.jsonl", *own)
    assert places.checked(place).passed
    assert "ids that the teacher does not have" not in caplog.text
