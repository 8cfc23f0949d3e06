"""The distillation loss alone on a GPU: time, memory and error of every contender on the same tensors.

Every call makes forward and backward; between two calls the caches of the device are overwritten. Memory is the most
that was allocated over the inputs, gradients included. Errors are those against the definition in float64, on few rows.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import contenders as peers
import torch
from contenders import Case, Contender
from gpu_clock import Clock, Result, attempt, release
from protocol import installed
from torch import Tensor

BETAS = {"forward_kl": 0.0, "reverse_kl": 1.0, "jsd": 0.5}
MIB = 2**20
CHUNKS = (96 * MIB, 512 * MIB, 1024 * MIB, 2048 * MIB)  # bytes of a chunk's logits, both sides


@dataclass(frozen=True)
class Shape:
    """Rows, the widths of student and teacher, and the vocabulary."""

    rows: int
    student: int
    teacher: int
    vocabulary: int

    def case(self, device: torch.device, *, rows: int | None = None, near: bool = False) -> Case:
        """bf16 tensors with logits of spread 2; `near` gives a teacher that the student is close to."""
        made = torch.Generator(device).manual_seed(0)

        def normal(*shape: int, spread: float) -> Tensor:
            return torch.empty(shape, device=device, dtype=torch.bfloat16).normal_(std=spread, generator=made)

        count, student, teacher = rows or self.rows, self.student, self.teacher
        hidden, head = (
            normal(count, student, spread=1.0),
            normal(self.vocabulary, student, spread=2 / student**0.5),
        )
        given, read = (
            normal(count, teacher, spread=1.0),
            normal(self.vocabulary, teacher, spread=2 / teacher**0.5),
        )
        if near:
            rest = teacher - student
            given[:, :student], read[:, :student] = hidden, head
            read[:, student:].normal_(std=0.22 / rest**0.5, generator=made)
        scored = torch.ones(count, dtype=torch.bool, device=device)
        return Case(hidden.requires_grad_(), head.requires_grad_(), given, read, scored)

    def products(self, trained: bool) -> float:
        """Operations of the matrix products: two for the logits, one for dh, one for dW of a trained head."""
        return 2.0 * self.rows * self.vocabulary * (self.student * (3 if trained else 2) + self.teacher)


LIGER = Shape(8192, 2048, 4096, 128256)
QWEN = Shape(8192, 1024, 2560, 151936)
LONG = Shape(32768, 2048, 4096, 128256)
TINY = (Shape(96, 64, 128, 515), Shape(96, 32, 96, 777), Shape(256, 64, 128, 515))


# ── contenders ────────────────────────────────────────────────────────────────────────────────────


def ours(case: Case, beta: float, chunk_bytes: int | None = None, compile: bool = False) -> Tensor:
    """potstill's loss, with its default chunks or with chunks of so many bytes; `compile` is the product's option."""
    heads = (case.student_head, case.teacher_hidden, case.teacher_head)
    loss = peers.distillation_loss(beta, chunk_bytes, compile)
    return loss(case.student_hidden, *heads, case.scored).mean


def liger(case: Case, beta: float) -> Tensor:
    """liger-kernel's chunked JSD as its documentation shows it."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta, compiled=True, chunk_size=1024
    )
    labels = torch.zeros(len(case.student_hidden), dtype=torch.long, device=case.student_hidden.device)
    out: Tensor = loss(case.student_hidden, case.student_head, case.teacher_hidden, case.teacher_head, labels)
    return out


def eager(everything: bool = True) -> dict[str, Contender]:
    """What runs without a compiler; without `everything` what is timed in every cell."""
    found: dict[str, Contender] = {"ours": ours}
    if everything:
        found |= {f"ours {size // MIB} MiB": partial(ours, chunk_bytes=size) for size in CHUNKS}
    if installed("trl"):
        found["trl_liger"] = peers.trl_liger
        if everything:
            found["trl_chunked_256"] = peers.trl_chunked
    return found


def with_compiler(everything: bool) -> dict[str, Contender]:
    """What is compiled in its first call; with `everything` in other chunks too."""
    found: dict[str, Contender] = {"ours compiled": partial(ours, compile=True)}
    if everything:
        for size in (512 * MIB, 2048 * MIB):
            found[f"ours compiled {size // MIB} MiB"] = partial(ours, chunk_bytes=size, compile=True)
    return found


def peers_with_compiler() -> dict[str, Contender]:
    """The peer that is compiled in its first call, which takes up to a minute."""
    if installed("liger_kernel"):
        return {"liger compiled": liger}
    return {"trl_liger compiled": partial(peers.trl_liger, compiled=True)} if installed("trl") else {}


# ── cells ─────────────────────────────────────────────────────────────────────────────────────────


def measure(clock: Clock, contender: Contender, case: Case, beta: float) -> Result:
    """Milliseconds of forward and backward, and GB over the inputs."""
    case.forget()
    release()
    peak = clock.peak(lambda: peers.run(contender, case, beta))
    case.forget()
    timed = clock.events(lambda: peers.run(contender, case, beta), before=case.forget)
    case.forget()
    return timed | {"peak_gb": round(peak / 1e9, 2)}


