"""A head's products on bf16 units: what is rounded, and what is not."""

import pytest
import torch

from potstill.models.products import fast_bf16, rounding
from potstill.models.projection import Projection
from potstill.types import Head

N, H, V = 64, 256, 1024
CPU = torch.device("cpu")
units = pytest.mark.skipif(not fast_bf16(CPU), reason="a processor without bf16 units")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(found, exact):
    return float((found.double() - exact).norm() / exact.norm())


def setting():
    return torch.backends.mkldnn.matmul.fp32_precision


def test_logits_of_bf16_values_carry_no_half_precision_rounding():
    hidden, weight = normal(N, H).bfloat16(), normal(V, H, seed=1).bfloat16()
    logits = Projection(Head(weight, V), torch.bfloat16).logits(hidden, torch.empty(N, V))
    assert error(logits, hidden.double() @ weight.double().t()) < 1e-6


def test_products_in_fp32_stay_as_they_are():
    hidden, weight, grad = normal(N, H), normal(V, H, seed=1), normal(N, V, seed=2)
    projection = Projection(Head(weight, V), torch.float32)
    by_hidden, by_weight = torch.empty(N, H), torch.zeros(V, H)
    projection.d_hidden(grad, by_hidden, projection.operand(grad))
    projection.add_d_weight(projection.operand(grad), hidden, by_weight)
    assert torch.equal(projection.logits(hidden, torch.empty(N, V)), hidden @ weight.t())
    assert torch.equal(by_hidden, torch.zeros(N, H).addmm_(grad, weight))
    assert torch.equal(by_weight, torch.zeros(V, H).addmm_(grad.t(), hidden))


@units
def test_rounded_products_carry_one_rounding_of_their_operands():
    hidden, weight, grad = normal(N, H), normal(V, H, seed=1), normal(N, V, seed=2)
    projection = Projection(Head(weight, V), torch.float32, rounded=True)
    h, w, g = (t.bfloat16().double() for t in (hidden, weight, grad))
    by_hidden, by_weight = torch.empty(N, H), torch.zeros(V, H)
    projection.d_hidden(grad, by_hidden, projection.operand(grad))
    projection.add_d_weight(projection.operand(grad), hidden, by_weight)
    assert error(projection.logits(hidden, torch.empty(N, V)), h @ w.t()) < 1e-6
    assert error(by_hidden, g @ w) < 1e-6
    assert error(by_weight, g.t() @ h) < 1e-6
    assert error(by_weight, grad.double().t() @ hidden.double()) < 3e-3


@units
def test_the_rounding_ends_with_its_block_however_it_is_left():
    before = setting()

    def fail():
        with rounding(CPU, True):
            assert setting() == "bf16"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert setting() == before
    with rounding(CPU, False):
        assert setting() == before
