"""The loss layer against its peers: CPU seconds, memory, and the gradient's error in bf16.

One thread. CPU figures are ours / theirs, forward and backward together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import contenders as peers
import torch
from contenders import BETAS, Case, Contender
from protocol import (
    Figure,
    Report,
    Timings,
    alone,
    answer,
    arguments,
    installed,
    interleave,
    peak_over,
    spread,
    use_threads,
)

Shape = dict[str, Any]
C1: Shape = {
    "positions": 256,
    "share": 0.5,
    "student_width": 512,
    "teacher_width": 1024,
    "vocabulary": 32768,
}
MEMORY: Shape = C1 | {"positions": 512, "share": 1.0}
SMOL: Shape = {"share": 1.0, "student_width": 576, "teacher_width": 576, "vocabulary": 49152}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
AGREE = 1e-4  # relative, in fp32 against float64
CHUNKED, GKD, FLOOR = "trl_chunked", "trl_gkd_dense", "gemm_floor"

Cells = Mapping[str, Timings]  # "fp32 beta 0.5" -> its rounds


def pick(names: Sequence[str], beta: float = 0.0) -> dict[str, Contender]:
    """The installed contenders among `names`, without the one that knows forward KL only where beta > 0."""
    found = {name: c for name, c in peers.everyone().items() if name in names}
    if beta:
        found.pop("plain_kl_div", None)
    return found


def actions(case: Case, beta: float, names: Sequence[str]) -> dict[str, Callable[[], object]]:
    """Forward and backward of each contender, and the matrix products alone."""
    chosen = pick(names, beta)
    return {name: partial(peers.run, c, case, beta) for name, c in chosen.items()} | {
        FLOOR: peers.gemm_floor(case)
    }


def agreement(report: Report, betas: Sequence[float], names: Sequence[str]) -> dict[str, float]:
    """Largest fp32 error of each contender's loss and gradients; who is off is said before any timing."""
    worst: dict[str, float] = {}
    for case in (peers.make_case(**C1), peers.make_case(**C1).frozen()):
        for beta in betas:
            exact = peers.truth(case, beta)
            for name, contender in pick(names, beta).items():
                error = max(peers.errors(contender, case, beta, exact).values())
                worst[name] = max(worst.get(name, 0.0), error)
    off = [f"{name} ({error:.2g})" for name, error in worst.items() if not error <= AGREE]
    report.say(
        f"    fp32 losses and gradients DISAGREE with the definition: {', '.join(off)}"
        if off
        else f"    {', '.join(worst)} agree in fp32 with the definition to {max(worst.values()):.1g}"
    )
    return worst


def compare(name: str, bar: float, cells: Cells, against: str, shape: Shape, note: str = "") -> Figure:
    """The worst cell's median ratio to the fastest contender whose name starts with `against`.

    The ratios to everyone else and all seconds stand beside it.
    """
    facts: dict[str, Any] = {}
    medians: list[float] = []
    for cell, timings in cells.items():
        everyone = list(timings.rounds[0])
        for contender in everyone:
            mine = facts.setdefault(contender, {"ours_over_it": {}, "rounds": {}, "seconds": {}})
            ratios = spread(timings.ratios("ours", contender))
            mine["ours_over_it"][cell] = ratios["median"]
            mine["rounds"][cell] = ratios
            mine["seconds"][cell] = timings.seconds(contender)
        rivals = [contender for contender in everyone if contender.startswith(against)]
        if rivals:
            medians.append(spread(timings.ratios("ours", *rivals))["median"])
    if len(medians) < len(cells):
        note, value = f"{against}: the package trl is not installed;", None
    else:
        value = max(medians)
    return Figure(
        name, value, "ratio", bar, contenders=facts, shape=shape, note=f"{note} {rounds(cells)}".strip()
    )


def rounds(cells: Cells) -> str:
    """What became of the rounds."""
    kept = min(len(timings.rounds) for timings in cells.values())
    text = (
        f"{kept} rounds or more count, {sum(t.discarded for t in cells.values())} were disturbed and dropped"
    )
    noisy = [cell for cell, timings in cells.items() if timings.noisy]
    return f"{text}; NOISY, every round was disturbed: {', '.join(noisy)}" if noisy else text


def cpu(report: Report, quick: bool) -> None:
    """The four figures against TRL on C1."""
    # The trainer's own chunk of 256 computes unscored positions here and is the slower one.
    quick_names = ("ours", "trl_chunked_64", GKD)
    betas, count = ((0.0, 0.5), 2) if quick else (BETAS, 7)
    names = quick_names if quick else tuple(peers.everyone())
    shape = C1 | {"betas": list(betas), "threads": 1, "fp32_error": agreement(report, betas, names)}
    note = "worst β, against the faster of TRL's chunk sizes;"

    def cells(dtype: str, trained: bool) -> dict[str, Timings]:
        case = peers.make_case(**C1).to(DTYPES[dtype])
        case = case if trained else case.frozen()
        chosen = [name for name in names if not (quick and name == GKD and dtype == "bf16")]
        return {f"{dtype} β {beta:g}": interleave(actions(case, beta, chosen), count) for beta in betas}

    trained = {dtype: cells(dtype, True) for dtype in DTYPES}
    for dtype, bar in (("bf16", 0.80), ("fp32", 0.60)):
        name = f"cpu_vs_trl_chunked_{dtype}_trained"
        report.add(compare(name, bar, trained[dtype], CHUNKED, shape, note))
    half = {"fp32 β 0.5": trained["fp32"]["fp32 β 0.5"]}
    report.add(compare("cpu_vs_gkd_dense_fp32", 0.45, half, GKD, shape))
    frozen = cells("bf16", False) | cells("fp32", False)
    report.add(compare("cpu_vs_trl_chunked_frozen", 0.55, frozen, CHUNKED, shape, note))