def errors(device: torch.device, shape: Shape, everyone: Mapping[str, Contender], rows: int) -> Result:
    """Relative errors of loss, dh and dW, of a teacher far from the student and near it."""
    found: Result = {}
    for near in (False, True):
        case = shape.case(device, rows=rows, near=near)
        for name, beta in BETAS.items():
            exact = peers.truth(case, beta)
            for label, contender in everyone.items():
                cell = f"{label}, {name}, {'near' if near else 'far'}"
                found[cell] = attempt(partial(_errors, contender, case, beta, exact))
            del exact
            case.forget()
        del case
        release()
    return found


def _errors(contender: Contender, case: Case, beta: float, exact: peers.Truth) -> Result:
    return {key: float(f"{value:.2g}") for key, value in peers.errors(contender, case, beta, exact).items()}


def compiled_cells(clock: Clock, tiny: bool) -> Iterator[tuple[str, Result]]:
    """What `--compile` measures: compiled loss beside the one as it is, the most important first."""
    torch.compiler.reset()  # torch keeps a few graphs of a function alone
    first, second, _ = TINY if tiny else (LIGER, QWEN, LONG)
    for shape, frozen in ((first, False), (first, True), (second, False)):
        whole = shape.case(clock.device)
        case = whole.frozen() if frozen else whole
        label = _label(shape, frozen)
        trained_first = shape is first and not frozen
        for name in BETAS if trained_first else ("forward_kl",):
            for who, contender in with_compiler(trained_first and name == "forward_kl").items():
                first_call = partial(_first_call, clock, contender, case, BETAS[name])
                yield f"{label} | {name} | {who}, first call", attempt(first_call)
                yield (
                    f"{label} | {name} | {who}",
                    attempt(partial(measure, clock, contender, case, BETAS[name])),
                )
            if name == "forward_kl":
                yield f"{label} | {name} | ours", attempt(partial(measure, clock, ours, case, BETAS[name]))
        if trained_first:
            everyone = {"ours compiled": with_compiler(False)["ours compiled"]}
            yield "errors", errors(clock.device, first, everyone, 32 if tiny else 64)
        del whole, case
        release()
    case = first.case(clock.device)
    for who, contender in peers_with_compiler().items():
        first_call = partial(_first_call, clock, contender, case, 0.0)
        yield f"{_label(first, False)} | forward_kl | {who}, first call", attempt(first_call)
        yield (
            f"{_label(first, False)} | forward_kl | {who}",
            attempt(partial(measure, clock, contender, case, 0.0)),
        )


def _first_call(clock: Clock, contender: Contender, case: Case, beta: float) -> Result:
    """Seconds of the first call: a compiler's, and the call's own."""
    seconds = clock.wall(lambda: peers.run(contender, case, beta))
    case.forget()
    return {"compile_seconds": round(seconds, 1)}


def _label(shape: Shape, frozen: bool) -> str:
    widths = "x".join(map(str, (shape.rows, shape.student, shape.teacher, shape.vocabulary)))
    return f"{widths} frozen" if frozen else widths


def cells(clock: Clock, tiny: bool) -> Iterator[tuple[str, Result]]:
    """Every cell by its name, the most important first."""
    first, second, long = TINY if tiny else (LIGER, QWEN, LONG)
    device = clock.device
    for shape, frozen in ((first, False), (first, True), (second, False)):
        whole = shape.case(device)
        case = whole.frozen() if frozen else whole
        label = _label(shape, frozen)
        work = shape.products(not frozen) / 1e12
        ideal = None if clock.rate is None else round(1e3 * work / clock.rate, 2)
        yield f"{label}: products", {"tera_operations": round(work, 3), "ms": ideal}
        for name, beta in BETAS.items():
            for who, contender in eager(shape is first and name == "forward_kl").items():
                yield (
                    f"{label} | {name} | {who}",
                    attempt(partial(measure, clock, contender, case, beta)),
                )
            if shape is first and not frozen and name == "forward_kl":
                # Errors stand early: a number of milliseconds is worth nothing without them.
                yield "errors", errors(device, first, eager(False), 32 if tiny else 64)
        if shape is first and not frozen:
            small = Shape(1024 if not tiny else 48, shape.student, shape.teacher, shape.vocabulary)
            few = small.case(device)
            for who, contender in {"ours": ours, "plain_kl_div": peers.plain, "dense": peers.dense}.items():
                yield (
                    f"{small.rows} rows | forward_kl | {who}",
                    attempt(partial(measure, clock, contender, few, 0.0)),
                )
            del few
        del whole, case
        release()
    case = long.case(device)
    for who, contender in eager(False).items():
        yield f"{long.rows} rows | forward_kl | {who}", attempt(partial(measure, clock, contender, case, 0.0))


def head(clock: Clock, tiny: bool, compile_too: bool) -> Result:
    """All cells that the time allows."""
    for name, result in (compiled_cells if compile_too else cells)(clock, tiny):
        clock.add(name, result)
        if clock.spent():
            clock.add("stopped", f"after {time.monotonic() - clock.began:.0f} s")
            break
    return clock.found
