"""A process that scores no token in a step keeps in step with the others."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent


@pytest.mark.prove
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_a_process_without_a_scored_token_ends_with_the_others(sharding):
    """Both ranks end with the same loss and count, although one of them has nothing to score."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "OMP_NUM_THREADS": "1",
    }
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        __file__,
        sharding,
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    told = [line for line in done.stdout.splitlines() if line.startswith("5 ")]
    assert len(told) == 2, done.stdout + done.stderr[-2000:]
    assert len(set(told)) == 1


if __name__ == "__main__":
    import torch
    import torch.distributed as dist

    from builders.tiny import tiny_model
    from potstill.data.batch import collate
    from potstill.divergences import forward_kl
    from potstill.objectives.token import Divergence, TokenLoss
    from potstill.teachers.local import LocalTeacher
    from potstill.train import parallel
    from potstill.train.step import StudentModule, accumulate
    from potstill.types import Example

    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    scored = tuple(i > 4 and dist.get_rank() == 0 for i in range(10))
    student = tiny_model(seed=0)
    module = parallel.wrap(StudentModule(student, 128), sys.argv[1], student)  # type: ignore[arg-type]
    teacher = LocalTeacher(tiny_model(seed=1), vocabulary=128, fingerprint="t")
    batch = collate([Example("r", tuple(range(4, 14)), scored)], pad_id=0)
    result = accumulate(module, teacher, [batch], TokenLoss(Divergence.from_module(forward_kl)))
    assert result is not None
    sys.stdout.write(
        f"{result.tokens} {result.means()['divergence']:.6f}\n"
    )  # in one piece, beside the other's
    dist.destroy_process_group()
    # On a busy machine torch may abort while the interpreter goes down, with all said and done.
    sys.stdout.flush()
    os._exit(0)
