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

C1 = {"positions": 256, "share": 0.5, "student_width": 512, "teacher_width": 1024, "vocabulary": 32768}
SMOL = {"share": 1.0, "student_width": 576, "teacher_width": 576, "vocabulary": 49152}
MEMORY = {"share": 1.0, "student_width": 512, "teacher_width": 1024, "vocabulary": 32768}
CHUNKED = ("trl_chunked_64", "trl_chunked_256")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
AGREE = 1e-4  # relative, in fp32 against float64

Cells = Mapping[str, Timings]  # "fp32 beta 0.5" -> its rounds


def agreement(report: Report, betas: Sequence[float]) -> dict[str, float]:
    """Largest error of each contender's loss and gradients in fp32; who is off is said before the timing."""
    worst: dict[str, float] = {}
    for case in (peers.make_case(**C1), peers.make_case(**C1).frozen()):
        for beta in betas:
            for name, contender in _able(peers.everyone(), beta).items():
                error = max(peers.errors(contender, case, beta).values())
                worst[name] = max(worst.get(name, 0.0), error)
    for name, error in worst.items():
        if error > AGREE:
            report.say(f"    {name} DISAGREES with the definition: relative error {error:.2g}")
    return worst


def _able(contenders: Mapping[str, Contender], beta: float) -> dict[str, Contender]:
    return {name: c for name, c in contenders.items() if beta == 0 or name != "plain_kl_div"}


def time_cells(
    dtypes: Sequence[str], trained: bool, betas: Sequence[float], quick: bool, rounds: int
) -> dict[str, Timings]:
    """Every contender on C1 (quick: ours and TRL's), and the products alone, for each dtype and β."""
    cells = {}
    for dtype in dtypes:
        case = peers.make_case(**C1).to(DTYPES[dtype])
        case = case if trained else case.frozen()
        for beta in betas:
            able = _able(peers.everyone(), beta)
            if quick:
                able = {n: c for n, c in able.items() if n in ("ours", "trl_gkd_dense", *CHUNKED)}
            actions: dict[str, Callable[[], object]] = {
                n: partial(peers.run, c, case, beta) for n, c in able.items()
            }
            actions["gemm_floor"] = peers.gemm_floor(case)
            cells[f"{dtype} beta {beta:g}"] = interleave(actions, rounds)
    return cells


def compare(
    name: str, bar: float, cells: Cells, against: Sequence[str], shape: Mapping[str, Any], note: str = ""
) -> Figure:
    """The worst cell's median ratio to the fastest of `against`; ratios to everyone else beside it."""
    facts: dict[str, Any] = {}
    for cell, timings in cells.items():
        for contender in timings.rounds[0]:
            if contender != "ours":
                ratios = spread(timings.ratios("ours", contender))
                facts.setdefault(contender, {"ours_over_it": {}})["ours_over_it"][cell] = ratios["median"]
                facts[contender][cell] = ratios
    facts["seconds"] = {cell: timings.table() for cell, timings in cells.items()}
    if not all(set(against) <= set(t.rounds[0]) for t in cells.values()):
        return Figure(name, None, "ratio", bar, contenders=facts, shape=shape, note="trl is not installed")
    medians = {cell: spread(t.ratios("ours", *against))["median"] for cell, t in cells.items()}
    noisy = [cell for cell, t in cells.items() if t.noisy]
    dropped = sum(t.discarded for t in cells.values())
    if dropped:
        note = f"{note} {dropped} disturbed rounds were discarded.".strip()
    if noisy:
        note = f"{note} NOISY, every round was disturbed: {', '.join(noisy)}.".strip()
    return Figure(name, max(medians.values()), "ratio", bar, contenders=facts, shape=shape, note=note)


def cpu(report: Report, quick: bool) -> None:
    """The four figures against TRL on C1."""
    betas, rounds = ((0.0, 0.5), 2) if quick else (BETAS, 7)
    worst = agreement(report, betas)
    shape = C1 | {"betas": list(betas), "threads": 1, "fp32_error": worst}
    note = "The worst β counts, against the faster of TRL's two chunk sizes."
    trained = time_cells(("bf16", "fp32"), True, betas, quick, rounds)
    for dtype, bar in (("bf16", 0.80), ("fp32", 0.60)):
        cells = {cell: t for cell, t in trained.items() if cell.startswith(dtype)}
        report.add(compare(f"cpu_vs_trl_chunked_{dtype}_trained", bar, cells, CHUNKED, shape, note))
    frozen = time_cells(("bf16", "fp32"), False, betas, quick, rounds)
    report.add(compare("cpu_vs_trl_chunked_frozen", 0.55, frozen, CHUNKED, shape, note))
    jsd = {cell: t for cell, t in trained.items() if cell == "fp32 beta 0.5"}
    report.add(compare("cpu_vs_gkd_dense_fp32", 0.45, jsd, ("trl_gkd_dense",), shape))


def floor(report: Report, quick: bool) -> None:
    """Ours over the four products alone, forward KL in fp32."""
    size = SMOL | {"positions": 512 if quick else 2048}
    case = peers.make_case(**size)
    names = ("ours",) if quick else ("ours", "plain_kl_div", "trl_chunked_256")
    actions: dict[str, Callable[[], object]] = {
        name: partial(peers.run, c, case, 0.0) for name, c in peers.everyone().items() if name in names
    }
    actions["gemm_floor"] = peers.gemm_floor(case)
    cells = {"fp32 beta 0": interleave(actions, 2 if quick else 5)}
    report.add(compare("cpu_vs_gemm_floor", 1.35, cells, ("gemm_floor",), size | {"threads": 1}))


