"""What enters and what is kept, mutated by seed: a result or a sentence, never a traceback, a signal or a hang.

A case is repeated by its number: `next(faults("data", [137], place))`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from builders.cases import files, models
from builders.cases.place import LARGE, SHAPES, SMALL, empty, prepare, rows, write_recipe
from builders.cli import potstill
from builders.survival import faults, faults_of_child

COUNTS = {"recipe": 2000, "number": 400, "data": 2000, "model": 500, "gguf": 200, "template": 300, "run": 300}
FEW = {"recipe": 30, "number": 10, "data": 30, "model": 10, "gguf": 5, "template": 15, "run": 3}
# Cases of one test.
PROVED = {"recipe": 500, "number": 400, "data": 500, "model": 100, "gguf": 50, "template": 150, "run": 60}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return prepare(tmp_path_factory.mktemp("mutants"))


@pytest.mark.parametrize("recipe", [SMALL, LARGE], ids=["small", "large"])
def test_the_recipe_that_is_mutated_passes(place, recipe):
    write_recipe(place, recipe)
    done = potstill("check", "--quick", "r.yaml", cwd=place)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", sorted(set(files.FILES)))
def test_the_rows_that_are_mutated_pass(place, shape, name):
    empty(place)
    files.write_rows(place / "case" / name, rows(shape))
    files.write_data_recipe(place, name)
    done = potstill("check", "--quick", "r.yaml", cwd=place)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", models.MODELS)
@pytest.mark.parametrize("role", ["teacher", "student"])
def test_the_models_that_are_mutated_pass(place, kind, role):
    models.write_model(empty(place), kind)
    write_recipe(place, SMALL | {role: {"model": "./case"}})
    done = potstill("check", "r.yaml", cwd=place)
    assert done.returncode == 0, done.stderr


def tell(found: list[str]) -> str:
    return f"{len(found)} cases:\n\n" + "\n\n".join(found[:5])


@pytest.mark.parametrize("kind", ["recipe", "template", "run"])
def test_a_few_mutations_end_with_a_result_or_a_sentence(place, kind):
    wrong = [fault for _, fault in faults(kind, range(FEW[kind]), place) if fault]
    assert not wrong, tell(wrong)


@pytest.mark.parametrize("kind", ["data", "model", "gguf", "number"])
def test_a_few_mutations_end_no_process(place, kind):
    wrong = [fault for _, fault in faults_of_child(kind, range(FEW[kind]), place) if fault]
    assert not wrong, tell(wrong)


@pytest.mark.prove
@pytest.mark.parametrize(
    ("kind", "first"), [(kind, first) for kind in COUNTS for first in range(0, COUNTS[kind], PROVED[kind])]
)
def test_every_mutation_ends_with_a_result_or_a_sentence(place, kind, first):
    numbers = range(first, first + PROVED[kind])
    wrong = [fault for _, fault in faults_of_child(kind, numbers, place) if fault]
    assert not wrong, tell(wrong)
