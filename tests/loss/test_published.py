"""Values that another tool publishes for the same tensors, recorded once with its version.

Recorded from TRL 1.13.0's `GKDTrainer.generalized_jsd_loss` with float64 inputs and its labels mask. It
masks positions where the label at the SAME index is scored, so its callers shift first; the mask here
is theirs. It takes a temperature but adds no T^2, as this project does without a hard-label term.
"""

from __future__ import annotations

import pytest
import torch

from potstill import DistillationLoss

TRL_1_13_0 = {
    (0.0, 1.0): 2.564092228162,
    (0.0, 2.0): 0.802542844158,
    (0.1, 1.0): 0.182012909786,
    (0.1, 2.0): 0.068238166978,
    (0.5, 1.0): 0.431742571766,
    (0.5, 2.0): 0.178782694159,
    (0.9, 1.0): 0.191057117043,
    (0.9, 2.0): 0.071942466280,
    (1.0, 1.0): 2.911179389325,
    (1.0, 2.0): 0.870665770186,
}


@pytest.mark.parametrize(("beta", "temperature"), TRL_1_13_0)
def test_generalised_jsd_equals_trls(beta, temperature):
    generator = torch.Generator().manual_seed(0)
    student = 2 * torch.randn(2, 5, 11, dtype=torch.float64, generator=generator)
    teacher = 2 * torch.randn(2, 5, 11, dtype=torch.float64, generator=generator)
    mask = torch.tensor([[False, True, True, True, False], [False, False, True, True, True]])
    out = DistillationLoss("jsd", beta=beta, temperature=temperature).from_logits(student, teacher, mask)
    assert out.mean.item() == pytest.approx(TRL_1_13_0[beta, temperature], rel=1e-9)


def test_where_a_widely_used_helper_divides_by_the_batch_the_right_value_is_per_token():
    """`F.kl_div(..., reduction="batchmean")` on [B, T, V] divides by B alone: T times too large."""
    student, teacher = torch.ones(2, 7, 3), torch.tensor([2.0, 1.0, 0.0]).expand(2, 7, 3)
    p, q = torch.log_softmax(teacher, -1), torch.log_softmax(student, -1)
    wrong = torch.nn.functional.kl_div(q, p, log_target=True, reduction="batchmean")
    right = DistillationLoss().from_logits(student, teacher, torch.ones(2, 7)).mean
    assert right.item() == pytest.approx(0.266217, abs=1e-6)
    assert wrong.item() == pytest.approx(7 * right.item(), rel=1e-5)


def test_where_mixtures_were_interpolated_in_log_space_the_right_value_is_smaller():
    """A mixture of log-probabilities is not a distribution: the value grows far beyond the bound log 2."""
    p, q = torch.tensor([0.98, 0.01, 0.01]).log(), torch.tensor([0.01, 0.98, 0.01]).log()
    m = 0.5 * p + 0.5 * q
    wrong = float(0.5 * (p.exp() * (p - m)).sum() + 0.5 * (q.exp() * (q - m)).sum())
    right = (
        DistillationLoss("jsd", beta=0.5)
        .from_logits(q.reshape(1, 1, 3), p.reshape(1, 1, 3), torch.ones(1, 1))
        .mean
    )
    assert right.item() <= 0.6932 < wrong
