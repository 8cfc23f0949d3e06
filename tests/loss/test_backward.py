"""A loss on logits that is backpropagated more than once."""

from __future__ import annotations

import torch

from potstill import DistillationLoss


def test_a_second_backward_pass_gives_the_same_gradient_or_is_refused():
    """With a kept graph the second gradient equals the first, or is refused; it used to shrink by the factor again."""
    student, teacher = torch.randn(3, 5).requires_grad_(), torch.randn(3, 5)
    out = DistillationLoss().from_logits(student, teacher, torch.ones(3))
    (first,) = torch.autograd.grad(out.sum / 4, student, retain_graph=True)
    first = first.clone()
    try:
        (second,) = torch.autograd.grad(out.sum / 4, student)
    except RuntimeError as refused:
        assert "twice" in str(refused)
    else:
        torch.testing.assert_close(second, first)
