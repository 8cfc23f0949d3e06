"""Everything that changes ids changes the key of an artifact; no path does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from builders import places
from builders.cli import potstill
from builders.jobs import Memory, student, trained
from builders.tiny import save_tiny, tiny_model, tiny_tokenizer
from potstill.models import loading
from potstill.types import Example

STAGES = "[{generate: {filters: null, max_new_tokens: 4}}, {distill: {steps: 1}}]"


def artifacts_of(place: Path, name: str) -> set[str]:
    """The artifacts of the run of this name."""
    assert potstill("run", "r.yaml", f"name={name}", cwd=place).returncode == 0
    links = (place / "runs" / name / "stages").iterdir()
    return {link.resolve().name for link in links}


def edit_tokenizer(place: Path) -> None:
    core = json.loads((place / "teacher/tokenizer.json").read_text())
    words = core["model"]["vocab"]
    words["w20"], words["w21"] = words["w21"], words["w20"]
    (place / "teacher/tokenizer.json").write_text(json.dumps(core))


def edit_template(place: Path) -> None:
    file = place / "teacher/chat_template.jinja"
    file.write_text(file.read_text().replace("{{ bos_token }}", "{{ bos_token }}w99 "))


def edit_rows(place: Path) -> None:
    rows = places.answered()
    places.write(place, [row | {"prompt": f"{row['prompt']} w50"} for row in rows], stages=STAGES)


def edit_weights(place: Path) -> None:
    file = place / "teacher/model.safetensors"
    weights = load_file(file)
    weights["lm_head.weight"][20] += 1
    save_file(weights, file, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> tuple[Path, set[str]]:
    """A project and the artifacts of its first run."""
    place = places.write(tmp_path_factory.mktemp("first"), stages=STAGES)
    return place, artifacts_of(place, "a")


def test_the_same_inputs_have_the_same_keys(first):
    place, before = first
    assert artifacts_of(place, "same") == before


@pytest.mark.parametrize("edit", [edit_tokenizer, edit_template, edit_rows, edit_weights])
def test_an_edited_input_makes_every_stage_anew(tmp_path, first, edit):
    """Each edited alone: neither the teacher's answers nor the student of the first run comes back."""
    place, before = first
    shutil.copytree(place, tmp_path / "copy", symlinks=True)
    edit(tmp_path / "copy")
    assert not artifacts_of(tmp_path / "copy", "b") & before


def test_a_moved_project_keeps_its_keys(tmp_path, first):
    """The same models, rows and recipe in another folder have the same keys."""
    place = tmp_path / "another/place"
    place.mkdir(parents=True)
    places.write(place, stages=STAGES)
    assert artifacts_of(place, "moved") == first[1]


def test_a_fingerprint_covers_what_is_loaded_and_nothing_else(tmp_path):
    """A fingerprint covers what is loaded: weights, config, tokenizer, template; not text about them."""
    source = loading.find_source(str(save_tiny(tmp_path / "m")))
    first = loading.fingerprint(source)
    (source.path / "README.md").write_text("changed")
    assert loading.fingerprint(source) == first
    prints = [first]
    for name in ("tokenizer.json", "chat_template.jinja", "config.json", "generation_config.json"):
        file = source.path / name
        file.write_text(file.read_text() + " ")
        prints.append(loading.fingerprint(source))
    assert len(set(prints)) == 5


def test_tokenizers_of_one_size_that_differ_have_different_fingerprints(tmp_path):
    """Two folders that differ in one pair of words have different fingerprints."""
    one, other = (save_tiny(tmp_path / name) for name in "ab")
    core = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    words = core["model"]["vocab"]
    words["w20"], words["w21"] = words["w21"], words["w20"]
    (other / "tokenizer.json").write_text(json.dumps(core))
    assert torch.equal(*(load_file(f / "model.safetensors")["lm_head.weight"] for f in (one, other)))
    prints = [loading.fingerprint(loading.find_source(str(folder))) for folder in (one, other)]
    assert prints[0] != prints[1]


ROWS = [Example(f"r{i}", tuple(range(4 + i, 14 + i)), (False,) * 3 + (True,) * 7) for i in range(12)]


def test_validation_rows_are_part_of_the_key(tmp_path):
    """Validation rows decide which weights are kept, so they are part of the key."""
    start = student(tmp_path / "s", tiny_model())
    teacher = Memory(tiny_model(seed=1))
    keys = {trained(tmp_path, start, teacher, ROWS[:6], validation=v).key for v in (ROWS[6:9], ROWS[9:])}
    assert len(keys) == 2


def test_an_edited_validation_answer_trains_anew(tmp_path):
    """The same through a recipe: answers of validation rows are rewritten, and the stage runs again."""
    rows = places.answered(80)
    place = places.write(tmp_path, rows)
    assert potstill("run", "r.yaml", cwd=place).returncode == 0
    parts = places.read(place)
    chosen = {row.id for row in parts.data.validation}
    places.write(place, [r | ({"response": "w99 w98 w97"} if r["id"] in chosen else {}) for r in rows])
    again = potstill("run", "r.yaml", cwd=place)
    assert again.returncode == 0, again.stderr
    assert "student: unchanged" in again.stderr
    assert "distill: unchanged" not in again.stderr
