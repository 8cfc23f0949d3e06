"""Whether the parts of potstill give on a device what they give on the CPU: every divergence, signal and head form."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from gpu_clock import Clock, Result, attempt
from torch import Tensor

from potstill import divergences
from potstill.divergences._divergence import Divergence
from potstill.objectives import rows
from potstill.objectives.fused import linear_loss
from potstill.objectives.token import TokenLoss
from potstill.recipe import plugins
from potstill.signals.hidden import Hidden
from potstill.types import Head

ROWS, STUDENT, TEACHER, WIDTH, SHARED = 67, 64, 48, 520, 509
BOUND = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}


def normal(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    """Seeded values that bf16 holds, so that every dtype sees the same."""
    made = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, generator=made)).bfloat16().double()


def gradients(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    form: str,
    master: torch.dtype | None = None,
    compile: bool = False,
) -> list[Tensor]:
    """Sum and gradients of a divergence through a head of some form; `master` is the dtype of the weights."""
    weights = master or dtype
    hidden = normal(ROWS, STUDENT, seed=1).to(device, dtype).requires_grad_()
    weight = normal(WIDTH, STUDENT, seed=2, scale=0.2).to(device, weights).requires_grad_()
    trained, bias, lora = [hidden, weight], None, None
    if form == "bias":
        bias = normal(WIDTH, seed=3).to(device, weights).requires_grad_()
        trained.append(bias)
    if form == "lora":
        a = normal(4, STUDENT, seed=4, scale=0.2).to(device, weights).requires_grad_()
        b = normal(WIDTH, 4, seed=5, scale=0.2).to(device, weights).requires_grad_()
        lora = (a, b, 0.5)
        trained += [a, b]
    shaped: dict[str, Any] = {"softcap": 4.0, "scale": 0.5} if form == "softcap" else {}
    head = Head(weight, SHARED, bias, lora=lora, **shaped)
    taught = Head(normal(WIDTH, TEACHER, seed=6, scale=0.2).to(device, weights), SHARED)
    signal = Hidden(normal(ROWS, TEACHER, seed=7).to(device, dtype), taught)
    options = {"options": {}} if name != "jsd" else {"options": {"beta": 0.5}}
    chosen = Divergence.from_module(plugins.load("divergences", name, options["options"]), options["options"])
    targets = torch.arange(ROWS, device=device)
    weights_of = torch.linspace(0.5, 1.5, ROWS, device=device)
    loss = TokenLoss(chosen, 2.0, 0.25)
    rowwise = loss.rowwise(signal, targets, None, weights_of, metrics=True, compile=compile)
    out = linear_loss(hidden, head, rowwise, chunk_bytes=2 * 16 * SHARED * 8, rounded=master is not None)
    grads = torch.autograd.grad(out.sum, trained)
    return [tensor.detach().double().cpu() for tensor in (out.sum, *grads)]


def compared(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    form: str,
    master: Any = None,
    compile: bool = False,
) -> Result:
    """The largest relative error of sum and gradients against float64 on the CPU."""
    if compile:  # each with graphs of its own: together they are more than torch keeps
        torch.compiler.reset()
    right = gradients(name, torch.device("cpu"), torch.float64, form)
    result = gradients(name, device, dtype, form, master, compile)
    if compile and rows.COMPILED.works is False:
        return {"error": "it was not compiled"}
    pairs = zip(result, right, strict=True)
    error = max(float((ours - theirs).norm() / theirs.norm()) for ours, theirs in pairs)
    bound = BOUND[torch.bfloat16 if master else dtype]
    return {"error": f"{error:.2g} is over {bound:g}"} if error > bound else {"relative": error}


def parts(clock: Clock, tiny: bool, compile_too: bool = False) -> Result:
    """Failures by name, and how many parts are right; with `compile_too` compiled divergences while time is left."""
    cases: dict[str, Callable[[], Result]] = {}
    for name in (name for name in divergences.names() if name != "hard_cross_entropy"):
        for dtype in BOUND:
            for form in ("plain", "softcap", "bias", "lora") if name == "forward_kl" else ("plain",):
                label = f"{name}, {str(dtype).removeprefix('torch.')}, {form}"
                cases[label] = partial(compared, name, clock.device, dtype, form)
    for form in ("plain", "softcap", "bias", "lora"):
        cases[f"forward_kl, autocast from fp32, {form}"] = partial(
            compared, "forward_kl", clock.device, torch.float32, form, torch.float32
        )
        cases[f"forward_kl, bf16 states of fp32 weights, {form}"] = partial(
            compared, "forward_kl", clock.device, torch.bfloat16, form, torch.float32
        )
    if compile_too:
        first = ("forward_kl", "reverse_kl", "jsd", "skew_kl", "standardized_logits")
        others = (name for name in divergences.names() if name not in (*first, "hard_cross_entropy"))
        for name in (*first, *others):
            cases[f"{name}, compiled"] = partial(
                compared, name, clock.device, torch.float32, "plain", compile=True
            )
    failed, right, worst = {}, 0, 0.0
    for label, case in cases.items():
        if clock.spent():
            clock.add("stopped before", label)
            break
        result = attempt(case)
        if "error" in result:
            failed[label] = result
            clock.add(label, result)
        else:
            right, worst = right + 1, max(worst, result["relative"])
    return {"right": right, "worst_relative_error": float(f"{worst:.2g}"), "failed": failed}
