"""The recipe that `init` writes, and the command that it names."""

from __future__ import annotations

import re
import shlex

import pytest

from builders import places
from builders.cli import potstill
from potstill.recipe.recipe import read_recipe


def test_init_writes_a_recipe_that_is_read_and_never_overwrites(tmp_path):
    assert potstill("init", "mine.yaml", "--train", "rows.jsonl", cwd=tmp_path).returncode == 0
    assert read_recipe(tmp_path / "mine.yaml").stages[0].verb == "generate"
    written = (tmp_path / "mine.yaml").read_text()
    again = potstill("init", "mine.yaml", cwd=tmp_path)
    assert again.returncode == 2
    assert "exists already" in again.stderr
    assert (tmp_path / "mine.yaml").read_text() == written


NAMES = [
    "my recipe.yaml",
    "2024.yaml",
    "true.yaml",
    "1e3.yaml",
    ".yaml",
    "ünï.yaml",
    "日本.yaml",
    "it's #1: {a}.yaml",
    "two\nlines\a.yaml",
    "-.yaml",
    "n" * 150 + ".yaml",
]


@pytest.mark.parametrize("name", NAMES)
def test_init_names_the_recipe_after_any_file(tmp_path, name):
    """The name is the one that the recipe would have without the key."""
    places.write(tmp_path)
    done = potstill("init", "--teacher=teacher", "--train=rows.jsonl", "--", name, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    written = tmp_path / name
    recipe = read_recipe(written)
    written.write_text(re.sub(r"(?m)^name: .*\n", "", written.read_text(encoding="utf-8")), encoding="utf-8")
    assert read_recipe(written) == recipe


@pytest.mark.parametrize(
    "value",
    ["a #b", "x: y", "a, b", "{a}", "[a", "*a", "&a", "!a", "%a", "@a", "'a", '"a', "- a", "? a", "| a", " a ",
     "null", "~", "010", "0x1F", "1_0", ".5", ".inf", "true", "a\tb", "a\nb", "a\u2028b", "C:\\a", "日本", "😀",
     "meta-llama/Llama-3.2-1B", "package:llm/m.gguf", "--- a", "<<", "a:b", "a:", "=", "#"],
)  # fmt: skip
def test_init_writes_any_value_so_that_it_reads_back(tmp_path, value):
    """Whatever a model or a file is called, the recipe says just that."""
    done = potstill(
        "init", f"--teacher={value}", f"--student={value}", f"--train={value}.jsonl", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    recipe = read_recipe(tmp_path / "recipe.yaml")
    assert recipe.teacher.model == recipe.student.model == value
    assert recipe.data.train == (f"{value}.jsonl",)


@pytest.mark.parametrize("value", ["", "\udcff"])
@pytest.mark.parametrize("option", ["teacher", "student", "train"])
def test_init_refuses_a_name_that_no_recipe_can_hold(tmp_path, option, value):
    """Nothing, or bytes that are no UTF-8."""
    done = potstill("init", f"--{option}={value}", cwd=tmp_path)
    assert done.returncode == 2
    assert f"error: {option}: " in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_command_that_init_names_runs_in_a_shell(tmp_path):
    """Word for word, with a space in the recipe's and in the rows' name."""
    places.write(tmp_path)
    (tmp_path / "rows.jsonl").rename(tmp_path / "a #b.jsonl")
    done = potstill(
        "init", "my recipe.yaml", "--teacher=teacher", "--student=teacher", "--train=a #b.jsonl", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    command = done.stdout.rstrip().partition("next: potstill ")[2]
    assert (
        potstill(*shlex.split(command), "--quick", "generate.max_new_tokens=8", cwd=tmp_path).returncode == 0
    )
    head = (tmp_path / "my recipe.yaml").read_text(encoding="utf-8").splitlines()[0]
    assert "`potstill check 'my recipe.yaml'`" in head


def test_init_quotes_only_what_needs_quotes(tmp_path):
    """Quotes stand where they are needed, and nowhere else."""
    assert potstill("init", "mine.yaml", cwd=tmp_path).returncode == 0
    text = (tmp_path / "mine.yaml").read_text(encoding="utf-8")
    assert "\nname: mine\n" in text
    assert "\nteacher: {model: HuggingFaceTB/SmolLM2-360M-Instruct}\n" in text
    assert "\n  train: prompts.jsonl\n" in text
