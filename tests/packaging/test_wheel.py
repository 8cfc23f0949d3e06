"""The wheel holds everything that a run needs, wherever it is installed and started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from builders.tiny import save_tiny

ROOT = Path(__file__).parents[2]


def call(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=cwd, env=alone | environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A fresh environment with the wheel; its dependencies are lent by this one, potstill itself is not."""
    folder = tmp_path_factory.mktemp("wheel")
    build = ("build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT))
    call(sys.executable, "-m", *build, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    site = Path(
        call(str(python), "-c", "import site; print(site.getsitepackages()[0])", cwd=folder).stdout.strip()
    )
    install = ("pip", "install", "-q", "--no-deps", "--no-index", "--target", str(site), str(wheel))
    call(sys.executable, "-m", *install, cwd=folder)
    # A path line lends packages without reading the .pth file of an editable potstill.
    (site / "lent.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder


def test_the_wheel_opens_its_help_finds_itself_and_writes_a_recipe(installed, tmp_path):
    python = installed / "env/bin/python"
    where = call(str(python), "-c", "import potstill; print(potstill.__file__)", cwd=installed).stdout
    assert str(installed) in where
    assert "Commands" in call(str(python), "-m", "potstill", "--help", cwd=installed).stdout
    call(str(python), "-m", "potstill", "init", cwd=tmp_path)
    assert (tmp_path / "recipe.yaml").is_file()


def test_check_and_run_work_from_the_wheel_in_another_folder_with_a_c_locale(installed, tmp_path):
    save_tiny(tmp_path / "data" / "teacher", layers=3)
    rows = [json.dumps({"prompt": f"w{20 + i} w{30 + i}"}) for i in range(40)]
    (tmp_path / "data" / "rows.jsonl").write_text("\n".join(rows))
    (tmp_path / "data" / "recipe.yaml").write_text(
        "teacher: {model: teacher}\nstudent: {from_teacher: {keep_layers: 2}}\ndata: {train: rows.jsonl}\n"
    )
    python = str(installed / "env/bin/python")
    c_locale = {
        "LC_ALL": "C",
        "LANG": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "OMP_NUM_THREADS": "1",
    }
    checked = call(python, "-m", "potstill", "check", "data/recipe.yaml", cwd=tmp_path, **c_locale)
    assert "can run" in checked.stdout
    small = ["generate.max_new_tokens=6", "distill.steps=2", "evaluate.samples=4"]
    call(python, "-m", "potstill", "run", "data/recipe.yaml", *small, cwd=tmp_path, **c_locale)
    assert (tmp_path / "runs/recipe/report.html").is_file()