def floor(report: Report, quick: bool) -> None:
    """Ours over the four products alone, forward KL in fp32."""
    size = SMOL | {"positions": 512 if quick else 2048}
    names = ("ours",) if quick else ("ours", "plain_kl_div", "trl_chunked_256")
    timings = interleave(actions(peers.make_case(**size), 0.0, names), 2 if quick else 5)
    report.add(compare("cpu_vs_gemm_floor", 1.35, {"fp32 β 0": timings}, FLOOR, size | {"threads": 1}))


def selection(report: Report, quick: bool) -> None:
    """Time when a tenth of the positions is scored over the time when all are; peers' beside it."""
    size = SMOL | {"positions": 1024}
    shape = size | {"share": [0.1, 1.0], "dtype": "fp32", "beta": 0, "threads": 1}
    cases = {share: peers.make_case(**size | {"share": share}) for share in (0.1, 1.0)}
    found = pick(("ours",) if quick else ("ours", "trl_chunked_256", "trl_liger"))
    timed = {
        f"{name} {share:g}": partial(peers.run, contender, case, 0.0)
        for name, contender in found.items()
        for share, case in cases.items()
    }
    timings = interleave(timed, 2 if quick else 5)
    facts: dict[str, Any] = {name: spread(timings.ratios(f"{name} 0.1", f"{name} 1")) for name in found}
    value = facts["ours"]["median"]
    for name in found:
        facts[name]["seconds"] = {key: timings.seconds(key) for key in (f"{name} 0.1", f"{name} 1")}
    note = rounds({"all": timings})
    report.add(
        Figure("time_ratio_fraction_0.1", value, "ratio", 0.15, contenders=facts, shape=shape, note=note)
    )


def memory_task(contender: str, positions: int, trained: bool) -> dict[str, int]:
    """Peak bytes over the inputs, and bytes of the gradients that stay; runs in a process of its own."""
    use_threads(1)
    chosen = peers.everyone(chunk=128)[contender]

    def case(size: int, vocabulary: int) -> Case:
        made = peers.make_case(**MEMORY | {"positions": size, "vocabulary": vocabulary}).to(torch.bfloat16)
        return made if trained else made.frozen()

    peers.run(chosen, case(16, 512), 0.5)  # imports and thread pools are not the loss's memory
    measured = case(positions, MEMORY["vocabulary"])
    peak = peak_over(lambda: peers.run(chosen, measured, 0.5))
    return {"peak": peak, "outputs": sum(grad.nbytes for grad in measured.gradients().values())}


def memory(report: Report, quick: bool) -> None:
    """Peak memory over inputs and outputs, each contender alone; and how it grows with N."""
    names = [name for name in peers.everyone(chunk=128) if name != "plain_kl_div"]
    if quick:
        names = [name for name in names if name in ("ours", CHUNKED)]
    shape = MEMORY | {"chunk": 128, "dtype": "bf16", "beta": 0.5, "threads": 1}

    def measure(name: str, positions: int, trained: bool) -> dict[str, float]:
        found = alone(__file__, "memory", threads=1, contender=name, positions=positions, trained=trained)
        over_both = (found["peak"] - found["outputs"]) / 1e6
        return {"mb": round(over_both, 1), "mb_over_inputs_alone": round(found["peak"] / 1e6, 1)}

    trained = {name: measure(name, 512, True) for name in names}
    frozen = {name: measure(name, 512, False) for name in names}
    for label, bar, facts in (("trained", 200.0, trained), ("frozen", 50.0, frozen)):
        report.add(
            Figure(f"memory_mb_{label}", facts["ours"]["mb"], "MB", bar, contenders=facts, shape=shape)
        )
    grown: dict[str, Any] = {}
    for name in names[:1] if quick else names:
        least, most = trained[name]["mb"], measure(name, 2048, True)["mb"]
        grown[name] = {"ratio": round(most / least, 3), "mb": [least, most]}
    shape |= {"positions": [512, 2048], "head": "trained"}
    report.add(Figure("memory_ratio_n", grown["ours"]["ratio"], "ratio", 1.1, contenders=grown, shape=shape))


def gradient_error(report: Report, quick: bool) -> None:
    """bf16 gradients of a student near its teacher against float64 on the same values."""
    case = peers.make_case(**C1, near=True).to(torch.bfloat16)
    found = pick(("ours", "trl_liger", "trl_chunked_256") + (() if quick else (GKD,)))
    parts: dict[str, dict[str, Any]] = {name: {} for name in found}
    for beta in BETAS:
        exact = peers.truth(case, beta)
        for name, contender in found.items():
            parts[name][f"beta {beta:g}"] = peers.errors(contender, case, beta, exact)
    worst = {
        name: max(error[grad] for error in parts[name].values() for grad in ("dh", "dW")) for name in found
    }
    facts = {name: {"worst": float(f"{worst[name]:.2g}"), **parts[name]} for name in found}
    shape = C1 | {"dtype": "bf16", "betas": list(BETAS), "near": "logit noise of spread 0.22"}
    unit = "relative Frobenius error"
    report.add(Figure("bf16_gradient_error_near", worst["ours"], unit, 3e-3, contenders=facts, shape=shape))


def main() -> None:
    options = arguments(__doc__)
    if options.task:
        return answer(options.task, {"memory": memory_task})
    use_threads(1)
    report = Report("loss, one thread", options.json)
    if not installed("trl"):
        report.say(
            "    trl is not installed: figures against it are null. pip install -e '.[bench]' brings it."
        )
    for part in (cpu, floor, memory, gradient_error, selection):
        part(report, options.quick)
    return None


if __name__ == "__main__":
    main()
