"""What each process of a training holds: an equal copy of the student, or a part of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from builders.many import prepare

TESTS = Path(__file__).parents[1]

# Each process writes what it holds whenever a checkpoint is made, right after a validation.
SCRIPT = """\
import hashlib, json, sys
from pathlib import Path
from torch.distributed.tensor import DTensor
from potstill.devices import ranks
from potstill.runs import run
from potstill.train import checkpoint, folder, parallel

save = folder.TrainingFolder.save


def noting(self, module, progress, optimizer):
    if optimizer is None:
        return save(self, module, progress, optimizer)
    held = {}
    for name, parameter in parallel.named_trained(module):
        own = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        digest = hashlib.sha256(own.detach().numpy().tobytes()).hexdigest()
        held[name] = [own.numel(), parameter.numel(), digest]
    averages = [name for name in checkpoint._packed(module, optimizer) if name.endswith("/exp_avg")]
    assert len(averages) == len(held), "an optimizer's state is not that of the parameters"
    Path(f"held-{progress.step}-{ranks.rank()}.json").write_text(json.dumps(held))
    save(self, module, progress, optimizer)


folder.TrainingFolder.save = noting
run.run("many.yaml", sys.argv[1:])
"""


def held(place: Path, sharding: str, processes: int) -> list[list[dict[str, list]]]:
    """By validation and process: elements held, elements in all, and a hash, of every parameter."""
    (place / "script.py").write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [*command, "script.py", f"devices.sharding={sharding}"],
        cwd=place, env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    steps = sorted({int(file.name.split("-")[1]) for file in place.glob("held-*.json")})
    assert len(steps) == 4  # every second one but the last
    return [
        [json.loads((place / f"held-{step}-{rank}.json").read_text()) for rank in range(processes)]
        for step in steps
    ]


@pytest.mark.prove
def test_replicas_stay_equal_bit_by_bit(tmp_path):
    for processes in held(prepare(tmp_path), "ddp", 2):
        first, other = processes
        assert first == other
        assert all(own == whole for own, whole, _ in first.values())


@pytest.mark.prove
def test_each_process_holds_a_part_of_every_parameter(tmp_path):
    for processes in held(prepare(tmp_path), "fsdp", 2):
        first, other = processes
        assert first.keys() == other.keys()
        for name, (own, whole, digest) in first.items():
            assert own + other[name][0] == whole
            assert own < whole
            assert digest != other[name][2] or "norm" in name  # norms begin as ones
