"""One optimizer step's gradient, on however many processes this is started with. Run by torchrun."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from builders.tiny import tiny_model
from potstill.data.batch import collate
from potstill.data.plan import plan_steps, shard
from potstill.devices import ranks
from potstill.divergences import forward_kl
from potstill.objectives.token import Divergence, TokenLoss
from potstill.teachers.local import LocalTeacher
from potstill.train import parallel
from potstill.train.step import StudentModule, accumulate
from potstill.types import Example


def ragged_rows(n: int = 7) -> list[Example]:
    """Rows of 6 to 24 tokens of which the last third is scored; lengths and counts all differ."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for index in range(n):
        length = 6 + 3 * index
        ids = torch.randint(4, 128, (length,), generator=generator).tolist()
        rows.append(Example(f"r{index}", tuple(ids), tuple(i > 2 * length // 3 for i in range(length))))
    return rows


def local_teacher(model: Any = None) -> LocalTeacher:
    """A teacher of 128 ids: this model, or the tiny one of seed 1."""
    return LocalTeacher(model or tiny_model(seed=1), vocabulary=128, fingerprint="t")


class Pad:
    """The sampler of a strategy that writes nothing."""

    packed = False
    pad_id = 0
    scores = False


def gradient(sharding: parallel.Sharding, micro_batch_tokens: int = 10_000) -> dict[str, torch.Tensor]:
    """The gradient of one step over all rows, whole on every rank."""
    rows = ragged_rows()
    student = tiny_model(seed=0)
    module = parallel.wrap(StudentModule(student, 128), sharding, student)
    teacher = local_teacher()
    lengths, counts = [len(r.input_ids) for r in rows], [r.count for r in rows]
    (step,) = plan_steps(
        lengths, counts, tokens_per_step=10**6, micro_batch_tokens=micro_batch_tokens, seed=0, epoch=0
    )
    if ranks.world() > 1:
        step = shard(step, ranks.rank(), ranks.world(), lengths=lengths)
    batches = [collate([rows[i] for i in micro], pad_id=0) for micro in step]
    loss = TokenLoss(Divergence.from_module(forward_kl))
    accumulate(module, teacher, batches, loss)
    return whole_gradients(module)


def whole_gradients(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The gradient of each parameter by its name, put together from the processes' parts."""
    results = {}
    for name, parameter in module.named_parameters():
        grad: Any = parameter.grad
        whole = grad.full_tensor() if hasattr(grad, "full_tensor") else grad
        results[name.removeprefix("module.")] = whole.detach().clone()
    return results


def assert_same(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """The same gradients by name, to rounding, and not all of them near zero."""
    assert got.keys() == wanted.keys()
    assert max(g.abs().max() for g in wanted.values()) > 1e-3
    for name, tensor in wanted.items():
        torch.testing.assert_close(
            got[name], tensor, atol=1e-6, rtol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )


def run_script(gradient: Callable[[Any], dict[str, torch.Tensor]]) -> None:
    """As torchrun starts it: `SCRIPT SHARDING FILE`; the first process writes the gradients to the file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    result = gradient(sys.argv[1])
    if dist.get_rank() == 0:
        save_file(result, sys.argv[2])
    dist.destroy_process_group()
    # On a busy machine torch may abort while the interpreter goes down, with all said and done.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    run_script(gradient)
