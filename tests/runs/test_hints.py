"""What is printed after a run can be typed as it stands, and its words are explained."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from builders import places
from builders.cli import potstill
from potstill import console
from potstill.runs import hints


def script(place: Path) -> Path:
    """An environment's command that runs this potstill, and its `activate`."""
    place.mkdir(parents=True)
    file = place / "potstill"
    file.write_text(f"#!{sys.executable}\nfrom potstill.cli import main\nmain()\n")
    file.chmod(0o755)
    (place / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (place / "python").chmod(0o755)
    (place / "activate").write_text(f'PATH={shlex.quote(str(place))}:"$PATH"\n')
    return file


def commands(output: str) -> list[str]:
    """The commands behind `next:`, the several lines of one together."""
    parts, words = [""], output.partition("\nnext:\n")[2].splitlines()
    for line in words:
        if line.startswith("# "):
            parts.append("")
        else:
            parts[-1] += f"{line}\n"
    return parts[1:]


def shell(command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    here = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, shell=True, cwd=cwd, env=here, capture_output=True, text=True, timeout=120)


def test_the_commands_after_a_run_work_as_they_are_printed(tmp_path):
    """From a shell without an activated environment, in a folder whose name needs quotes."""
    place = tmp_path / "my first run"
    script(place / ".venv/bin")
    places.write(place, stages="[{distill: {epochs: 0.5}}, {evaluate: {samples: 2, resamples: 100}}]")
    done = shell(".venv/bin/potstill run r.yaml distill.warmup=0", place)
    assert done.returncode == 0, done.stderr
    report, student, longer, again, activate = commands(done.stdout)
    assert report.rstrip().endswith("report.html")
    tried = shell(student, place)
    assert tried.returncode == 0, tried.stderr
    assert longer == ".venv/bin/potstill run r.yaml distill.warmup=0 name=r-longer distill.epochs=1\n"
    assert shell(longer, place).returncode == 0
    assert (place / "runs/r-longer/summary.json").is_file()
    assert again == ".venv/bin/potstill run r.yaml distill.warmup=0\n"
    assert "distill: unchanged, taken from" in shell(again, place).stderr
    found = shell(f"{activate.strip()} && command -v potstill", place)
    assert found.stdout.strip().endswith(".venv/bin/potstill")


def test_a_student_without_a_chat_template_is_tried_with_plain_text(tmp_path):
    script(tmp_path / ".venv/bin")
    places.write(tmp_path, [{"text": f"w{20 + i} w{30 + i} w{40 + i}"} for i in range(24)])
    (tmp_path / "teacher/chat_template.jinja").unlink()
    done = shell(".venv/bin/potstill run r.yaml", tmp_path)
    assert done.returncode == 0, done.stderr
    tried = shell(commands(done.stdout)[0], tmp_path)
    assert tried.returncode == 0, tried.stderr
    assert tried.stdout.strip()


def test_a_result_for_programs_holds_no_commands(tmp_path):
    places.write(tmp_path)
    done = potstill("run", "r.yaml", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "next:" not in done.stdout


def test_a_training_whose_length_the_recipe_leaves_open_is_doubled_in_its_steps(tmp_path):
    places.write(tmp_path, stages="[{distill: {tokens_per_step: 1000}}]")
    done = potstill("run", "r.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    steps = places.summary(tmp_path)["train"]["steps"]
    assert f"\npotstill run r.yaml name=r-longer distill.steps={2 * steps}\n" in done.stdout
    assert potstill("run", "runs/r", cwd=tmp_path).stdout.rstrip().endswith("\npotstill run runs/r")


@pytest.mark.parametrize("how", ["path", "activated", "module", "elsewhere"])
def test_the_command_is_named_as_a_shell_finds_it(tmp_path, monkeypatch, how):
    file = script(tmp_path / ".venv/bin")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(file.parent) if how == "activated" else "/usr/bin:/bin")
    monkeypatch.setattr(sys, "executable", str(file.with_name("python")))
    started = "/lib/potstill/__main__.py" if how == "module" else str(file)
    monkeypatch.setattr(sys, "argv", ["/usr/bin/pytest" if how == "elsewhere" else started])
    expected = {"path": ".venv/bin/potstill", "module": ".venv/bin/potstill"}
    assert console.typed() == expected.get(how, "potstill")


def test_the_words_of_a_verdict_are_explained_and_no_others():
    lines = hints.words_of("Held-out KL(teacher‖student) fell from 2.10 to 0.92 nats per token (2.3×).")
    assert [line.split()[0] for line in lines] == ["held-out", "KL(teacher‖student)", "nats", "token"]
    assert hints.words_of("finished: generate") == []