def selection(report: Report, quick: bool) -> None:
    """Time when a tenth of the positions is scored over the time when all are; peers' beside it."""
    size = SMOL | {"positions": 1024, "dtype": "fp32", "beta": 0, "threads": 1}
    cases = {share: peers.make_case(**SMOL | {"positions": 1024, "share": share}) for share in (0.1, 1.0)}
    names = ("ours",) if quick else ("ours", "trl_chunked_256", "trl_liger")
    found = {name: c for name, c in peers.everyone().items() if name in names}
    actions = {
        f"{name} {share:g}": partial(peers.run, c, case, 0.0)
        for name, c in found.items()
        for share, case in cases.items()
    }
    timings = interleave(actions, 2 if quick else 5)
    facts: dict[str, Any] = {name: spread(timings.ratios(f"{name} 0.1", f"{name} 1")) for name in found}
    value = facts["ours"]["median"]
    facts["seconds"] = timings.table()
    note = "NOISY, every round was disturbed." if timings.noisy else ""
    report.add(
        Figure("time_ratio_fraction_0.1", value, "ratio", 0.15, contenders=facts, shape=size, note=note)
    )


def memory_task(contender: str, positions: int, trained: bool) -> dict[str, int]:
    """Peak bytes over the inputs, and bytes of the gradients that stay; runs in a process of its own."""
    use_threads(1)
    chosen = peers.everyone(chunk=128)[contender]

    def case(size: int, vocabulary: int) -> Case:
        made = peers.make_case(**MEMORY | {"positions": size, "vocabulary": vocabulary}).to(torch.bfloat16)
        return made if trained else made.frozen()

    peers.run(chosen, case(16, 512), 0.5)  # imports and thread pools are not the loss's memory
    measured = case(positions, MEMORY["vocabulary"])  # type: ignore[arg-type]
    peak = peak_over(lambda: peers.run(chosen, measured, 0.5))
    return {"peak": peak, "outputs": sum(g.nbytes for g in measured.gradients().values())}


def memory(report: Report, quick: bool) -> None:
    """Peak memory over inputs and outputs, each contender alone; and how it grows with N."""
    names = [
        n
        for n in peers.everyone(chunk=128)
        if n != "plain_kl_div" and (not quick or n in ("ours", "trl_chunked"))
    ]
    shape = MEMORY | {"positions": 512, "chunk": 128, "dtype": "bf16", "beta": 0.5, "threads": 1}

    def megabytes(name: str, positions: int, trained: bool) -> dict[str, float]:
        found = alone(__file__, "memory", threads=1, contender=name, positions=positions, trained=trained)
        return {
            "mb": round((found["peak"] - found["outputs"]) / 1e6, 1),
            "mb_over_inputs_alone": round(found["peak"] / 1e6, 1),
        }

    for label, bar in (("trained", 200.0), ("frozen", 50.0)):
        facts = {name: megabytes(name, 512, label == "trained") for name in names}
        report.add(
            Figure(f"memory_mb_{label}", facts["ours"]["mb"], "MB", bar, contenders=facts, shape=shape)
        )
    grown = {name: [megabytes(name, n, True)["mb"] for n in (512, 2048)] for name in names}
    ratios: dict[str, Any] = {name: round(most / least, 3) for name, (least, most) in grown.items()}
    shape = shape | {"positions": [512, 2048], "head": "trained"}
    report.add(
        Figure("memory_ratio_n", ratios["ours"], "ratio", 1.1, contenders=ratios | {"mb": grown}, shape=shape)
    )


def gradient_error(report: Report, quick: bool) -> None:
    """bf16 gradients of a student near its teacher against float64 on the same values."""
    case = peers.make_case(**C1, near=True).to(torch.bfloat16)
    facts: dict[str, Any] = {}
    for name, contender in peers.everyone().items():
        if name in ("plain_kl_div", "trl_chunked_64") or (quick and name == "trl_gkd_dense"):
            continue
        found = {f"beta {beta:g}": peers.errors(contender, case, beta) for beta in BETAS}
        worst = {part: max(errors[part] for errors in found.values()) for part in ("loss", "dh", "dW")}
        facts[name] = {
            part: f"{error:.2g}"
            for part, error in {"gradient": max(worst["dh"], worst["dW"]), **worst}.items()
        }
        facts[name] |= found
    value = float(max(errors[part] for errors in list(facts["ours"].values())[4:] for part in ("dh", "dW")))
    shape = C1 | {"dtype": "bf16", "betas": list(BETAS), "near": "logit noise of spread 0.22"}
    report.add(
        Figure(
            "bf16_gradient_error_near", value, "relative Frobenius error", 3e-3, contenders=facts, shape=shape
        )
    )


def main() -> None:
    options = arguments(__doc__)
    if options.task:
        return answer(options.task, {"memory": memory_task})
    use_threads(1)
    report = Report("loss, one thread", options.json)
    if not installed("trl"):
        report.say("    trl is not installed: its figures are null. pip install -e '.[bench]' brings it.")
    for part in (cpu, floor, memory, gradient_error, selection):
        part(report, options.quick)
    return None


if __name__ == "__main__":
    main()
