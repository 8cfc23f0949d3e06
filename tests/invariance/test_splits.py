"""The gradient of a step, however its rows are laid out: micro-batches, padding side, order, processes."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from builders.steps import assert_same
from builders.tiny import tiny_model
from potstill import DistillationLoss, divergences
from potstill.data.batch import collate
from potstill.objectives.token import Divergence, TokenLoss
from potstill.teachers.local import LocalTeacher
from potstill.train.step import StepResult, StudentModule, accumulate
from potstill.types import Batch, Example

TESTS = Path(__file__).parent.parent


def rows(n: int = 8) -> list[Example]:
    """Rows of 5 to 19 tokens whose scored counts run from 1 to 8."""
    generator = torch.Generator().manual_seed(1)
    results = []
    for index in range(n):
        length = 5 + 2 * index
        ids = torch.randint(4, 128, (length,), generator=generator).tolist()
        results.append(
            Example(f"r{index}", tuple(ids), tuple(i >= length - 1 - index for i in range(length)))
        )
    return results


def step(
    batches: list[Batch], name: str = "forward_kl", **settings: float
) -> tuple[StepResult, dict[str, torch.Tensor]]:
    module = StudentModule(tiny_model(seed=0), 128)
    teacher = LocalTeacher(tiny_model(seed=1), vocabulary=128, fingerprint="t")
    loss = TokenLoss(Divergence.from_module(getattr(divergences, name)), **settings)
    result = accumulate(module, teacher, batches, loss)
    assert result is not None
    return result, {n: p.grad for n, p in module.named_parameters()}


def cut(size: int, examples: list[Example] | None = None) -> list[Batch]:
    examples = examples or rows()
    return [collate(examples[i : i + size], pad_id=0) for i in range(0, len(examples), size)]


@pytest.mark.parametrize(
    ("name", "settings"), [("reverse_kl", {}), ("jsd", {"temperature": 2.0, "ce_weight": 0.3})]
)
@pytest.mark.parametrize("size", [4, 2, 1])
def test_accumulation_gives_the_gradient_of_one_batch(size, name, settings):
    """Eight ragged rows at once, as two fours, as four twos and one by one."""
    whole, wanted = step(cut(8), name, **settings)
    split, got = step(cut(size), name, **settings)
    assert (split.tokens, split.means()["loss"]) == (
        whole.tokens,
        pytest.approx(whole.means()["loss"], rel=1e-6),
    )
    assert_same(got, wanted)


def test_the_order_of_micro_batches_changes_no_gradient():
    """Reversed and shuffled micro-batches add up to the same."""
    batches = cut(2)
    _, wanted = step(batches)
    for order in ([3, 2, 1, 0], [2, 0, 3, 1]):
        assert_same(step([batches[i] for i in order])[1], wanted)


def left_padded(batch: Batch) -> Batch:
    """The same rows with their padding in front, positions counted from each row's first token."""
    lengths = batch.attention_mask.sum(1)
    size = batch.input_ids.shape[1]

    def turned(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([row.roll(size - int(n)) for row, n in zip(x, lengths, strict=True)])

    mask = turned(batch.attention_mask)
    return replace(
        batch,
        input_ids=turned(batch.input_ids),
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        predicts=turned(batch.predicts),
    )


def test_the_side_of_the_padding_changes_no_gradient():
    """Rows padded on the left give the gradient of the same rows padded on the right."""
    batch = cut(8)[0]
    right, wanted = step([batch])
    left, got = step([left_padded(batch)])
    assert left.means()["loss"] == pytest.approx(right.means()["loss"], rel=1e-5)
    assert_same(got, wanted)


def test_a_mask_on_left_padded_logits_scores_the_same_positions():
    """The drop-in loss sees the same positions wherever the padding lies."""
    student, teacher = torch.randn(2, 6, 7), torch.randn(2, 6, 7)
    mask = torch.tensor([[False, True, True, False, False, False], [True, True, True, True, True, False]])
    loss = DistillationLoss("jsd", beta=0.2)
    right = loss.from_logits(student, teacher, mask)
    left = loss.from_logits(*(x.roll(2, 1) for x in (student, teacher, mask)))
    assert int(left.count) == int(right.count) == 7
    torch.testing.assert_close(left.sum, right.sum)


def test_window_sums_of_one_and_nine_over_four_tokens_average_to_two_and_a_half():
    """One token of loss 1 and three tokens of loss 3 average to 2.5 per token, whoever accumulates."""

    def logits_at(value: float, n: int) -> torch.Tensor:
        # Against a one-hot teacher the KL is -log q(first id).
        q = torch.tensor([-value, torch.log(-torch.expm1(torch.tensor(-value))).item()])
        return q.expand(1, n, 2).clone()

    teacher = torch.tensor([0.0, -200.0])
    loss = DistillationLoss()
    a = loss.from_logits(logits_at(1.0, 1), teacher.expand(1, 1, 2), torch.ones(1, 1))
    b = loss.from_logits(logits_at(3.0, 3), teacher.expand(1, 3, 2), torch.ones(1, 3))
    assert (a.sum.item(), b.sum.item()) == (pytest.approx(1.0, abs=1e-5), pytest.approx(9.0, abs=1e-5))
    assert ((a.sum + b.sum) / (a.count + b.count)).item() == pytest.approx(2.5, abs=1e-5)
    assert ((a.mean + b.mean) / 2).item() == pytest.approx(2.0, abs=1e-5)


def launched(sharding: str, out: Path) -> None:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "OMP_NUM_THREADS": "1",
    }
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__, sharding, str(out),
    ]  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.prove
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_tied_weights_on_two_processes_get_the_gradient_of_one(sharding, tmp_path):
    """Two processes with a tied embedding, a JSD at T = 2 and hard labels: the gradient of one process."""
    launched(sharding, tmp_path / "g.safetensors")
    assert_same(load_file(tmp_path / "g.safetensors"), tied_gradient("none", cut(2)))


def tied_gradient(sharding: str, batches: list[Batch]) -> dict[str, torch.Tensor]:
    from potstill.train import parallel

    student = tiny_model(seed=0, tie=True)
    module = parallel.wrap(StudentModule(student, 128), sharding, student)  # type: ignore[arg-type]
    teacher = LocalTeacher(tiny_model(seed=1), vocabulary=128, fingerprint="t")
    accumulate(module, teacher, batches, TokenLoss(Divergence.from_module(divergences.jsd), 2.0, 0.3))
    grads = {n.removeprefix("module."): p.grad for n, p in module.named_parameters()}
    return {n: (g.full_tensor() if hasattr(g, "full_tensor") else g).clone() for n, g in grads.items()}


if __name__ == "__main__":
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    result = tied_gradient(sys.argv[1], cut(2)[dist.get_rank() :: 2])
    if dist.get_rank() == 0:
        save_file(result, sys.argv[2])
    dist.destroy_process_group()
    # On a busy machine torch may abort while the interpreter goes down, with all said and done.
    sys.stdout.flush()
    os._exit(0)
